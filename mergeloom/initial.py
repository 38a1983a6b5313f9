"""``mergeloom init``: generates a commented configuration for some models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from mergeloom.engine.base.errors import ConfigError
from mergeloom.engine.base.records import dataclass
from mergeloom.methods import registry
from mergeloom.methods.declare import REQUIRED, Base, Method, Parameter
from mergeloom.report.records import InspectReport
from mergeloom.report.units import count_text

_WRITABLE = ("BF16", "F16", "F32", "F64")
_INITIAL_VALUES: Mapping[str, float] = {"weight": 1.0, "t": 0.5, "density": 0.5}
"""Initial values of parameters without a useful default."""
_UNUSED_PARAMETERS = frozenset({"int8_mask"})
"""Parameters that have no effect here."""
_METHOD_VALUES = {("nearswap", "t"): 0.001}


@dataclass(frozen=True)
class InitOptions:
    """What to write into a configuration: ``models`` (reports by name), the name of the ``base``,
    and the ``method``, which is chosen automatically if ``None``. With ``stack``, the layers of the
    models are stacked."""

    models: Mapping[str, InspectReport]
    base: str | None
    method: str | None
    stack: bool
    union: bool = False
    """Whether the vocabularies are merged."""


def initial_configuration(options: InitOptions) -> str:
    """The configuration, in YAML.

    Raises:
        ConfigError: there is no such method, or it does not merge such models.
    """
    method = registry.get(options.method or _suitable_method(options))
    if options.stack and method.name != "passthrough":
        raise ConfigError(
            f"--stack and --method {method.name} cannot be combined",
            remedy="layers are stacked by 'passthrough'",
        )
    others = [name for name in options.models if name != options.base]
    if not options.stack:
        _check_models(method, options, others)
    lines = [*_header_lines(options), "", *_method_lines(method, options, others)]
    lines += _slice_lines(options) if options.stack else _model_lines(method, options, others)
    lines += _parameter_lines(method)
    lines += _output_lines(options)
    return "\n".join(lines) + "\n"


def _suitable_method(options: InitOptions) -> str:
    """The name of a method that suits the models."""
    others = sum(name != options.base for name in options.models)
    if options.stack or len(options.models) == 1:
        return "passthrough"
    if options.base is not None:
        return "ties" if others > 1 else "slerp"
    return "slerp" if others == 2 else "linear"


def _check_models(method: Method, options: InitOptions, others: Sequence[str]) -> None:
    depths = {report.stacks[0].layers: name for name, report in options.models.items()}
    if len(depths) > 1:
        found = ", ".join(f"'{name}' has {layers}" for layers, name in depths.items())
        raise ConfigError(
            f"layers are merged one by one, but {found}",
            remedy="'mergeloom init --stack' stacks their layers instead",
        )
    own = len(others) - (options.base is None and method.base is Base.REQUIRED)
    high = method.maximum
    if own < method.minimum or (high is not None and own > high):
        beside = " beside a base model" if method.base is Base.REQUIRED else ""
        wanted = f"{method.minimum}" if high == method.minimum else f"{method.minimum} or more"
        if high is not None and high != method.minimum:
            wanted = f"{method.minimum} to {high}"
        remedy = "give more models, or another --method" if own < method.minimum else ""
        first = options.base or others[0]
        models = "model" if wanted == "1" else "models"
        raise ConfigError(
            f"'{method.name}' merges {wanted} {models}{beside}, here are {own} beside '{first}'"
            if beside
            else f"'{method.name}' merges {wanted} {models}, here are {own}",
            remedy=remedy,
        )


def _header_lines(options: InitOptions) -> Iterator[str]:
    yield "# A merge of"
    for name, report in options.models.items():
        layers = report.stacks[0].layers
        kinds = " and ".join(map(str.lower, list(report.dtypes)[:2]))
        base = "  (the base)" if name == options.base else ""
        parameters = count_text(report.parameters)
        yield f"#   {name}: {layers} layers, {parameters} parameters, {kinds}{base}"
    yield "# 'mergeloom plan FILE' shows what it does, 'mergeloom merge FILE OUT' runs it."


def _method_lines(method: Method, options: InitOptions, others: Sequence[str]) -> Iterator[str]:
    yield f"# {method.summary.partition('. ')[0].rstrip('.')}."
    yield "# ('mergeloom methods' lists the others.)"
    yield f"merge_method: {method.name}"
    base = _base(method, options, others)
    if base is not None:
        changes = method.base is Base.REQUIRED and method.model_parameters
        yield (
            "# The base that the others were fine-tuned from."
            if changes
            else "# The model to start from."
        )
        yield f"base_model: {_yaml_scalar(base)}"


def _base(method: Method, options: InitOptions, others: Sequence[str]) -> str | None:
    if options.base is not None or method.base is not Base.REQUIRED or options.stack:
        return options.base
    return others[0]


def _model_lines(method: Method, options: InitOptions, others: Sequence[str]) -> Iterator[str]:
    base = _base(method, options, others)
    wanted = [p for p in method.model_parameters if _is_included(p)]
    explained: set[str] = set()
    yield "models:"
    for name in options.models:
        if name == base and (wanted or len(others) > 1):
            continue  # the base has no parameters of its own
        yield f"  - model: {_yaml_scalar(name)}"
        if wanted:
            yield "    parameters:"
        for parameter in wanted:
            comment = "" if parameter.name in explained else f"  # {_comment(parameter)}"
            explained.add(parameter.name)
            value = _yaml_scalar(_initial_value(method, parameter))
            yield f"      {parameter.name}: {value}{comment}"


def _slice_lines(options: InitOptions) -> Iterator[str]:
    yield "# Slices are stacked in this order; layer_range is [first, end), end excluded."
    yield "slices:"
    for name, report in options.models.items():
        yield "  - sources:"
        yield f"      - model: {_yaml_scalar(name)}"
        yield f"        layer_range: [0, {report.stacks[0].layers}]"


def _parameter_lines(method: Method) -> Iterator[str]:
    wanted = [p for p in method.settings if _is_included(p)]
    if wanted:
        yield "parameters:"
        for parameter in wanted:
            value = _yaml_scalar(_initial_value(method, parameter))
            yield f"  {parameter.name}: {value}  # {_comment(parameter)}"
    other = [p for p in method.settings if not _is_included(p) and p.name not in _UNUSED_PARAMETERS]
    if other:
        defaults = ", ".join(f"{p.name} ({_yaml_scalar(p.default)})" for p in other)
        yield f"# Further keys of 'parameters', with their defaults: {defaults}."


def _output_lines(options: InitOptions) -> Iterator[str]:
    if options.union:
        yield "# The models have different vocabularies: rows are matched by token."
        yield "tokenizer:"
        yield "  source: union"
    first = next(iter(options.models.values()))
    kind = max(first.dtypes, key=lambda name: first.dtypes[name], default="BF16")
    dtype = _DTYPES.get(kind.upper(), kind if kind in _DTYPES.values() else "bfloat16")
    yield "# The output dtype; arithmetic is always float32."
    yield f"dtype: {dtype}"


_DTYPES = dict(zip(_WRITABLE, ("bfloat16", "float16", "float32", "float64"), strict=True))


def _is_included(parameter: Parameter) -> bool:
    return parameter.default is REQUIRED or parameter.name in _INITIAL_VALUES


def _initial_value(method: Method, parameter: Parameter) -> float | int | bool:
    found = _METHOD_VALUES.get((method.name, parameter.name), _INITIAL_VALUES.get(parameter.name))
    if found is not None:
        return found
    if parameter.kind is bool:
        return False
    low, high = parameter.minimum, parameter.maximum
    return 1.0 if low is None or high is None else (low + high) / 2


def _comment(parameter: Parameter) -> str:
    allowed = parameter.range_text()
    return (
        parameter.help if allowed in ("any", "true or false") else f"{parameter.help}, in {allowed}"
    )


def _yaml_scalar(value: Any) -> str:
    """A scalar in YAML syntax."""
    return str(yaml.safe_dump(value, width=4000)).removesuffix("\n").removesuffix("\n...")
