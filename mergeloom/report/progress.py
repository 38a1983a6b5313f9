"""Displays progress: a live line in a terminal, plain lines at intervals elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mergeloom.report.output_records import Progress
from mergeloom.report.units import data_text, duration_text, memory_text

LINE_SECONDS = 5.0
"""Interval of plain lines."""
_MIN_BAR_COLUMNS = 90
"""Minimum width of a terminal for a bar next to the figures."""


class ProgressDisplay:
    """Shows a run on ``console``; used as a context manager.

    A closed console ends the display, not the run.
    """

    def __init__(self, console: Console, budget_bytes: int | None) -> None:
        self._console = console
        self._budget = budget_bytes
        self._live: Live | None = None
        self._printed = time.monotonic()
        self._is_open = True

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
        if not self._is_open:
            return
        try:
            self._show(progress)
        except (OSError, ValueError):  # the terminal is gone
            self._is_open = False
            self._stop()

    def _show(self, progress: Progress) -> None:
        if self._console.is_terminal:
            if self._live is None:
                self._live = Live(console=self._console, refresh_per_second=8, transient=True)
                self._live.start()
            self._live.update(self._live_lines(progress))
            return
        now = time.monotonic()
        if now - self._printed >= LINE_SECONDS:
            self._printed = now
            percent = f"{100 * progress.share:3.0f} %"
            self._console.print(f"{percent}  {self._figures(progress)}  {progress.current}")

    def _stop(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            try:
                live.stop()
            except (OSError, ValueError):
                self._is_open = False

    def _figures(self, progress: Progress) -> str:
        left = progress.seconds_left
        unknown = "computing" if progress.merges_done else "starting"
        rest = f"{duration_text(left)} left" if left is not None else unknown
        return (
            f"{data_text(progress.done_bytes)} of {data_text(progress.total_bytes)}, "
            f"{data_text(progress.bytes_per_second)}/s, {rest}, "
            f"{memory_text(progress.memory_bytes)}"
            + ("" if self._budget is None else f" of {memory_text(self._budget)}")
        )

    def _live_lines(self, progress: Progress) -> RenderableType:
        table = Table.grid(padding=(0, 1))
        figures = Text(self._figures(progress), overflow="ellipsis", no_wrap=True)
        if self._console.width < _MIN_BAR_COLUMNS:  # figures are more useful than a bar
            table.add_row(Text(f"{progress.share:.0%}"), figures)
        else:
            table.add_row(ProgressBar(total=1.0, completed=progress.share, width=12), figures)
        return Group(table, Text(progress.current, style="dim", no_wrap=True, overflow="ellipsis"))
