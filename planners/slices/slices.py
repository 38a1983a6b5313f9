"""The input tensors of each output tensor, by slices and layers.

slices:  A[0,4]         output layer   0 1 2 3 4 5     one entry of `slices` after the other
         B[2,4]         A's layer      0 1 2 3         is stacked; the sources within one
                        B's layer              2 3     entry are merged with each other
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from functools import partial

from mergeloom.engine.base.errors import Place
from mergeloom.engine.base.records import dataclass, record
from mergeloom.planners.config.config import OutputSlice, SourceEntry
from mergeloom.planners.models.architecture import Tower
from mergeloom.planners.models.model import Model


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
    Sources in one slice with the same ``alike`` are those of one tensor in several layers: they
    have the same dtypes and shapes, and differ in layer, ``t`` and names.
    """

    name: str
    slice: Slice
    layer: int | None
    t: float
    positions: tuple[int, ...]
    names: tuple[str, ...]
    alike: Hashable = None

    @staticmethod
    def outside(name: str, part: Slice, inputs: Sequence[tuple[int, str]]) -> TensorSources:
        """A tensor outside the layers; ``inputs`` are pairs of position and name."""
        return TensorSources(name, part, None, 0.0, *_positions_and_names(inputs))


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


def tensor_sources(tower: Tower, slices: Sequence[Slice]) -> Iterator[TensorSources]:
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
        layers = _AlikeLayers()
        for step in range(part.length):
            t = step / (part.length - 1) if part.length > 1 else 1.0
            yield from _layer_tensors(tower, part, step, t, first | last, layers)
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


class _AlikeLayers:
    """Finds the layers of a slice that have the same suffixes, dtypes and shapes in each source."""

    def __init__(self) -> None:
        self._known: list[tuple[Sequence[object], Mapping[str, Hashable]]] = []

    def marks(
        self, part: Slice, stacks: Sequence[Sequence[str]], roots: Sequence[str]
    ) -> Mapping[str, Hashable]:
        """`TensorSources.alike` for each suffix of a layer; ``stacks`` are the suffixes in each
        source, ``roots`` what stands before them."""
        layer: list[object] = []
        for source, suffixes, root in zip(part.sources, stacks, roots, strict=True):
            dtype, shape = source.model.dtype, source.model.shape
            names = [root + suffix for suffix in suffixes]
            layer.append((suffixes, [(dtype(name), shape(name)) for name in names]))
        for known, marks in self._known:
            if known == layer:
                return marks
        number = len(self._known)
        marks = {suffix: (number, suffix) for suffixes in stacks for suffix in suffixes}
        self._known.append((layer, marks))
        return marks


def _layer_tensors(
    tower: Tower,
    part: Slice,
    step: int,
    t: float,
    positional: Collection[str],
    layers: _AlikeLayers,
) -> Iterator[TensorSources]:
    layer = part.first + step
    output = tower.layer_name(layer, "")
    stacks = [source.tower.suffixes[source.start + step] for source in part.sources]
    roots = [source.tower.layer_name(source.start + step, "") for source in part.sources]
    same_names = roots.count(output) == len(roots)
    alike = layers.marks(part, stacks, roots)
    for suffix, positions in _positions_by_suffix(stacks).items():
        if suffix not in positional:
            name = sys.intern(output + suffix)  # the string that the headers' tensors are under
            if same_names:
                names = (name,) * len(positions)
            else:
                names = tuple([sys.intern(roots[position] + suffix) for position in positions])
            yield TensorSources(name, part, layer, t, positions, names, alike[suffix])


def _positions_by_suffix(layers: Sequence[Sequence[str]]) -> Mapping[str, tuple[int, ...]]:
    """For each suffix, the indices of the layers that have it."""
    if all(suffixes == layers[0] for suffixes in layers):
        return dict.fromkeys(layers[0], tuple(range(len(layers))))
    having: dict[str, list[int]] = {}
    for position, suffixes in enumerate(layers):
        for suffix in suffixes:
            having.setdefault(suffix, []).append(position)
    return {suffix: tuple(positions) for suffix, positions in having.items()}
