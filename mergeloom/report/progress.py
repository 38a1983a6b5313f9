"""Progress display: a live line in a terminal, plain lines at intervals elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mergeloom.report.meter import Progress
from mergeloom.report.units import data, duration, memory

PLAIN_SECONDS = 5.0
_WIDE = 90
"""Minimum columns for a bar with figures."""


class ProgressDisplay:
    """Shows a run on ``console``; used as a context manager.

    A closed console ends the display, not the run.
    """

    def __init__(self, console: Console, budget_bytes: int | None) -> None:
        self._console = console
        self._budget = budget_bytes
        self._live: Live | None = None
        self._printed = time.monotonic()
        self._listening = True

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def progressed(self, progress: Progress) -> None:
        """Called several times a second during the run."""
        if not self._listening:
            return
        try:
            self._show(progress)
        except (OSError, ValueError):  # the terminal is gone
            self._listening = False
            self._stop()

    def _show(self, progress: Progress) -> None:
        if self._console.is_terminal:
            if self._live is None:
                self._live = Live(console=self._console, refresh_per_second=8, transient=True)
                self._live.start()
            self._live.update(self._lines(progress))
            return
        now = time.monotonic()
        if now - self._printed >= PLAIN_SECONDS:
            self._printed = now
            percent = f"{100 * progress.share:3.0f} %"
            self._console.print(f"{percent}  {self._figures(progress)}  {progress.current}")

    def _stop(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            try:
                live.stop()
            except (OSError, ValueError):
                self._listening = False

    def _figures(self, progress: Progress) -> str:
        left = progress.seconds_left
        unknown = "computing" if progress.merges_done else "starting"
        rest = f"{duration(left)} left" if left is not None else unknown
        return (
            f"{data(progress.done_bytes)} of {data(progress.total_bytes)}, "
            f"{data(progress.bytes_per_second)}/s, {rest}, {memory(progress.memory_bytes)}"
            + ("" if self._budget is None else f" of {memory(self._budget)}")
        )

    def _lines(self, progress: Progress) -> RenderableType:
        table = Table.grid(padding=(0, 1))
        figures = Text(self._figures(progress), overflow="ellipsis", no_wrap=True)
        if self._console.width < _WIDE:  # figures are more useful than a bar
            table.add_row(Text(f"{progress.share:.0%}"), figures)
        else:
            table.add_row(ProgressBar(total=1.0, completed=progress.share, width=12), figures)
        return Group(table, Text(progress.current, style="dim", no_wrap=True, overflow="ellipsis"))
