"""Two models beside each other, and what they changed of a base: which tensors can be compared.

Headers only. What the values say is found out by measuring the graph (`engine.measure`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.base.suggest import nearest
from mergeloom.engine.graph.graph import Graph, GraphBuilder, Load, Merge
from mergeloom.methods.kernels.compare import Compare
from mergeloom.planners.config.model_reference import parse_reference
from mergeloom.planners.models.model import Model
from mergeloom.planners.models.pool import Models
from mergeloom.planners.models.resolve import Resolver

_TOP_KEYS = frozenset({"_name_or_path", "transformers_version", "torch_dtype", "dtype"})
"""Keys of a configuration that say nothing about what the model computes."""


@dataclass(frozen=True)
class Pair:
    """A tensor that both models have: its ``layer`` in the main stack, and what is the matter where
    it cannot be compared (``None``: it can). ``based`` says whether the base has it too."""

    name: str
    layer: int | None
    kind: str
    """The name without the layer's number."""
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    dtypes: tuple[str, str]
    obstacle: str | None
    based: bool


@dataclass(frozen=True)
class Comparison:
    """Two models beside each other; ``merges`` has the measuring merge of each pair that can be
    compared, by its name."""

    models: tuple[Model, Model]
    base: Model | None
    pairs: tuple[Pair, ...]
    only: tuple[tuple[str, ...], tuple[str, ...]]
    """Tensors that one model alone has."""
    settings: tuple[tuple[str, Any, Any], ...]
    """Values of ``config.json`` that differ: key, and the value in each (``None``: not there)."""
    graph: Graph
    merges: Mapping[str, Merge]


def compare_models(
    a: str, b: str, base: str | None, resolver: Resolver, pattern: str | None = None
) -> Comparison:
    """What there is to compare of the models that these references lead to; with ``pattern`` only
    of tensors whose names contain it.

    Raises:
        ConfigError: a reference is none.
        CheckpointError: a model is nowhere or malformed, or there is nothing to compare.
    """
    models = Models(resolver)
    first, second = (models.get(parse_reference(text)) for text in (a, b))
    origin = None if base is None else models.get(parse_reference(base))
    names = [name for name in first if pattern is None or pattern in name]
    others = [name for name in second if pattern is None or pattern in name]
    pairs = tuple(_pairs(names, first, second, origin))
    if not pairs:
        raise _nothing(first, second, pattern)
    builder = GraphBuilder()
    merges = {
        pair.name: _merge(builder, pair, first, second, origin)
        for pair in pairs
        if pair.obstacle is None
    }
    return Comparison(
        models=(first, second),
        base=origin,
        pairs=pairs,
        only=(
            tuple(name for name in names if name not in second),
            tuple(name for name in others if name not in first),
        ),
        settings=tuple(_settings(first.config, second.config)),
        graph=builder.measuring(list(merges.values())),
        merges=merges,
    )


def _pairs(names: Sequence[str], first: Model, second: Model, base: Model | None) -> Iterator[Pair]:
    prefix = first.architecture.main.prefix
    for name in names:
        if name not in second:
            continue
        shapes = first.shape(name), second.shape(name)
        dtypes = first.dtype(name), second.dtype(name)
        layer, kind = _layer(name, prefix)
        obstacle = None
        if shapes[0] != shapes[1]:
            obstacle = "shapes differ"
        elif not all(dtype.floating for dtype in dtypes):
            own = next(dtype for dtype in dtypes if not dtype.floating)
            obstacle = f"it holds {own.holds}"
        elif 0 in shapes[0]:
            obstacle = "it has no elements"
        based = base is not None and name in base and base.shape(name) == shapes[0]
        based = based and base is not None and base.dtype(name).floating
        yield Pair(name, layer, kind, shapes, (dtypes[0].name, dtypes[1].name), obstacle, based)


def _layer(name: str, prefix: str) -> tuple[int | None, str]:
    if prefix and name.startswith(prefix):
        number, dot, rest = name[len(prefix) :].partition(".")
        if number.isdigit():
            return int(number), rest if dot else name
    return None, name


def _merge(
    builder: GraphBuilder, pair: Pair, first: Model, second: Model, base: Model | None
) -> Merge:
    models = [first, second, *([base] if base is not None and pair.based else [])]
    inputs: list[Load | Merge] = [model.node(builder, pair.name) for model in models]
    return builder.merge(inputs, Compare(len(models) == 3), pair.name)


def _settings(
    one: Mapping[str, Any], other: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for key in dict.fromkeys([*one, *other]):
        if key in _TOP_KEYS:
            continue
        here, there = one.get(key), other.get(key)
        if isinstance(here, Mapping) and isinstance(there, Mapping):
            yield from _settings(here, there, f"{path}{key}.")
        elif here != there:
            yield f"{path}{key}", here, there


def _nothing(first: Model, second: Model, pattern: str | None) -> CheckpointError:
    if pattern is not None:
        near = nearest(pattern, list(first))
        return CheckpointError(
            f"'{first.name}' and '{second.name}' have no tensor in common whose name contains "
            f"'{pattern}'",
            remedy=f"did you mean '{near}'?" if near else "",
        )
    one, other = next(iter(first), "nothing"), next(iter(second), "nothing")
    return CheckpointError(
        f"'{first.name}' and '{second.name}' have no tensor in common: the first begins with "
        f"'{one}', the other with '{other}'",
        remedy="only models of one architecture can be compared",
    )
