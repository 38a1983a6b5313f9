"""How a merge goes on: a live line in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mergeloom.engine.hardware.process import resident_bytes
from mergeloom.engine.job import Begun
from mergeloom.engine.plan.schedule import Schedule
from mergeloom.engine.run.executor import Progress
from mergeloom.report.units import data, duration, memory

PLAIN_SECONDS = 5.0
_RATE_SECONDS = 10.0


class ProgressDisplay:
    """Shows a run on ``console``; use as a context around it."""

    def __init__(self, console: Console, budget_bytes: int) -> None:
        self._console = console
        self._budget = budget_bytes
        self._schedule: Schedule | None = None
        self._live: Live | None = None
        self._began = time.monotonic()
        self._printed = self._began
        self._history: list[tuple[float, int]] = []

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def begun(self, begun: Begun) -> None:
        """The schedule is made and the run begins."""
        self._schedule = begun.schedule
        self._began = time.monotonic()
        if begun.resumed:
            self._console.print(f"continuing: {begun.resumed} tensors are there already")
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=8, transient=True)
            self._live.start()

    def progressed(self, progress: Progress) -> None:
        """Called several times a second while the run goes on."""
        if self._schedule is None:
            return
        now = time.monotonic()
        done = progress.read_bytes + progress.write_bytes
        self._history.append((now, done))
        while len(self._history) > 2 and self._history[0][0] < now - _RATE_SECONDS:
            self._history.pop(0)
        if self._live is not None:
            self._live.update(self._line(progress, done))
        elif now - self._printed >= PLAIN_SECONDS:
            self._printed = now
            self._console.print(self._plain(progress, done))

    @property
    def _total(self) -> int:
        assert self._schedule is not None
        return self._schedule.read_bytes + self._schedule.write_bytes

    def _rate(self) -> float:
        (start, before), (end, after) = self._history[0], self._history[-1]
        return (after - before) / (end - start) if end > start else 0.0

    def _figures(self, done: int) -> str:
        rate = self._rate()
        left = duration((self._total - done) / rate) if rate > 0 else "some time"
        return (
            f"{data(done)} of {data(self._total)}, {data(rate)}/s, {left} left, "
            f"{memory(resident_bytes())} of {memory(self._budget)}"
        )

    def _plain(self, progress: Progress, done: int) -> str:
        percent = 100 * done / max(self._total, 1)
        return f"{percent:3.0f} %  {self._figures(done)}  {progress.current}"

    def _line(self, progress: Progress, done: int) -> RenderableType:
        table = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=max(self._total, 1), completed=done, width=12)
        table.add_row(bar, Text(self._figures(done), overflow="ellipsis", no_wrap=True))
        return Group(table, Text(progress.current, style="dim", no_wrap=True, overflow="ellipsis"))
