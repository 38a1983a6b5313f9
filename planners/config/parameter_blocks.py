"""Reads ``parameters`` blocks, and checks them against the parameters of the method."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mergeloom.engine.base.suggest import nearest, suggest
from mergeloom.methods.declare import Method, Parameter, ParameterError
from mergeloom.planners.config.findings import IGNORED, MISPLACED, UNKNOWN_PARAMETER, Findings
from mergeloom.planners.config.keys import (
    CONFIGURATION,
    FILTERED,
    Fields,
    command_line_option,
    where_it_belongs,
)
from mergeloom.planners.config.parameters import ParameterEntry, Parameters, is_number
from mergeloom.planners.config.yaml_values import Value, is_name, shortened

_DECIMAL_COMMA = re.compile(r"\s*([+-]?[0-9]{1,9}),([0-9]{1,9})\s*")
_PERCENT = re.compile(r"\s*([0-9]{1,3}(?:\.[0-9]{1,9})?)\s*%\s*")
_BOOLEANS = dict.fromkeys(("true", "yes", "on", "t", "y", "1"), True)
_BOOLEANS |= dict.fromkeys(("false", "no", "off", "f", "n", "0"), False)


def read_parameters(
    value: Value, method: Method | None, per_model: bool, findings: Findings
) -> Parameters:
    """Read the parameters block at ``value``.

    ``method`` is ``None`` if it is unknown, which is reported elsewhere; then its parameters are
    not checked. ``per_model`` is true for a block of one model. Parameters that are invalid,
    unknown or without effect are added to ``findings``.

    Raises:
        ConfigError: it is not a mapping.
    """
    block = value.mapping("'parameters'")
    if method is None:
        return Parameters()
    own = {parameter.name: parameter for parameter in method.model_parameters}
    settings = {parameter.name: parameter for parameter in method.settings}
    entries: dict[str, tuple[ParameterEntry, ...]] = {}
    for name, item in block.items():
        parameter = own.get(name) or settings.get(name)
        if item.content is None:
            _report_missing_value(name, item, block, [*own, *settings], findings)
        elif parameter is None:
            _report_unknown(name, item, method, findings)
        elif item.content == []:
            findings.warn(
                item.place, f"'{name}' is an empty list and has no effect", code="no-value"
            )
        elif per_model and name not in own:
            findings.warn(
                item.place,
                f"'{name}' of '{method.name}' applies to all models together and has no effect "
                "under one of them",
                "write it under the global 'parameters'",
                MISPLACED,
            )
        else:
            found = (
                findings.attempt(_parameter_entry, each, parameter, findings)
                for each in _entries(item)
            )
            entries[name] = tuple(entry for entry in found if entry is not None)
    return Parameters(entries)


def _report_missing_value(
    name: str, item: Value, block: Mapping[str, Value], known: Sequence[str], findings: Findings
) -> None:
    """Report a parameter without a value; a decimal comma or a missing space may be the cause."""
    before = list(block)[: list(block).index(name)]
    whole = block[before[-1]].content if before else None
    if name.isdigit() and type(whole) is int and is_name(before[-1]):
        remedy = f"for a decimal number write '{before[-1]}: {whole}.{name}'"
    elif ":" in name and is_name(name):
        key, _, rest = name.partition(":")
        remedy = f"write a space after the colon, '{key}: {rest}'"
    else:
        near = None if name in known else nearest(name, known)
        remedy = f"did you mean '{near}'?" if near else "write a value, or remove the key"
    findings.error(item.place, f"{shortened(repr(name))} has no value", remedy, "no-value")


def _report_unknown(name: str, item: Value, method: Method, findings: Findings) -> None:
    """Report a parameter that the method lacks; many published configurations have some."""
    shown = shortened(repr(name))
    known = {parameter.name for parameter in (*method.model_parameters, *method.settings)}
    if name in CONFIGURATION.keys:
        findings.warn(item.place, f"{shown} has no effect here", where_it_belongs(name), MISPLACED)
        return
    if command_line_option(name):
        remedy = f"give it as {command_line_option(name)}"
        findings.warn(item.place, f"{shown} has no effect here", remedy, MISPLACED)
        return
    findings.warn(
        item.place,
        f"'{method.name}' has no parameter {shown}{IGNORED}",
        suggest(name, known) or "remove it, the method has no parameters",
        UNKNOWN_PARAMETER,
    )


def _entries(value: Value) -> list[Value]:
    """The entries of a parameter's value: a single value, or a list with filters."""
    items = value.content if isinstance(value.content, list) else None
    if items and any(isinstance(item.content, dict) for item in items):
        return items
    return [value]


def _parameter_entry(value: Value, parameter: Parameter, findings: Findings) -> ParameterEntry:
    if not isinstance(value.content, dict):
        return ParameterEntry(None, _scalar_or_gradient(value, parameter, findings), value.place)
    if not value.content.keys() & FILTERED.keys:
        raise value.error(
            f"'{parameter.name}' must be {_expected_kind(parameter)}, not {value.kind}",
            "for parts of the model, write a list of '- {filter: TEXT, value: ...}'",
        )
    fields = Fields(value, FILTERED, findings)
    written = fields.require("value", "an entry with a filter needs a value")
    text = fields["filter"].content if "filter" in fields else None
    if isinstance(text, (dict, list)) or not str(text).isprintable():
        raise fields["filter"].error("'filter' must be part of a tensor name")
    pattern = None if text is None or text == "*" else str(text)
    return ParameterEntry(pattern, _scalar_or_gradient(written, parameter, findings), value.place)


def _scalar_or_gradient(value: Value, parameter: Parameter, findings: Findings) -> Any:
    if isinstance(value.content, list):
        return tuple(_scalar(item, parameter, findings) for item in value.content)
    return _scalar(value, parameter, findings)


def _scalar(value: Value, parameter: Parameter, findings: Findings) -> Any:
    content = value.content
    if isinstance(content, str):
        content = _from_text(content, parameter)
    text = isinstance(content, str) and parameter.kind is not str
    if text or isinstance(content, (dict, list)) or content is None:
        cause = f"'{parameter.name}' must be {_expected_kind(parameter)}, not {value.kind}"
        raise value.error(cause, _number_suggestion(content) if isinstance(content, str) else "")
    if parameter.kind is bool and is_number(content) and content in (0, 1):
        content = bool(content)  # as in many published configurations
    try:
        checked = parameter.check(content)
    except ParameterError as error:
        raise error.at(value.place) from error
    if parameter.usual is not None and isinstance(checked, (int, float)):
        low, high = parameter.usual
        if not low <= checked <= high:
            percent = high == 1 and 2 <= checked <= 100
            findings.warn(
                value.place,
                f"'{parameter.name}' is {content:g}, outside the usual {low:g} to {high:g}",
                f"did you mean {checked / 100:g}?" if percent else "",
                "unusual-value",
            )
    return content


def _from_text(text: str, parameter: Parameter) -> Any:
    """A boolean or number written as text (YAML 1.1 reads ``1e-5`` as text)."""
    if parameter.kind is bool:
        return _BOOLEANS.get(text.lower(), text)
    if parameter.kind is str:
        return text
    try:
        return float(text)
    except ValueError:
        return text


def _number_suggestion(text: str) -> str:
    """A suggestion for text with a comma or percent sign that was meant as a number."""
    comma, percent = _DECIMAL_COMMA.fullmatch(text), _PERCENT.fullmatch(text)
    if comma is not None:
        return f"did you mean {comma[1]}.{comma[2]}?"
    return f"did you mean {float(percent[1]) / 100:g}?" if percent is not None else ""


def _expected_kind(parameter: Parameter) -> str:
    if parameter.kind is str:
        return parameter.range_text()
    return {bool: "true or false", int: "a whole number"}.get(parameter.kind, "a number")
