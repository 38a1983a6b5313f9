"""Plans the comparison of two models, and of their changes to a base.

Reads headers only; `engine.measure` compares the values, by running the graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.base.suggest import nearest
from mergeloom.engine.graph.graph import Graph, GraphBuilder, Load, Merge
from mergeloom.engine.storage.folder import LocalFolder
from mergeloom.methods.kernels.compare import Compare
from mergeloom.planners.config.model_reference import parse_reference
from mergeloom.planners.models.class_defaults import class_defaults
from mergeloom.planners.models.differences import with_plain_rotary
from mergeloom.planners.models.model import Model
from mergeloom.planners.models.pool import Models
from mergeloom.planners.models.resolve import Resolver

_IGNORED_KEYS = frozenset({"_name_or_path", "transformers_version", "torch_dtype", "dtype"})
"""Keys of a configuration that do not affect what the model computes."""


@dataclass(frozen=True)
class AlignedNames:
    """The ``name`` of a tensor of the second model, and the names of the tensors it is compared
    with: in the ``first`` model and, if there is one, in the ``base``."""

    name: str
    first: str
    base: str | None


@dataclass(frozen=True)
class TensorPair:
    """A tensor of both models; ``layer`` is its layer in the main stack.

    ``obstacle`` says why it cannot be compared, ``base`` is its name in the base; both may be
    absent.
    """

    name: str
    first: str
    """Its name in the first model."""
    layer: int | None
    kind: str
    """The name without the layer number."""
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    dtypes: tuple[str, str]
    obstacle: str | None
    base: str | None


@dataclass(frozen=True)
class Comparison:
    """Two models; ``merges`` has the measuring merge of each comparable pair, by name."""

    models: tuple[Model, Model]
    base: Model | None
    pairs: tuple[TensorPair, ...]
    only: tuple[tuple[str, ...], tuple[str, ...]]
    """Tensors that only one model has."""
    settings: tuple[tuple[str, Any, Any], ...]
    """Differing values of ``config.json``: the key, and the value in each model (``None`` if
    absent)."""
    merges: Mapping[str, Merge]


@dataclass(frozen=True)
class Comparisons:
    """One or more comparisons, and a graph that measures all of them; shared inputs are read
    once."""

    graph: Graph
    each: tuple[Comparison, ...]


def compare_models(
    a: str, b: str, base: str | None, resolver: Resolver, pattern: str | None = None
) -> Comparisons:
    """Plan the comparison of two models, given by reference; with ``pattern``, only of tensors
    whose names contain it.

    Raises:
        ConfigError: a reference is malformed.
        CheckpointError: a model is not found or malformed, or there is nothing to compare.
    """
    models = Models(resolver)
    first, second = (models.get(parse_reference(text)) for text in (a, b))
    origin = None if base is None else models.get(parse_reference(base))
    names = [name for name in first if pattern is None or pattern in name]
    others = [name for name in second if pattern is None or pattern in name]
    aligned = [AlignedNames(name, name, name) for name in names if name in second]
    if not aligned:
        raise _nothing_in_common(first, second, pattern)
    builder = GraphBuilder()
    only = (
        tuple(name for name in names if name not in second),
        tuple(name for name in others if name not in first),
    )
    return _with_graph(builder, [_compare(builder, (first, second), origin, aligned, only)])


def compare_inputs(
    output: str, sources: Mapping[str, Sequence[AlignedNames]], base: str | None, resolver: Resolver
) -> Comparisons:
    """Plan the comparison of a merge's output with each of its inputs, and with the merge's base,
    if that is another model. ``sources`` are the compared tensors, by input model.

    Raises:
        ConfigError, CheckpointError: as `compare_models`.
    """
    models = Models(resolver)
    # An output without config.json was merged from plain weights.
    opened = models.get if LocalFolder(Path(output)).has("config.json") else models.weights
    second = opened(parse_reference(output))
    origin = None if base is None else opened(parse_reference(base))
    builder = GraphBuilder()
    found = []
    for name, aligned in sources.items():
        first = opened(parse_reference(name))
        there = [each for each in aligned if each.first in first and each.name in second]
        own = None if origin is first else origin
        found.append(_compare(builder, (first, second), own, there, ((), ())))
    return _with_graph(builder, found)


def _with_graph(builder: GraphBuilder, found: Sequence[Comparison]) -> Comparisons:
    merges = [merge for each in found for merge in each.merges.values()]
    return Comparisons(builder.measuring(merges), tuple(found))


def _compare(
    builder: GraphBuilder,
    models: tuple[Model, Model],
    base: Model | None,
    aligned: Sequence[AlignedNames],
    only: tuple[tuple[str, ...], tuple[str, ...]],
) -> Comparison:
    first, second = models
    pairs = tuple(_pair(each, first, second, base) for each in aligned)
    return Comparison(
        models=models,
        base=base,
        pairs=pairs,
        only=only,
        settings=tuple(_config_differences(first.config, second.config)),
        merges={
            pair.name: _measuring_merge(builder, pair, first, second, base)
            for pair in pairs
            if pair.obstacle is None
        },
    )


def _pair(aligned: AlignedNames, first: Model, second: Model, base: Model | None) -> TensorPair:
    name, own, origin = aligned.name, aligned.first, aligned.base
    shapes = first.shape(own), second.shape(name)
    dtypes = first.dtype(own), second.dtype(name)
    layer, kind = _layer_and_kind(name, second.architecture.main.prefix)
    obstacle = None
    if shapes[0] != shapes[1]:
        obstacle = "shapes differ"
    elif not all(dtype.floating for dtype in dtypes):
        held = next(dtype for dtype in dtypes if not dtype.floating)
        obstacle = f"it holds {held.holds}"
    elif 0 in shapes[0]:
        obstacle = "it has no elements"
    if base is None or origin is None or not _is_comparable(base, origin, shapes[0]):
        origin = None
    return TensorPair(
        name, own, layer, kind, shapes, (dtypes[0].name, dtypes[1].name), obstacle, origin
    )


def _is_comparable(model: Model, name: str, shape: tuple[int, ...]) -> bool:
    return name in model and model.shape(name) == shape and model.dtype(name).floating


def _layer_and_kind(name: str, prefix: str) -> tuple[int | None, str]:
    if prefix and name.startswith(prefix):
        number, dot, rest = name[len(prefix) :].partition(".")
        if number.isdigit():
            return int(number), rest if dot else name
    return None, name


def _measuring_merge(
    builder: GraphBuilder, pair: TensorPair, first: Model, second: Model, base: Model | None
) -> Merge:
    inputs: list[Load | Merge] = [first.node(builder, pair.first), second.node(builder, pair.name)]
    if base is not None and pair.base is not None:
        inputs.append(base.node(builder, pair.base))
    return builder.merge(inputs, Compare(len(inputs) == 3), pair.name)


def _config_differences(
    one: Mapping[str, Any], other: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Older and newer forms of rotary settings are the same; so are a value that is not written and
    the same value as the default of the class, where that is known."""
    first, second = with_plain_rotary(one), with_plain_rotary(other)
    for key in dict.fromkeys([*first, *second]):
        if key in _IGNORED_KEYS:
            continue
        here, there = first.get(key), second.get(key)
        if isinstance(here, Mapping) and isinstance(there, Mapping):
            yield from _config_differences(here, there, f"{path}{key}.")
        elif here != there and _written(one, key, here) != _written(other, key, there):
            yield f"{path}{key}", here, there


def _written(config: Mapping[str, Any], key: str, value: Any) -> Any:
    """A value, or the default of its class if there is none."""
    kind = config.get("model_type")
    defaults = class_defaults(kind) if isinstance(kind, str) else None
    return (defaults or {}).get(key) if value is None else value


def _nothing_in_common(first: Model, second: Model, pattern: str | None) -> CheckpointError:
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
