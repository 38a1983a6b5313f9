"""Checks that the output's configuration describes all tensors that are written.

This is the final check of a plan, whatever planned it: names and shapes of the output are compared
with those of the model whose configuration it gets, the donor. A layer of the output must have the
tensors of a layer of its kind in the donor, and the configuration must state a changed depth.

The kind of a layer is given by

    lists       with one entry per layer, if they distinguish the donor's kinds; the output's lists
                then say which kind each of its layers must have
    rules       of the configuration that are known, each for one property of layers
    positions   otherwise: layer numbers, counted from the first layer (``first_k_dense_replace``,
                periods), from the last, or from both
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import field
from functools import partial
from typing import Any

from mergeloom.engine.base.errors import CheckpointError, Finding
from mergeloom.engine.base.records import dataclass

_ONE_SIZE = "take layers from models of one size"

Shape = tuple[int, ...]
Layer = Mapping[str, Shape]
"""The shapes of a layer's tensors by suffix, the part of the name after the layer number."""

Signature = frozenset[tuple[str, Shape]]

Column = tuple[Sequence[Hashable], Sequence[Hashable]]
"""A property of layers: the entries for the donor's layers, and for the output's."""

Origin = Callable[[str, int, str | None], str]
"""Returns a text for the source of an output layer, given its tower, number and a tensor in it."""

COMPUTED = re.compile(r"(inv_freq|position_ids|masked_bias|relative_position_index)$")
"""Buffers that model classes compute, and that only some checkpoints store."""


_NUMBER_LIST = re.compile(r"\d+(,\d+)*")
"""Layer numbers as a string (``moe_layers_enum``)."""


@dataclass(frozen=True, slots=True)
class ModelTensors:
    """The tensors of a model: the layers of each tower by prefix, and all others by name."""

    towers: Mapping[str, Sequence[Layer]]
    around: Mapping[str, Shape]


@dataclass(frozen=True, slots=True)
class DescribedModel:
    """A model as described by its configuration and tensors.

    ``kinds`` has, by tower prefix and property, the kind of each layer given by rules of the
    configuration.
    """

    name: str
    config: Mapping[str, Any]
    tensors: ModelTensors
    kinds: Mapping[str, Mapping[str, Sequence[Any]]] = field(default_factory=dict)


@dataclass(slots=True)
class ConfigCheck:
    """Reasons why an output cannot be loaded with its configuration, and warnings.

    ``overridable`` are refusals that the user may override: layers of another architecture.
    """

    refusals: list[Finding] = field(default_factory=list)
    overridable: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    """Weights outside the layers that the donor has and the output lacks."""

    def refuse(self, cause: str, remedy: str) -> None:
        """Add a refusal."""
        self.refusals.append(Finding(cause, None, remedy, CheckpointError.kind))


def sort_by_tower(shapes: Mapping[str, Shape], depths: Mapping[str, int]) -> ModelTensors:
    """Sort tensors into towers; ``depths`` has the number of layers by tower prefix.

    Layers numbered from a tower's depth on belong to no stack and are left out.
    """
    towers: dict[str, list[dict[str, Shape]]] = {
        prefix: [{} for _ in range(depth)] for prefix, depth in depths.items()
    }
    layers = {
        prefix: {str(number): layer for number, layer in enumerate(stack)}
        for prefix, stack in towers.items()
    }
    longest = sorted(filter(None, towers), key=len, reverse=True)
    around = {}
    for name, shape in shapes.items():
        for prefix in longest:
            if name.startswith(prefix):
                break
        else:
            around[name] = shape
            continue
        number, dot, rest = name[len(prefix) :].partition(".")
        layer = layers[prefix].get(number)
        if layer is not None:
            layer[dot + rest] = shape
        elif not number.isdigit():
            around[name] = shape
        elif int(number) < len(towers[prefix]):  # written with zeros in front
            towers[prefix][int(number)][dot + rest] = shape
    return ModelTensors(towers, around)


def check_config(
    donor: DescribedModel,
    output: DescribedModel,
    origin: Origin,
    vocabulary: frozenset[str] = frozenset(),
) -> ConfigCheck:
    """Compare the output with the ``donor``, which most of its configuration is taken from.

    ``vocabulary`` are the names of embedding and head, which are checked elsewhere.
    """
    problems = ConfigCheck()
    for prefix, layers in output.tensors.towers.items():
        own = donor.tensors.towers.get(prefix, ())
        if not own or not layers:
            continue
        if len(own) != len(layers) and not _states_depth(donor, output, len(own), len(layers)):
            problems.refuse(
                f"the output has {len(layers)} layers '{prefix}N', which its config.json cannot "
                f"state, because no key of '{donor.name}' counts its {len(own)} layers",
                "keep all layers",
            )
            continue
        _check_layers(donor, output, prefix, origin, problems)
    _check_outside_layers(donor, output, vocabulary, problems)
    return problems


def _states_depth(donor: DescribedModel, output: DescribedModel, old: int, new: int) -> bool:
    """Whether a value that is the donor's depth in its configuration is the output's depth in the
    new one."""
    before, after = dict(_scalar_values(donor.config)), dict(_scalar_values(output.config))
    for path, value in after.items():
        was = before.get(path)
        if value == was:
            continue
        if type(value) is int and value == new:
            return True
        lists = isinstance(value, list) or (isinstance(value, str) and isinstance(was, str))
        if lists and len(value) == new and (was is None or len(was) == old):
            return True
    return False


def _scalar_values(
    config: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[Any, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _scalar_values(value, (*path, key))
        else:
            yield (*path, key), value


def _check_layers(
    donor: DescribedModel,
    output: DescribedModel,
    prefix: str,
    origin: Origin,
    problems: ConfigCheck,
) -> None:
    own = found = _signatures(donor.tensors.towers[prefix])
    if output.tensors is not donor.tensors:
        found = _signatures(output.tensors.towers[prefix])
    rule_columns = _rule_columns(donor.kinds.get(prefix, {}), output.kinds.get(prefix, {}))
    expected = _expected_signatures(own, found, donor.config, output.config, rule_columns)
    for number, (needed, layer) in enumerate(zip(expected, found, strict=True)):
        if needed is not None and needed != layer:
            _report_layer(donor, number, partial(origin, prefix, number), needed, layer, problems)
            return


def _signatures(layers: Sequence[Layer]) -> list[Signature]:
    """Tensors and shapes of each layer, without buffers computed by classes."""
    known: list[tuple[Layer, Signature]] = []  # most layers are equal, and share a signature
    signatures = []
    for layer in layers:
        signature = next((found for other, found in known if other == layer), None)
        if signature is None:
            items = layer.items()
            signature = frozenset(item for item in items if not is_computed_buffer(*item))
            known.append((layer, signature))
        signatures.append(signature)
    return signatures


def is_computed_buffer(name: str, shape: Shape) -> bool:
    """Whether a tensor is a buffer computed by model classes, like a causal mask."""
    mask = len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3]
    return COMPUTED.search(name) is not None or (mask and name.endswith(".bias"))


def _expected_signatures(
    own: Sequence[Signature],
    found: Sequence[Signature],
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    rule_columns: Sequence[Column],
) -> Sequence[Signature | None]:
    """The required signature of each output layer; ``None`` where it is unknown."""
    if len(set(own)) == 1:
        return [own[0]] * len(found)
    columns = [*_list_columns(len(own), len(found), before, after), *rule_columns]
    by_lists = list(_signatures_by_entries(own, columns))
    if not by_lists and _is_rewritten(own, found, before, after):
        return [None] * len(found)
    candidates = by_lists or list(_signatures_by_position(own, len(found)))
    return next((c for c in candidates if _is_consistent(c, found)), candidates[0])


def _is_consistent(expected: Sequence[Signature | None], found: Sequence[Signature]) -> bool:
    return all(n is None or n == layer for n, layer in zip(expected, found, strict=True))


def _list_columns(
    old: int, new: int, before: Mapping[str, Any], after: Mapping[str, Any]
) -> Iterator[Column]:
    """Lists with one entry per layer that both donor and output have."""
    lists = dict(_entries(after, new))
    return ((entries, lists[path]) for path, entries in _entries(before, old) if path in lists)


def _rule_columns(
    before: Mapping[str, Sequence[Any]], after: Mapping[str, Sequence[Any]]
) -> list[Column]:
    """Kinds by rules that both donor and output have."""
    return [
        ([repr(kind) for kind in kinds], [repr(kind) for kind in after[name]])
        for name, kinds in before.items()
        if name in after
    ]


def _signatures_by_entries(
    own: Sequence[Signature], columns: Sequence[Column]
) -> Iterator[list[Signature | None]]:
    """Required signatures by the output's entries, for each column that distinguishes the donor's
    kinds, and for all columns together."""
    together = [tuple(list(zip(*(column[i] for column in columns), strict=True)) for i in (0, 1))]
    for old, new in (*columns, *(together if len(columns) > 1 else ())):
        kinds: dict[Hashable, Signature] = {}
        if all(kinds.setdefault(e, s) == s for e, s in zip(old, own, strict=True)):
            yield [kinds.get(entry) for entry in new]


def _is_rewritten(
    own: Sequence[Signature],
    found: Sequence[Signature],
    before: Mapping[str, Any],
    after: Mapping[str, Any],
) -> bool:
    """Whether the output's configuration has its own rule: a list that the donor lacks and that
    distinguishes the output's kinds, or a changed number that is not a count."""
    known = dict(_entries(before, len(own)))
    for path, entries in _entries(after, len(found)):
        kinds: dict[Hashable, Signature] = {}
        if path not in known and all(
            kinds.setdefault(e, s) == s for e, s in zip(entries, found, strict=True)
        ):
            return True
    old, new = dict(_scalar_values(before)), dict(_scalar_values(after))
    changed = ((old.get(path), value) for path, value in new.items() if old.get(path) != value)
    return any(
        type(value) is int and type(was) is int and (was, value) != (len(own), len(found))
        for was, value in changed
    )


def _entries(config: Mapping[str, Any], depth: int) -> Iterator[tuple[Any, list[Hashable]]]:
    """Lists with one entry per layer, and lists of layer numbers as one boolean per layer."""
    for path, value in _scalar_values(config):
        if isinstance(value, list | str) and len(value) == depth:
            yield path, [json.dumps(entry, sort_keys=True) for entry in value]
        text = isinstance(value, str) and _NUMBER_LIST.fullmatch(value)
        named = [int(number) for number in value.split(",")] if text else value
        if isinstance(named, list) and named and _are_layer_numbers(named, depth):
            yield (*path, "in"), [number in named for number in range(depth)]


def _are_layer_numbers(value: Sequence[object], depth: int) -> bool:
    return len(set(map(repr, value))) == len(value) and all(
        type(item) is int and 0 <= item < depth for item in value
    )


def _signatures_by_position(
    own: Sequence[Signature], depth: int
) -> Iterator[list[Signature | None]]:
    """Required signatures by rules on layer numbers that are consistent with the donor's layers.

    Layers of one kind have one size. If sizes differ (a pyramid of convolutions), nothing is known
    about layers beyond the donor's, unless its own repeat.
    """
    last, least = own[-1], min(depth, len(own))
    period = next(
        p for p in range(1, len(own) + 1) if all(own[i] == own[i - p] for i in range(p, len(own)))
    )
    if period < len(own):
        yield [own[i] if i < len(own) else own[i % period] for i in range(depth)]
    if _sizes_differ(own):
        yield [own[i] if i < len(own) else frozenset() for i in range(depth)]
        return
    yield [own[i] if i < len(own) else last for i in range(depth)]
    yield [own[max(0, len(own) - depth + i)] for i in range(depth)]
    middle = own[len(own) // 2]
    head = next((i for i, layer in enumerate(own) if layer == middle), 0)
    tail = next((i for i, layer in enumerate(reversed(own)) if layer == middle), 0)
    if head + tail <= least:
        inner = [middle] * (depth - head - tail)
        yield [*own[:head], *inner, *own[len(own) - tail :]]


def _sizes_differ(layers: Sequence[Signature]) -> bool:
    """Whether a tensor has several shapes in ``layers``."""
    shapes = frozenset[tuple[str, Shape]]().union(*layers)
    return len(shapes) > len({suffix for suffix, _ in shapes})


def _report_layer(
    donor: DescribedModel,
    number: int,
    origin: Callable[[str | None], str],
    needed: Signature,
    layer: Signature,
    problems: ConfigCheck,
) -> None:
    what = f"layer {number} of the output"
    shapes, wanted = dict(layer), dict(needed)
    for suffix in sorted(shapes.keys() & wanted.keys()):
        if shapes[suffix] != wanted[suffix]:
            problems.refuse(
                f"{what}, from {origin(suffix)}, has '{suffix.lstrip('.')}' of "
                f"{_shape_text(shapes[suffix])}, where a layer of '{donor.name}', whose "
                f"config.json the output gets, has {_shape_text(wanted[suffix])}",
                _ONE_SIZE,
            )
            return
    parts = []
    if not shapes.keys() - wanted.keys():
        what += f", from {origin(None)},"
    if more := sorted(shapes.keys() - wanted.keys()):
        parts.append(f"has {listed_names(more)} from {origin(more[0])}")
    if lacks := sorted(wanted.keys() - shapes.keys()):
        parts.append(f"lacks {listed_names(lacks)}")
    problems.overridable.append(
        f"{what} {' and '.join(parts)}, unlike layer {number} of a model with the config.json "
        f"that the output gets from '{donor.name}'"
    )


def _check_outside_layers(
    donor: DescribedModel,
    output: DescribedModel,
    vocabulary: frozenset[str],
    problems: ConfigCheck,
) -> None:
    ours, theirs = output.tensors.around, donor.tensors.around
    rows = {theirs[name][0] for name in vocabulary if name in theirs}
    before, after = donor.tensors.towers, output.tensors.towers
    depths = {(len(before[p]), len(after[p])) for p in before.keys() & after.keys()}
    unknown = []
    for name, shape in ours.items():
        other = theirs.get(name)
        if other is None:
            if name not in vocabulary and not is_computed_buffer(name, shape):
                unknown.append(name)
        elif not _shapes_agree(shape, other, rows, depths):
            problems.refuse(
                f"'{name}' has {_shape_text(shape)}, in '{donor.name}', whose config.json the "
                f"output gets, {_shape_text(other)}",
                _ONE_SIZE,
            )
            return
    if unknown:
        problems.warnings.append(
            f"{listed_names(unknown)}: not in '{donor.name}', whose config.json the output gets: "
            "its class may ignore it"
        )
    problems.lost = [
        name
        for name, shape in theirs.items()
        if name not in ours and name not in vocabulary and not is_computed_buffer(name, shape)
    ]


def _shapes_agree(shape: Shape, other: Shape, rows: set[int], depths: set[tuple[int, int]]) -> bool:
    """Whether shapes are equal except for vocabulary size and per-layer parts."""

    def follows(found: int, was: int) -> bool:
        return any(was % old == 0 and found * old == was * new for old, new in depths if old)

    pairs = zip(shape, other, strict=False)
    return len(shape) == len(other) and all(
        found == was or was in rows or follows(found, was) for found, was in pairs
    )


def _shape_text(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "one number"


def listed_names(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    first = f"'{names[0].lstrip('.')}'"
    return first if len(names) == 1 else f"{first} and {len(names) - 1} more"
