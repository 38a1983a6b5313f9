"""Which input tensors make which output tensor: slices, layer by layer.

slices:  A[0,4]         output layer   0 1 2 3 4 5     one entry of `slices` after the other
         B[2,4]         A's layer      0 1 2 3         is stacked; the sources within one
                        B's layer              2 3     entry are merged with each other
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mergeloom.engine.base.errors import Place
from mergeloom.planners.config.config import OutputSlice, Source
from mergeloom.planners.models.architecture import Tower
from mergeloom.planners.models.model import Model


@dataclass(frozen=True, slots=True)
class LayerSource:
    """Layers ``[start, stop)`` of one tower of ``model``, one of the sources of a slice.

    ``source`` is the configuration's entry; ``None`` for a base model that is added by itself.
    """

    model: Model
    tower: Tower
    start: int
    stop: int
    source: Source | None


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


@dataclass(frozen=True, slots=True)
class Recipe:
    """Inputs of one output tensor: (position of the source in its slice, name there).

    ``t`` is the tensor's place in the slice's gradients, from 0 to 1; ``layer`` the output layer.
    """

    name: str
    slice: Slice
    layer: int | None
    t: float
    inputs: tuple[tuple[int, str], ...]


def resolve_range(source: Source, tower: Tower, model: str) -> tuple[int, int]:
    """The layers that a source takes.

    Raises:
        ConfigError: the range is reversed or beyond the model.
    """
    if source.layer_range is None:
        return 0, tower.layers
    start, stop = source.layer_range
    if start < 0 or stop > tower.layers or start > stop:
        reason = "is reversed" if 0 <= stop < start else "is outside the model"
        raise source.place.error(
            f"layer_range [{start}, {stop}] {reason}: '{model}' has {tower.layers} layers",
            f"[0, {tower.layers}] at most",
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
                "to stack them, write two entries under 'slices'",
            )
    return lengths[0]


def recipes(tower: Tower, slices: Sequence[Slice]) -> Iterator[Recipe]:
    """Every tensor of the output's tower in order: before the layers, the layers, after them."""
    yield from _around(slices[0], "before")
    for part in slices:
        for step in range(part.length):
            t = step / (part.length - 1) if part.length > 1 else 1.0
            yield from _layer(tower, part, step, t)
    yield from _around(slices[-1], "after")


def _around(part: Slice, side: str) -> Iterator[Recipe]:
    names: dict[str, list[tuple[int, str]]] = {}
    for position, source in enumerate(part.sources):
        for name in getattr(source.tower, side):
            names.setdefault(name, []).append((position, name))
    for name, inputs in names.items():
        yield Recipe(name, part, None, 0.0, tuple(inputs))


def _layer(tower: Tower, part: Slice, step: int, t: float) -> Iterator[Recipe]:
    suffixes: dict[str, list[tuple[int, str]]] = {}
    for position, source in enumerate(part.sources):
        layer = source.start + step
        for suffix in source.tower.suffixes[layer]:
            name = source.tower.layer_name(layer, suffix)
            suffixes.setdefault(suffix, []).append((position, name))
    layer = part.first + step
    for suffix, inputs in suffixes.items():
        yield Recipe(tower.layer_name(layer, suffix), part, layer, t, tuple(inputs))
