"""Merging in a background thread, with progress as an iterator."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeloom import api, arguments
from mergeloom.api import Config, Observer
from mergeloom.arguments import Pathlike
from mergeloom.calls import public
from mergeloom.engine.base.errors import Finding, LoomError
from mergeloom.report.output_records import Progress
from mergeloom.results import MergeResult, PlannedMerge

if TYPE_CHECKING:
    from mergeloom.engine.storage.source import IOMode


def start(
    config: Config | PlannedMerge,
    output: Pathlike,
    *,
    io: IOMode | str = "auto",
    restart: bool = False,
    verify: bool = False,
    check: int = 0,
    observer: Observer | None = None,
    **options: Any,
) -> RunningMerge:
    """Start a merge into the directory ``output`` in a background thread.

    Takes the arguments of `merge`. The merge is planned before this returns, so planning errors are
    raised here. Iterate over the result for snapshots of the run:

    >>> run = mergeloom.start("merge.yml", "merged", ram="4GiB")
    >>> for progress in run:
    ...     bar.update(progress.share)
    >>> run.result().report.measured

    Raises:
        LoomError: as `plan`.
    """
    directory = arguments.path_of(output, "the output")
    observer = observer or Observer()
    planned = config
    if not isinstance(planned, PlannedMerge):
        planned = api.plan(
            planned, output=directory, io=io, observer=observer, **api.check_plan_options(options)
        )
    elif options:
        raise LoomError(f"{', '.join(options)} belong to the plan", remedy="give them to plan()")
    return RunningMerge(
        planned,
        directory,
        observer,
        lambda inner: public(api.merge)(
            planned, directory, io=io, restart=restart, verify=verify, check=check, observer=inner
        ),
    )


class RunningMerge:
    """A running merge. Iterate over it for `Progress`, and call `result` for the outcome.

    Every method may be called from any thread. A slow iteration skips snapshots.
    """

    def __init__(
        self,
        planned: PlannedMerge,
        output: Path,
        observer: Observer,
        merge: Callable[[Observer], MergeResult],
    ) -> None:
        self.planned = planned
        self.output = output
        self._observer = observer
        self._changed = threading.Condition()
        self._latest: Progress | None = None
        self._count = 0
        """Number of snapshots so far."""
        self._ended = False
        self._cancelled = threading.Event()
        self._warnings: list[Finding] = []
        self._result: MergeResult | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(merge,), name="merge")
        self._thread.start()

    def __iter__(self) -> Iterator[Progress]:
        """Snapshots until the merge ends. Leaving the loop early cancels the merge.

        Raises:
            LoomError: the merge failed. If it was cancelled, the loop ends without an error.
        """
        seen = 0
        try:
            while True:
                latest, count = self._wait(seen)
                if count == seen or latest is None:
                    break
                seen = count
                yield latest
        finally:
            if not self._ended:
                self.cancel()
            self._thread.join()
        if self._error is not None and not self.cancelled:
            raise self._error

    def cancel(self) -> None:
        """Ask the merge to stop; returns immediately. Finished work is kept, and the same merge
        continues it."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether it was cancelled before it ended."""
        return self._cancelled.is_set() and self._result is None

    @property
    def done(self) -> bool:
        """Whether it has finished, failed or been cancelled."""
        return self._ended

    @property
    def progress(self) -> Progress | None:
        """The latest snapshot; ``None`` if there is none yet."""
        return self._latest

    def result(self) -> MergeResult:
        """Wait for the merge to end, and return the result of `merge`.

        Raises:
            LoomError: it failed, or was cancelled (code ``cancelled``).
        """
        self._thread.join()
        if self._warnings:
            pending, self._warnings = self._warnings, []
            api.issue_warnings(pending, self._observer)
        if self._result is None:
            assert self._error is not None
            raise self._error
        return self._result

    def _wait(self, seen: int) -> tuple[Progress | None, int]:
        """Wait for the end, or for a snapshot after number ``seen``.

        Returns the latest snapshot and its number.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._count > seen)
            return self._latest, self._count

    def _run(self, merge: Callable[[Observer], MergeResult]) -> None:
        is_cancelled = self._observer.cancelled

        def progressed(progress: Progress) -> None:
            if self._observer.progressed is not None:
                self._observer.progressed(progress)
            with self._changed:
                self._latest = progress
                self._count += 1
                self._changed.notify_all()

        observer = replace(
            self._observer,
            progressed=progressed,
            warned=self._warnings.append,  # issued when the result is requested
            cancelled=lambda: (
                self._cancelled.is_set() or (is_cancelled is not None and is_cancelled())
            ),
        )
        try:
            self._result = merge(observer)
        except BaseException as error:  # raised when the result is requested
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def __repr__(self) -> str:
        if self._result is not None:
            how = "finished"
        elif self._ended:
            how = "cancelled" if self.cancelled else f"failed: {self._error}"
        else:
            how = f"{self._latest.share:.0%}" if self._latest is not None else "starting"
        return f"<RunningMerge into '{self.output}': {how}>"
