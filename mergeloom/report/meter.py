"""The progress of a run: immutable snapshots with totals and remaining time."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from mergeloom.engine.hardware import process
from mergeloom.report.detail_records import Sample
from mergeloom.report.output_records import Progress

if TYPE_CHECKING:
    from mergeloom.engine.job import Begun
    from mergeloom.engine.run.progress import Progress as Counters

_RATE_SECONDS = 10.0
_MAX_SAMPLES = 400


class Meter:
    """Creates snapshots of a run; ``begun`` is the engine's event at its start."""

    def __init__(self, begun: Begun) -> None:
        self._begun = begun
        self._began = time.monotonic()
        self._history: deque[tuple[float, int]] = deque([(self._began, 0)])
        self._samples: list[Sample] = []
        self._sample_seconds = 0.0

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Samples over the course of the run, no more than a chart can show."""
        return tuple(self._samples)

    def snapshot(self, counters: Counters) -> Progress:
        """The current progress."""
        schedule = self._begun.schedule
        now = time.monotonic()
        done = counters.read_bytes + counters.write_bytes
        rate = self._recent_rate(now, done)
        to_write = schedule.write_bytes - schedule.header_bytes
        total = schedule.read_bytes + to_write
        resident = process.resident_bytes()
        seconds = now - self._began
        self._add_sample(Sample(seconds, resident, counters.read_bytes, counters.write_bytes))
        return Progress(
            share=min(done / total, 1.0) if total else 1.0,
            read_bytes=counters.read_bytes,
            read_total=schedule.read_bytes,
            write_bytes=counters.write_bytes,
            write_total=to_write,
            merges_done=counters.merges_done,
            merges_total=len(schedule.merges),
            tensors_before=self._begun.resumed,
            current=counters.current,
            seconds=seconds,
            bytes_per_second=rate,
            seconds_left=self._seconds_left(max(total - done, 0), rate, counters, seconds),
            memory_bytes=resident,
        )

    def _seconds_left(
        self, remaining: int, rate: float, counters: Counters, seconds: float
    ) -> float | None:
        """Seconds for the ``remaining`` bytes or, if none remain, for the remaining merges at the
        average speed; ``None`` if unknown."""
        done, total = counters.merges_done, len(self._begun.schedule.merges)
        if not remaining and done < total:
            return seconds * (total - done) / done if done * 10 >= total else None
        return remaining / rate if rate > 0 else None

    def _add_sample(self, sample: Sample) -> None:
        samples = self._samples
        if samples and sample.seconds - samples[-1].seconds < self._sample_seconds:
            return
        samples.append(sample)
        if len(samples) > _MAX_SAMPLES:  # keep half of them, and sample half as often from now on
            del samples[1::2]
            self._sample_seconds = 2 * (self._sample_seconds or sample.seconds / _MAX_SAMPLES)

    def _recent_rate(self, now: float, done: int) -> float:
        history = self._history
        history.append((now, done))
        while len(history) > 2 and history[0][0] < now - _RATE_SECONDS:
            history.popleft()
        (start, before), (end, after) = history[0], history[-1]
        return (after - before) / (end - start) if end > start else 0.0
