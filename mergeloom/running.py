"""A merge that runs in a thread of its own: its progress is an iterator."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeloom import api, arguments
from mergeloom.api import Config, Observer
from mergeloom.arguments import Pathlike
from mergeloom.engine.base.errors import Finding, LoomError
from mergeloom.report.meter import Progress
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
    """Begin a merge into the directory ``output``, in a thread of its own.

    Takes what `merge` takes. It is planned before this returns, so errors of the plan are raised
    here. Iterating over what is returned gives snapshots of the run while it goes on:

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
            planned, output=directory, io=io, observer=observer, **api.known(options)
        )
    elif options:
        raise LoomError(f"{', '.join(options)} belong to the plan: give them to plan()")
    return RunningMerge(
        planned,
        directory,
        observer,
        lambda inner: api.merge(
            planned, directory, io=io, restart=restart, verify=verify, check=check, observer=inner
        ),
    )


class RunningMerge:
    """A merge on its way. Iterate over it for `Progress`; ask it for its `result`.

    Every method may be called from any thread. Whoever iterates slowly gets the latest snapshot,
    not all of them.
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
        """Snapshots so far."""
        self._ended = False
        self._cancelled = threading.Event()
        self._warnings: list[Finding] = []
        self._result: MergeResult | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(merge,), name="merge")
        self._thread.start()

    def __iter__(self) -> Iterator[Progress]:
        """Snapshots, from now until the merge ends. To leave the loop early cancels the merge.

        Raises:
            LoomError: the merge failed. That it was cancelled is no failure: the loop ends.
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
        """Ask the merge to stop; returns at once. What is finished is kept, and the same merge
        again continues it."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether it was cancelled before it had ended."""
        return self._cancelled.is_set() and self._result is None

    @property
    def done(self) -> bool:
        """Whether it has ended: finished, failed or cancelled."""
        return self._ended

    @property
    def progress(self) -> Progress | None:
        """The latest snapshot; ``None`` before there is one."""
        return self._latest

    def result(self) -> MergeResult:
        """Wait for the end of the merge, and return what `merge` returns.

        Raises:
            LoomError: it failed; or, of code ``cancelled``, it was cancelled.
        """
        self._thread.join()
        if self._warnings:
            told, self._warnings = self._warnings, []
            api.tell(told, self._observer)
        if self._result is None:
            assert self._error is not None
            raise self._error
        return self._result

    def _wait(self, seen: int) -> tuple[Progress | None, int]:
        """The latest snapshot and its number, once it is not that of ``seen`` or none will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._count > seen)
            return self._latest, self._count

    def _run(self, merge: Callable[[Observer], MergeResult]) -> None:
        asked = self._observer.cancelled

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
            warned=self._warnings.append,  # which Python shows to whoever asks for the result
            cancelled=lambda: self._cancelled.is_set() or (asked is not None and asked()),
        )
        try:
            self._result = merge(observer)
        except BaseException as error:  # raised where the result is asked for
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
