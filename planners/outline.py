"""The outline of a document's output for reports: plain records that all planners use."""

from __future__ import annotations

from collections.abc import Iterable

from mergeloom.engine.base.records import dataclass

Layers = tuple[int, int]
"""Layers ``[start, stop)``."""


def layer_ranges(layers: Iterable[int]) -> tuple[Layers, ...]:
    """Layer numbers as ranges, in order."""
    ranges: list[Layers] = []
    for layer in sorted(layers):
        if ranges and ranges[-1][1] == layer:
            ranges[-1] = (ranges[-1][0], layer + 1)
        else:
            ranges.append((layer, layer + 1))
    return tuple(ranges)


@dataclass(frozen=True)
class OutlineSource:
    """A source model of a slice, with its layers."""

    model: str
    layers: Layers | None
    """``None`` if the model is not used by layers."""
    base: bool = False


@dataclass(frozen=True)
class OutlineSlice:
    """Consecutive layers of the output, or a whole part, merged in one way."""

    layers: Layers | None
    """``None`` if the output has no layers."""
    how: str
    """``copied``, ``scaled`` (a copy times a factor), ``partly scaled`` or ``merged``."""
    detail: str
    """The scaled tensors with their factors, or empty."""
    sources: tuple[OutlineSource, ...]


@dataclass(frozen=True)
class OutlinePart:
    """One stack of layers, or another part, of the output, with its slices."""

    name: str
    """``default`` if there is only one."""
    layers: int
    """0 if it has none."""
    slices: tuple[OutlineSlice, ...]


@dataclass(frozen=True)
class Outline:
    """One document of the configuration; the last is the output, earlier ones are its inputs."""

    name: str | None
    method: str
    dtype: str | None
    """The output dtype, if the configuration sets one."""
    parts: tuple[OutlinePart, ...]
    notes: tuple[str, ...] = ()
    """How the models were interpreted, such as the origin of weights outside the layers."""

    @property
    def layers(self) -> int:
        """Number of layers of the main part."""
        return self.parts[0].layers if self.parts else 0
