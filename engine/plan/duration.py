"""Estimated duration of a schedule, from the rates of the machine."""

from __future__ import annotations

from collections import Counter

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.plan.assignment import Estimate
from mergeloom.engine.plan.schedule import Schedule

_START_SECONDS = 0.5
"""Fixed time for starting threads, opening files and the final sync, in seconds."""


@dataclass(frozen=True, slots=True)
class Duration:
    """Estimated seconds of a run, and the parts of storage and processors."""

    whole: float
    storage: float
    compute: float


def estimated_seconds(schedule: Schedule) -> Duration:
    """The larger of the times of storage and processors, which work in parallel."""
    rates = schedule.rates
    storage = (schedule.read_bytes + schedule.write_bytes) / rates.storage
    cpu = 0.0
    devices: dict[int, float] = {}
    kinds = Counter((placed.work.kind, placed.assignment.device) for placed in schedule.merges)
    for (kind, number), count in kinds.items():
        if not kind.merge_shape.computes:
            continue
        estimate = Estimate.of(kind)
        if number is None:
            cpu += count * estimate.on_core(rates) / schedule.workers
        else:
            device = rates.of(schedule.devices[number])
            devices[number] = devices.get(number, 0.0) + count * estimate.on(device)
    compute = max([cpu, *devices.values()])
    return Duration(_START_SECONDS + max(storage, compute), storage, compute)
