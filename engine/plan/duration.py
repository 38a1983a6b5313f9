"""Estimated duration of a schedule."""

from __future__ import annotations

from collections import Counter

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.plan.estimate import STORAGE_RATE, Estimate
from mergeloom.engine.plan.schedule import Schedule

_START_SECONDS = 0.5
"""Fixed time for starting threads, opening files and the final sync, in seconds."""


@dataclass(frozen=True, slots=True)
class Duration:
    """Estimated seconds of a run, and the parts of storage and of the CPU's arithmetic."""

    total: float
    storage: float
    compute: float


def estimated_seconds(schedule: Schedule) -> Duration:
    """The larger of the times of storage and CPU, which work in parallel.

    Devices are assumed to keep up with storage, and to take their time to start.
    """
    storage = (schedule.read_bytes + schedule.write_bytes) / STORAGE_RATE
    kinds = Counter(each.work.kind for each in schedule.merges if each.assignment.device is None)
    compute = sum(n * Estimate.of(kind).core_seconds for kind, n in kinds.items())
    compute /= schedule.workers
    starts = [schedule.devices[number].start_seconds for number in schedule.used_devices]
    return Duration(
        _START_SECONDS + max(storage, compute) + max(starts, default=0), storage, compute
    )
