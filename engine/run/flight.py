"""A tile on its way through a device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mergeloom.engine.run.device import Mark
from mergeloom.engine.run.state import TileRun


@dataclass(frozen=True, slots=True)
class TimedChunk:
    """When ``nbytes`` of one chunk began and ended to arrive, and when its arithmetic did."""

    nbytes: int
    arriving: tuple[Mark, Mark]
    computing: tuple[Mark, Mark]


@dataclass(slots=True)
class Flight:
    """A tile for which all orders are given, and what is to be looked at when it has arrived."""

    task: TileRun
    chunk: int
    arrived: Mark | None = None
    doubtful: list[Any] = field(default_factory=list)
    accumulator: Any = None
    timed: list[TimedChunk] = field(default_factory=list)
