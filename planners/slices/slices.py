"""The input tensors of each output tensor, by slices and layers.

slices:  A[0,4]         output layer   0 1 2 3 4 5     one entry of `slices` after the other
         B[2,4]         A's layer      0 1 2 3         is stacked; the sources within one
                        B's layer              2 3     entry are merged with each other
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial

from mergeloom.engine.base.errors import Place
from mergeloom.engine.base.records import dataclass, record
from mergeloom.planners.config.config import OutputSlice, SourceEntry
from mergeloom.planners.models.architecture import Tower
from mergeloom.planners.models.model import Model, StoredModel


@dataclass(frozen=True, slots=True)
class LayerSource:
    """Layers ``[start, stop)`` of one tower of ``model``, one of the sources of a slice.

    ``source`` is the entry in the configuration; ``None`` for an automatically added base model.
    """

    model: Model
    tower: Tower
    start: int
    stop: int
    source: SourceEntry | None

    def root(self, step: int) -> str:
        """What names of tensors begin with in a layer, ``step`` layers after the first."""
        return self.tower.layer_name(self.start + step, "")

    def suffixes(self, step: int) -> Sequence[str]:
        """The suffixes of the tensors of that layer."""
        return self.tower.suffixes[self.start + step]


@dataclass(frozen=True, slots=True)
class Slice:
    """One output slice: layers ``[first, first + length)`` of the output.

    ``base`` is the position of the base model among the sources.
    """

    first: int
    length: int
    sources: tuple[LayerSource, ...]
    base: int | None
    entry: OutputSlice


@record(frozen=True, slots=True)
class TensorSources:
    """Inputs of one output tensor: ``positions`` of the sources that have it in ``slice``, and its
    ``names`` there.

    ``t`` is the position in the slice's gradients, from 0 to 1; ``layer`` is the output layer.
    """

    name: str
    slice: Slice
    layer: int | None
    t: float
    positions: tuple[int, ...]
    names: tuple[str, ...]

    @staticmethod
    def outside(name: str, part: Slice, inputs: Sequence[tuple[int, str]]) -> TensorSources:
        """A tensor outside the layers; ``inputs`` are pairs of position and name."""
        return TensorSources(name, part, None, 0.0, *_positions_and_names(inputs))


@record(frozen=True, slots=True)
class LayerTensors:
    """The tensors of output layer ``layer``, ``step`` layers after the first of ``slice``.

    Their names begin with ``root`` in the output, and with one of ``roots`` in each source. Those
    whose suffixes are in ``positional`` are not among them. Layers of a slice of the same ``kind``
    have the same suffixes, dtypes and shapes in each source, and differ in ``t`` and names.
    """

    slice: Slice
    layer: int
    step: int
    t: float
    root: str
    roots: tuple[str, ...]
    positional: Collection[str]
    kind: int

    def __iter__(self) -> Iterator[TensorSources]:
        """The inputs of each tensor."""
        stacks = [source.suffixes(self.step) for source in self.slice.sources]
        for suffix, positions in _positions_by_suffix(stacks).items():
            if suffix not in self.positional:
                name, names = self.names(suffix, positions)
                yield TensorSources(name, self.slice, self.layer, self.t, positions, names)

    def names(self, suffix: str, positions: Sequence[int]) -> tuple[str, tuple[str, ...]]:
        """The names of a tensor in the output, and in the sources at ``positions``."""
        roots = self.roots
        name = sys.intern(self.root + suffix)  # the string that the headers' tensors are under
        return name, tuple([sys.intern(roots[position] + suffix) for position in positions])


def resolve_range(source: SourceEntry, tower: Tower, model: str) -> tuple[int, int]:
    """The layer range of a source.

    Raises:
        ConfigError: the range is reversed or beyond the model.
    """
    if source.layer_range is None:
        return 0, tower.layers
    start, stop = source.layer_range
    if not tower.layers and (start, stop) != (0, 0):
        raise source.place.error(
            f"layer_range [{start}, {stop}]: '{model}' has no stack of layers, or one layer that "
            "is used several times",
            "merge whole models: 'models' in place of 'slices'",
        )
    if start < 0 or stop > tower.layers or start > stop:
        reason = "is reversed" if 0 <= stop < start else "is outside the model"
        raise source.place.error(
            f"layer_range [{start}, {stop}] {reason}: '{model}' has {tower.layers} layers",
            f"[0, {tower.layers}] is all of them, the end excluded",
        )
    return start, stop


def check_lengths(sources: Sequence[LayerSource], place: Place) -> int:
    """The common number of layers of a slice's sources.

    Raises:
        ConfigError: they differ.
    """
    lengths = [source.stop - source.start for source in sources]
    for source, length in zip(sources, lengths, strict=True):
        if length != lengths[0]:
            first = sources[0]
            raise place.error(
                "the sources of one slice are merged layer by layer and need equally many layers: "
                f"'{first.model.name}' gives {lengths[0]} ([{first.start}, {first.stop}]), "
                f"'{source.model.name}' {length} ([{source.start}, {source.stop}])",
                "to stack them, give each an entry of its own under 'slices'",
            )
    return lengths[0]


def tensor_sources(tower: Tower, slices: Sequence[Slice]) -> Iterator[TensorSources | LayerTensors]:
    """Every tensor of the output's tower in order: before the layers, the layers, after them.

    Tensors that belong to the first or last position, and layers beyond the last, come from the
    first or last slice, like other weights outside the layers.
    """
    depth = sum(part.length for part in slices)
    towers = [source.tower for part in slices for source in part.sources]
    first = frozenset(suffix for tower in towers for suffix in tower.first)
    last = frozenset(suffix for tower in towers for suffix in tower.last)
    yield from _outside_layers(tower, slices, "before")
    if depth:
        yield from _at_position(tower, slices[0], 0, lambda source: 0, first)
    for part in slices:
        kinds = _LayerKinds()
        for step in range(part.length):
            t = step / (part.length - 1) if part.length > 1 else 1.0
            layer = part.first + step
            root = tower.layer_name(layer, "")
            roots = tuple([source.root(step) for source in part.sources])
            kind = kinds.number(part, step)
            yield LayerTensors(part, layer, step, t, root, roots, first | last, kind)
    if depth:
        yield from _at_position(
            tower, slices[-1], depth - 1, lambda source: source.layers - 1, last
        )
    for number in range(max(len(source.tower.beyond) for source in slices[-1].sources)):
        yield from _at_position(
            tower, slices[-1], depth + number, partial(_layer_beyond, number), None
        )
    yield from _outside_layers(tower, slices[::-1], "after")


def _positions_and_names(
    inputs: Sequence[tuple[int, str]],
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    return tuple(position for position, _ in inputs), tuple(name for _, name in inputs)


def _layer_beyond(number: int, tower: Tower) -> int:
    return tower.layers + number


def _outside_layers(tower: Tower, slices: Sequence[Slice], side: str) -> Iterator[TensorSources]:
    """Weights on one side of the layers, ``before`` or ``after``: those of the nearest slice, and
    what the output's tower lacks there from the next ones."""
    missing = set(getattr(tower, side))
    for part in slices:
        names: dict[str, list[tuple[int, str]]] = {}
        for position, source in enumerate(part.sources):
            for name in getattr(source.tower, side):
                if part is slices[0] or name in missing:
                    names.setdefault(name, []).append((position, name))
        missing -= names.keys()
        for name, inputs in names.items():
            yield TensorSources.outside(name, part, inputs)


def _at_position(
    tower: Tower,
    part: Slice,
    layer: int,
    origin: Callable[[Tower], int],
    wanted: Collection[str] | None,
) -> Iterator[TensorSources]:
    """Tensors of output layer ``layer`` from layer ``origin(tower)`` of each source.

    Only the ``wanted`` suffixes; ``None`` for all.
    """
    suffixes: dict[str, list[tuple[int, str]]] = {}
    for position, source in enumerate(part.sources):
        number = origin(source.tower)
        for suffix in source.tower.layer_suffixes(number):
            if wanted is None or suffix in wanted:
                name = source.tower.layer_name(number, suffix)
                suffixes.setdefault(suffix, []).append((position, name))
    for suffix, inputs in suffixes.items():
        yield TensorSources(
            tower.layer_name(layer, suffix), part, layer, 0.0, *_positions_and_names(inputs)
        )


class _LayerKinds:
    """Numbers the kinds of layers of a slice. Those of one kind have the same suffixes, dtypes and
    shapes in each source."""

    def __init__(self) -> None:
        self._stored: list[tuple[Sequence[str], Sequence[object]]] = []
        """Suffixes, dtypes and shapes of stored layers that differ."""
        self._kinds: dict[Sequence[int], int] = {}

    def number(self, part: Slice, step: int) -> int:
        """The number of the kind of a layer, ``step`` layers after the first of the slice."""
        numbers: list[int] = []
        known: dict[tuple[int, str], int] = {}  # models with equal headers have equal layers
        for source in part.sources:
            model, root = source.model, source.root(step)
            described = model.described if isinstance(model, StoredModel) else model
            key = id(described), root
            if key not in known:
                known[key] = self._stored_number(model, root, source.suffixes(step))
            numbers.append(known[key])
        return self._kinds.setdefault(tuple(numbers), len(self._kinds))

    def _stored_number(self, model: Model, root: str, suffixes: Sequence[str]) -> int:
        names = [root + suffix for suffix in suffixes]
        if isinstance(model, StoredModel):
            entries = map(model.described.__getitem__, names)
            described = [(entry.dtype, entry.shape) for entry in entries]
        else:
            described = [(model.dtype(name), model.shape(name)) for name in names]
        stored = suffixes, described
        for number, known in enumerate(self._stored):
            if known == stored:
                return number
        self._stored.append(stored)
        return len(self._stored) - 1


def _positions_by_suffix(layers: Sequence[Sequence[str]]) -> Mapping[str, tuple[int, ...]]:
    """For each suffix, the indices of the layers that have it."""
    if all(suffixes == layers[0] for suffixes in layers):
        return dict.fromkeys(layers[0], tuple(range(len(layers))))
    having: dict[str, list[int]] = {}
    for position, suffixes in enumerate(layers):
        for suffix in suffixes:
            having.setdefault(suffix, []).append(position)
    return {suffix: tuple(positions) for suffix, positions in having.items()}
