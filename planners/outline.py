"""The outline of what one document makes, for people: plain records, the same of every planner."""

from __future__ import annotations

from mergeloom.engine.base.records import dataclass

Layers = tuple[int, int]
"""Layers ``[start, stop)``."""


@dataclass(frozen=True)
class OutlineSource:
    """A model that gives layers to a slice of the output, or all of itself."""

    model: str
    layers: Layers | None
    """Nothing where a model is not taken by layers."""
    base: bool = False


@dataclass(frozen=True)
class OutlineSlice:
    """What of the output is made in one way: successive layers, or all of a part."""

    layers: Layers | None
    """Nothing where the output has no layers."""
    how: str
    """``copied``, ``scaled`` (a copy times a number), ``partly scaled`` or ``merged``."""
    detail: str
    """What is scaled by which factor; empty otherwise."""
    sources: tuple[OutlineSource, ...]


@dataclass(frozen=True)
class OutlinePart:
    """One stack of layers of the output, or another part of it, and what it is made of."""

    name: str
    """``default`` for the only one."""
    layers: int
    """0 where it has none."""
    slices: tuple[OutlineSlice, ...]


@dataclass(frozen=True)
class Outline:
    """One document of the configuration: the last makes the output, earlier ones its inputs."""

    name: str | None
    method: str
    dtype: str | None
    """The type that is written, where the configuration names one."""
    parts: tuple[OutlinePart, ...]
    notes: tuple[str, ...] = ()
    """What was understood of the models, such as where the weights around the layers come from."""

    @property
    def layers(self) -> int:
        """Number of layers of the main part."""
        return self.parts[0].layers if self.parts else 0
