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
from mergeloom.report.units import count

_WRITABLE = ("BF16", "F16", "F32", "F64")
_STARTS: Mapping[str, float] = {"weight": 1.0, "t": 0.5, "density": 0.5}
"""Initial values of parameters without a useful default."""
_NEEDLESS = frozenset({"int8_mask"})
"""Parameters without effect."""
_OF_METHOD = {("nearswap", "t"): 0.001}


@dataclass(frozen=True)
class Start:
    """The content of a configuration: ``models`` by name, with reports of them, and ``base``;
    ``method`` is chosen automatically if ``None``."""

    models: Mapping[str, InspectReport]
    base: str | None
    method: str | None
    stack: bool
    union: bool = False
    """Whether vocabularies are merged."""


def first_configuration(start: Start) -> str:
    """The configuration, in YAML.

    Raises:
        ConfigError: there is no such method, or it does not merge such models.
    """
    method = registry.get(start.method or _method(start))
    if start.stack and method.name != "passthrough":
        raise ConfigError(
            f"--stack and --method {method.name} cannot be combined",
            remedy="layers are stacked by 'passthrough'",
        )
    others = [name for name in start.models if name != start.base]
    if not start.stack:
        _check(method, start, others)
    lines = [*_head(start), "", *_top(method, start, others)]
    lines += _slices(start) if start.stack else _models(method, start, others)
    lines += _settings(method)
    lines += _outcome(start)
    return "\n".join(lines) + "\n"


def _method(start: Start) -> str:
    """A suitable method."""
    others = sum(name != start.base for name in start.models)
    if start.stack or len(start.models) == 1:
        return "passthrough"
    if start.base is not None:
        return "ties" if others > 1 else "slerp"
    return "slerp" if others == 2 else "linear"


def _check(method: Method, start: Start, others: Sequence[str]) -> None:
    depths = {report.stacks[0].layers: name for name, report in start.models.items()}
    if len(depths) > 1:
        found = ", ".join(f"'{name}' has {layers}" for layers, name in depths.items())
        raise ConfigError(
            f"layers are merged with each other one by one, and {found}",
            remedy="'mergeloom init --stack' writes a stack of them",
        )
    own = len(others) - (start.base is None and method.base is Base.REQUIRED)
    high = method.maximum
    if own < method.minimum or (high is not None and own > high):
        beside = " beside a base model" if method.base is Base.REQUIRED else ""
        wanted = f"{method.minimum}" if high == method.minimum else f"{method.minimum} or more"
        if high is not None and high != method.minimum:
            wanted = f"{method.minimum} to {high}"
        remedy = "give more models, or another --method" if own < method.minimum else ""
        first = start.base or others[0]
        models = "model" if wanted == "1" else "models"
        raise ConfigError(
            f"'{method.name}' merges {wanted} {models}{beside}, here are {own} beside '{first}'"
            if beside
            else f"'{method.name}' merges {wanted} {models}, here are {own}",
            remedy=remedy,
        )


def _head(start: Start) -> Iterator[str]:
    yield "# A merge of"
    for name, report in start.models.items():
        layers = report.stacks[0].layers
        kinds = " and ".join(map(str.lower, list(report.dtypes)[:2]))
        base = "  (the base)" if name == start.base else ""
        yield f"#   {name}: {layers} layers, {count(report.parameters)} parameters, {kinds}{base}"
    yield "# 'mergeloom plan FILE' shows what it does, 'mergeloom merge FILE OUT' runs it."


def _top(method: Method, start: Start, others: Sequence[str]) -> Iterator[str]:
    yield f"# {method.summary.partition('. ')[0].rstrip('.')}."
    yield "# ('mergeloom methods' lists the others.)"
    yield f"merge_method: {method.name}"
    base = _base(method, start, others)
    if base is not None:
        changes = method.base is Base.REQUIRED and method.model_parameters
        yield (
            "# The base that the others were fine-tuned from."
            if changes
            else "# The model to start from."
        )
        yield f"base_model: {_text(base)}"


def _base(method: Method, start: Start, others: Sequence[str]) -> str | None:
    if start.base is not None or method.base is not Base.REQUIRED or start.stack:
        return start.base
    return others[0]


def _models(method: Method, start: Start, others: Sequence[str]) -> Iterator[str]:
    base = _base(method, start, others)
    wanted = [p for p in method.model_parameters if _is_written(p)]
    explained: set[str] = set()
    yield "models:"
    for name in start.models:
        if name == base and (wanted or len(others) > 1):
            continue  # it is a source without parameters of its own
        yield f"  - model: {_text(name)}"
        if wanted:
            yield "    parameters:"
        for parameter in wanted:
            comment = "" if parameter.name in explained else f"  # {_about(parameter)}"
            explained.add(parameter.name)
            yield f"      {parameter.name}: {_text(_start(method, parameter))}{comment}"


def _slices(start: Start) -> Iterator[str]:
    yield "# Slices are stacked in this order; layer_range is [first, end), end excluded."
    yield "slices:"
    for name, report in start.models.items():
        yield "  - sources:"
        yield f"      - model: {_text(name)}"
        yield f"        layer_range: [0, {report.stacks[0].layers}]"


def _settings(method: Method) -> Iterator[str]:
    wanted = [p for p in method.settings if _is_written(p)]
    if wanted:
        yield "parameters:"
        for parameter in wanted:
            yield f"  {parameter.name}: {_text(_start(method, parameter))}  # {_about(parameter)}"
    other = [p for p in method.settings if not _is_written(p) and p.name not in _NEEDLESS]
    if other:
        defaults = ", ".join(f"{p.name} ({_text(p.default)})" for p in other)
        yield f"# Further keys of 'parameters', with their defaults: {defaults}."


def _outcome(start: Start) -> Iterator[str]:
    if start.union:
        yield "# The models have different vocabularies: rows are matched by token."
        yield "tokenizer:"
        yield "  source: union"
    first = next(iter(start.models.values()))
    kind = max(first.dtypes, key=lambda name: first.dtypes[name], default="BF16")
    dtype = _DTYPES.get(kind.upper(), kind if kind in _DTYPES.values() else "bfloat16")
    yield "# The output dtype; arithmetic is always float32."
    yield f"dtype: {dtype}"


_DTYPES = dict(zip(_WRITABLE, ("bfloat16", "float16", "float32", "float64"), strict=True))


def _is_written(parameter: Parameter) -> bool:
    return parameter.default is REQUIRED or parameter.name in _STARTS


def _start(method: Method, parameter: Parameter) -> float | int | bool:
    found = _OF_METHOD.get((method.name, parameter.name), _STARTS.get(parameter.name))
    if found is not None:
        return found
    if parameter.kind is bool:
        return False
    low, high = parameter.minimum, parameter.maximum
    return 1.0 if low is None or high is None else (low + high) / 2


def _about(parameter: Parameter) -> str:
    allowed = parameter.range_text()
    return (
        parameter.help if allowed in ("any", "true or false") else f"{parameter.help}, in {allowed}"
    )


def _text(value: Any) -> str:
    """A scalar in YAML syntax."""
    return str(yaml.safe_dump(value, width=4000)).removesuffix("\n").removesuffix("\n...")
