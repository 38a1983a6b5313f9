"""A tile in flight on a device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mergeloom.engine.run.device import Mark
from mergeloom.engine.run.state import TileRun


@dataclass(frozen=True, slots=True)
class TimedChunk:
    """Start and end of the upload of one chunk of ``nbytes``, and of its arithmetic."""

    nbytes: int
    arriving: tuple[Mark, Mark]
    computing: tuple[Mark, Mark]


@dataclass(slots=True)
class Flight:
    """A tile whose work is queued, and the results to check when it is done."""

    task: TileRun
    chunk: int
    arrived: Mark | None = None
    doubtful: list[Any] = field(default_factory=list)
    accumulator: Any = None
    timed: list[TimedChunk] = field(default_factory=list)
