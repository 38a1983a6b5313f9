"""The outcome of a run, and its figures for the manifest and ``--json``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import field
from typing import Any

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.hardware import process as machine
from mergeloom.engine.plan.schedule import Schedule
from mergeloom.engine.run.clone import NO_CLONES, CloneBytes
from mergeloom.engine.run.lanes import Lane
from mergeloom.engine.run.progress import Progress


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run. Byte counts of tensor data and headers are exact.

    ``device_read_bytes`` and ``device_write_bytes`` are storage traffic counted by the kernel, if
    available. ``resumed`` counts the tensors finished by an earlier run. ``errors`` are the
    relative quantisation errors by tensor name, including those of earlier runs.
    """

    schedule: Schedule | None
    wall_seconds: float
    peak_rss_bytes: int
    read_bytes: int
    write_bytes: int
    device_read_bytes: int | None
    device_write_bytes: int | None
    resumed: int
    warnings: tuple[str, ...] = ()
    clones: CloneBytes = NO_CLONES
    errors: Mapping[str, float] = field(default_factory=dict)
    predicted_peak_bytes: int = 0
    """Predicted peak memory of all parts of the run, which may compute finished tensors again to
    compare them."""
    lanes: tuple[Lane, ...] = ()
    """The activity of each thread over time."""

    @property
    def was_finished(self) -> bool:
        """Whether there was nothing left to do."""
        return self.schedule is None


def outcome_of(
    plan: Schedule | None,
    progress: Progress | None,
    began: float,
    counters: tuple[int, int] | None,
    resumed: int,
    warnings: tuple[str, ...],
) -> Outcome:
    """The outcome of a run that began at ``began`` (`time.perf_counter`) with the kernel's I/O
    ``counters``; ``plan`` and ``progress`` are ``None`` if there was nothing to do."""
    now = machine.storage_traffic()
    headers = plan.header_bytes if plan is not None else 0
    return Outcome(
        schedule=plan,
        wall_seconds=time.perf_counter() - began,
        peak_rss_bytes=machine.peak_bytes(),
        read_bytes=progress.read_bytes if progress else 0,
        write_bytes=progress.write_bytes + headers if progress else 0,
        device_read_bytes=now[0] - counters[0] if now and counters else None,
        device_write_bytes=now[1] - counters[1] if now and counters else None,
        resumed=resumed,
        warnings=warnings,
    )


def measured(outcome: Outcome) -> dict[str, Any]:
    """The figures of a run in the manifest and in ``merge --json``."""
    return {
        "wall_seconds": round(outcome.wall_seconds, 3),
        "peak_rss_bytes": outcome.peak_rss_bytes,
        "read_bytes": outcome.read_bytes,
        "write_bytes": outcome.write_bytes,
        "cloned_bytes": outcome.clones.cloned,
        "device_read_bytes": outcome.device_read_bytes,
        "device_write_bytes": outcome.device_write_bytes,
    }


def predicted(outcome: Outcome) -> dict[str, Any]:
    """The predictions for the figures of `measured`, for a run with a schedule."""
    plan, clones = outcome.schedule, outcome.clones
    assert plan is not None, "a finished output needs no schedule"
    return {
        "peak_bytes": outcome.predicted_peak_bytes,
        "read_bytes": plan.read_bytes + clones.read,
        "write_bytes": plan.write_bytes + clones.written,
    }
