"""A tile in flight on a device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mergeloom.engine.run.device import Mark
from mergeloom.engine.run.state import TileRun


@dataclass(slots=True)
class TileInFlight:
    """A tile whose work is queued, and the results to check when it is done.

    ``chunk`` is the number of grains processed at once; ``arrived`` is reached when all outputs are
    in main memory. ``nonfinite_flags`` has a value for each grain: nonzero if its outputs may not
    be finite. ``accumulator`` is that of the statistic, if the pass computes one.
    """

    task: TileRun
    chunk: int
    arrived: Mark | None = None
    nonfinite_flags: list[Any] = field(default_factory=list)
    accumulator: Any = None
