"""Records what each thread of a run did over time, at the resolution of a chart.

Time is divided into cells of equal length. For each cell, a lane stores the share of time in which
its thread was busy and the longest task. When the cells are used up, pairs of cells are merged:

    reader 1   ▇▇▇▇▂▂▇▇▇▇▁▁▁▁
    worker 1   ....▇▇▇▇▂▂▇▇▇▇
    writer 1   ........▃▃▃▃▃▃
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

CELLS = 240
"""Maximum number of cells of a lane."""
_FIRST_CELL_SECONDS = 1 / 256
"""Initial seconds of a cell."""
_MAX_PER_KIND = 8
"""Maximum number of lanes of one kind; further threads share them."""


@dataclass(frozen=True, slots=True)
class Lane:
    """A thread: the ``busy`` share and the longest task (``names``) of each cell of ``seconds``."""

    title: str
    seconds: float
    busy: tuple[float, ...]
    names: tuple[str, ...]


@dataclass(slots=True)
class _Strip:
    """The cells of one lane; ``longest`` has seconds and name of the longest task of each."""

    title: str
    began: float
    threads: int = 0
    seconds: float = _FIRST_CELL_SECONDS
    busy: list[float] = field(default_factory=list)
    longest: list[tuple[float, str]] = field(default_factory=list)

    def add(self, start: float, stop: float, name: str) -> None:
        start, stop = max(start - self.began, 0.0), stop - self.began
        while stop >= CELLS * self.seconds:
            self._merge_pairs()
        first, last = int(start / self.seconds), int(stop / self.seconds)
        lacking = last + 1 - len(self.busy)
        self.busy += [0.0] * lacking
        self.longest += [(0.0, "")] * lacking
        for cell in range(first, last + 1):
            begin, end = cell * self.seconds, (cell + 1) * self.seconds
            spent = max(min(stop, end) - max(start, begin), 0.0)
            self.busy[cell] += spent
            if spent > self.longest[cell][0]:
                self.longest[cell] = spent, name

    def _merge_pairs(self) -> None:
        """Merge pairs of cells."""
        odd = len(self.busy) % 2
        self.busy += [0.0] * odd
        self.longest += [(0.0, "")] * odd
        self.busy = [a + b for a, b in zip(self.busy[::2], self.busy[1::2], strict=True)]
        pairs = zip(self.longest[::2], self.longest[1::2], strict=True)
        self.longest = [max(pair) for pair in pairs]
        self.seconds *= 2

    def lane(self) -> Lane:
        whole = self.seconds * max(self.threads, 1)
        shares = tuple(round(min(busy / whole, 1.0), 3) for busy in self.busy)
        names = tuple(name for _, name in self.longest)
        return Lane(self.title, self.seconds, shares, names)


class Lanes:
    """Records the tasks that threads report."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._lock = threading.Lock()
        self._strips: dict[str, _Strip] = {}
        self._counts: Counter[str] = Counter()
        self._own = threading.local()

    @contextlib.contextmanager
    def lane(self, kind: str) -> Iterator[None]:
        """A context in which the current thread has a lane of its ``kind``."""
        with self._lock:
            number = self._counts[kind]
            self._counts[kind] += 1
            title = f"{kind} {number % _MAX_PER_KIND + 1}"
            strip = self._strips.setdefault(title, _Strip(title, self._began))
            strip.threads += 1
        self._own.strip, self._own.since = strip, None
        try:
            yield
        finally:
            self.rest()
            self._own.strip = None

    def begin(self, name: str = "") -> None:
        """Report that the current thread begins a task."""
        self._own.since, self._own.name = time.perf_counter(), name

    def rest(self) -> None:
        """Report that the current thread has ended its task, if any."""
        strip: _Strip | None = getattr(self._own, "strip", None)
        since: float | None = getattr(self._own, "since", None)
        if strip is None or since is None:
            return
        self._own.since = None
        with self._lock:  # several threads may share a lane
            strip.add(since, time.perf_counter(), self._own.name)

    def recorded(self) -> tuple[Lane, ...]:
        """The lanes with at least one task."""
        with self._lock:
            return tuple(strip.lane() for strip in self._strips.values() if strip.busy)
