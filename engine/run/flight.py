"""A tile in flight on a device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mergeloom.engine.run.device import Mark
from mergeloom.engine.run.state import TileRun


@dataclass(slots=True)
class Flight:
    """A tile whose work is queued, and the results to check when it is done."""

    task: TileRun
    chunk: int
    arrived: Mark | None = None
    doubtful: list[Any] = field(default_factory=list)
    accumulator: Any = None
