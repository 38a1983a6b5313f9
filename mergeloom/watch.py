"""What a run tells its observer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergeloom.engine.base.errors import RunError
from mergeloom.report.meter import Meter

if TYPE_CHECKING:
    from mergeloom.api import Observer
    from mergeloom.engine.job import Begun
    from mergeloom.engine.run.progress import Progress as Counters
    from mergeloom.report.detail_records import Sample


class Watch:
    """Measures a run for an observer, and stops it if the observer is cancelled."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._meter: Meter | None = None

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Samples over the course of the run; none if it did not begin."""
        return () if self._meter is None else self._meter.samples

    def begun(self, event: Begun) -> None:
        """Start measuring."""
        self._meter = Meter(event)
        if self._observer.resumed is not None and event.resumed:
            self._observer.resumed(event.resumed)

    def progressed(self, counters: Counters) -> None:
        """Pass a snapshot to the observer.

        Raises:
            RunError: the observer is cancelled.
        """
        observer = self._observer
        if self._meter is not None:
            snapshot = self._meter.snapshot(counters)
            if observer.progressed is not None:
                observer.progressed(snapshot)
        if observer.cancelled is not None and observer.cancelled():
            raise RunError(
                "the run was cancelled; what is finished is kept",
                remedy="the same call again continues it",
                code="cancelled",
            )
