"""How long a schedule takes, from the rates that are known of the machine."""

from __future__ import annotations

from collections import Counter

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.plan.assignment import Estimate
from mergeloom.engine.plan.schedule import Schedule

_START_SECONDS = 0.5
"""Starting threads, opening files and making the last of them durable."""


@dataclass(frozen=True, slots=True)
class Duration:
    """Seconds that a run is expected to take, and what storage and processors need of them."""

    whole: float
    storage: float
    compute: float


def estimated_seconds(schedule: Schedule) -> Duration:
    """Storage and processors work at the same time, so the slower of them decides."""
    rates = schedule.rates
    storage = (schedule.read_bytes + schedule.write_bytes) / rates.storage
    cpu = 0.0
    devices: dict[int, float] = {}
    kinds = Counter((placed.work.kind, placed.seat.device) for placed in schedule.placements)
    for (kind, number), count in kinds.items():
        if not kind.profile.computes:
            continue
        estimate = Estimate.of(kind)
        if number is None:
            cpu += count * estimate.on_core(rates) / schedule.workers
        else:
            device = rates.of(schedule.devices[number])
            devices[number] = devices.get(number, 0.0) + count * estimate.on(device)
    compute = max([cpu, *devices.values()])
    return Duration(_START_SECONDS + max(storage, compute), storage, compute)
