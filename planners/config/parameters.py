"""Parameters: values that depend on tensor and layer, and which of several levels supplies them.

A value is a scalar, a gradient over the layers, or a list of ``{filter, value}`` entries. Levels
are asked in order of precedence; the first that yields a value for a tensor wins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mergeloom.engine.base.errors import ConfigError
from mergeloom.methods.declare import Method, Parameter, ParameterError
from mergeloom.planners.config.yaml_values import Place, Value, nearest


@dataclass(frozen=True, slots=True)
class Entry:
    """One value with the filter that admits it: a substring of tensor names, ``None`` for all.

    ``value`` is a scalar, or a tuple for a gradient.
    """

    filter: str | None
    value: Any
    place: Place

    def admits(self, tensor: str) -> bool:
        return self.filter is None or self.filter in tensor


@dataclass(frozen=True, slots=True)
class Parameters:
    """One ``parameters`` block: entries by parameter name, in the order in which they are tried."""

    entries: Mapping[str, tuple[Entry, ...]] = field(default_factory=dict)
    places: Mapping[str, Place] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Level:
    """A parameters block and what it belongs to: ``model``, ``slice``, ``module``, ``global``."""

    name: str
    parameters: Parameters


@dataclass(frozen=True, slots=True)
class Resolved:
    """A value for one tensor, and why: ``entry`` of ``level`` supplied it (``None``: default).

    ``t`` is the place in a gradient that the value was read at, ``None`` for a scalar.
    """

    value: Any
    level: str
    entry: Entry | None
    t: float | None


def read_parameters(value: Value) -> Parameters:
    """The parameters block that stands at ``value``.

    Raises:
        ConfigError: something in it is no value, gradient or list of filters.
    """
    entries = {}
    places = {}
    for name, item in value.mapping("'parameters'").items():
        if item.content is None:
            continue
        entries[name] = tuple(_entries(item))
        places[name] = item.place
    return Parameters(entries, places)


def check_names(
    method: Method, block: Parameters, level: str, elsewhere: Callable[[], Collection[str]]
) -> list[str]:
    """Check the names in a ``block`` of a level; returns warnings about those without effect.

    ``elsewhere`` yields the parameters of all methods: published configurations carry along
    parameters that their method does not have, and they have always been ignored.

    Raises:
        ConfigError: a name is no parameter of any method.
    """
    per_model = {parameter.name for parameter in method.model_parameters}
    settings = {parameter.name for parameter in method.settings}
    warnings = []
    for name, place in block.places.items():
        if name in settings and level == "model":
            warnings.append(
                f"{place}: '{name}' of '{method.name}' holds for all models together and has no "
                "effect under one of them: write it under the global 'parameters'"
            )
        elif name not in per_model and name not in settings:
            if name not in elsewhere():
                known = nearest(name, per_model | settings) or "; it takes none"
                raise place.error(f"'{method.name}' has no parameter {name!r}{known}")
            warnings.append(f"{place}: '{method.name}' has no parameter {name!r}: it has no effect")
    return warnings


def resolve(
    parameter: Parameter, levels: Sequence[Level], tensor: str, t: float
) -> Resolved | None:
    """The value of ``parameter`` for ``tensor`` at place ``t`` of its slice, from 0 to 1.

    ``None`` if no level supplies one.

    Raises:
        ConfigError: the value is not one that the parameter takes.
    """
    for level in levels:
        for entry in level.parameters.entries.get(parameter.name, ()):
            if entry.admits(tensor):
                value, used = _at(entry.value, t)
                try:
                    checked = parameter.check(_as_kind(value, parameter.kind))
                except ParameterError as error:
                    raise entry.place.error(str(error)) from error
                return Resolved(checked, level.name, entry, used)
    return None


def at_gradient(values: Sequence[float], t: float) -> float:
    """Piecewise linear interpolation of equally spaced ``values`` at ``t`` from 0 to 1."""
    position = t * (len(values) - 1)
    index = min(int(position), len(values) - 2) if len(values) > 1 else 0
    if len(values) == 1:
        return values[0]
    share = position - index
    return (1 - share) * values[index] + share * values[index + 1]


def _at(value: Any, t: float) -> tuple[Any, float | None]:
    if not isinstance(value, tuple):
        return value, None
    if all(_is_number(item) for item in value):
        return at_gradient(value, t), t
    return value[int(t * (len(value) - 1))], t


def _as_kind(value: Any, kind: type) -> Any:
    """0 and 1 stand for booleans in many published configurations."""
    return bool(value) if kind is bool and _is_number(value) and value in (0, 1) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _entries(value: Value) -> list[Entry]:
    if isinstance(value.content, dict):
        return [_filtered(value)]
    items = value.content if isinstance(value.content, list) else None
    if items and all(isinstance(item.content, dict) for item in items):
        return [_filtered(item) for item in items]
    return [Entry(None, _scalar_or_gradient(value), value.place)]


def _filtered(value: Value) -> Entry:
    keys = value.mapping("an entry")
    if not keys.keys() & {"filter", "value"}:
        raise value.error(f"a number, true or false is needed here, not {value.kind}")
    for key, item in keys.items():
        if key not in {"filter", "value"}:
            raise item.error(f"unknown key {key!r}{nearest(key, ['filter', 'value'])}")
    if "value" not in keys:
        raise value.error("an entry with a filter needs 'value'")
    text = keys["filter"].content if "filter" in keys else None
    if isinstance(text, (dict, list)) or not str(text).isprintable():
        raise keys["filter"].error("'filter' must be a part of a tensor's name")
    pattern = None if text is None or text == "*" else str(text)
    return Entry(pattern, _scalar_or_gradient(keys["value"]), value.place)


def _scalar_or_gradient(value: Value) -> Any:
    if isinstance(value.content, list):
        if not value.content:
            raise value.error("a gradient needs at least one value")
        return tuple(_scalar(item) for item in value.content)
    return _scalar(value)


def _scalar(value: Value) -> Any:
    content = value.content
    if isinstance(content, (dict, list)) or content is None:
        raise value.error(f"a number, true or false is needed here, not {value.kind}")
    if isinstance(content, str):
        try:
            content = float(content)  # YAML 1.1 reads 1e-5 as text
        except ValueError:
            raise value.error(f"a number, true or false is needed here, not {value.kind}") from None
    if isinstance(content, float) and not math.isfinite(content):
        raise value.error(f"a finite number is needed here, not {content}")
    return content


def required(parameter: Parameter, model: str | None, tensor: str, place: Place) -> ConfigError:
    """The error for a parameter that no level supplies."""
    whose = f" of model '{model}'" if model is not None else ""
    return place.error(
        f"'{parameter.name}'{whose} has no value for tensor '{tensor}': add it, or a filter that "
        "admits this name"
    )
