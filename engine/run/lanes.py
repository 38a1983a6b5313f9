"""What each thread of a run did over time, in as few numbers as a picture shows.

Time is cut into cells of one length. A lane keeps for each cell how much of it its thread was busy,
and at what it was for longest. When a run outgrows the cells, two become one of twice the length:

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
"""Cells of a lane at most."""
_SHORTEST = 1 / 256
"""Seconds of a cell at first."""
_EACH = 8
"""Lanes of one kind; threads beyond them share these."""


@dataclass(frozen=True, slots=True)
class Lane:
    """A thread: ``busy`` is the share of each cell of ``seconds``, ``names`` its longest task."""

    title: str
    seconds: float
    busy: tuple[float, ...]
    names: tuple[str, ...]


@dataclass(slots=True)
class _Strip:
    """The cells of one lane; ``longest`` are seconds and name of a cell's longest task."""

    title: str
    began: float
    threads: int = 0
    seconds: float = _SHORTEST
    busy: list[float] = field(default_factory=list)
    longest: list[tuple[float, str]] = field(default_factory=list)

    def add(self, start: float, stop: float, name: str) -> None:
        start, stop = max(start - self.began, 0.0), stop - self.began
        while stop >= CELLS * self.seconds:
            self._fold()
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

    def _fold(self) -> None:
        """Make two cells one."""
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
    """Records what threads do; each says so itself."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._lock = threading.Lock()
        self._strips: dict[str, _Strip] = {}
        self._counts: Counter[str] = Counter()
        self._own = threading.local()

    @contextlib.contextmanager
    def lane(self, kind: str) -> Iterator[None]:
        """Within it, this thread has a lane: one of those of its ``kind``."""
        with self._lock:
            number = self._counts[kind]
            self._counts[kind] += 1
            title = f"{kind} {number % _EACH + 1}"
            strip = self._strips.setdefault(title, _Strip(title, self._began))
            strip.threads += 1
        self._own.strip, self._own.since = strip, None
        try:
            yield
        finally:
            self.rest()
            self._own.strip = None

    def begin(self, name: str = "") -> None:
        """This thread begins a task."""
        self._own.since, self._own.name = time.perf_counter(), name

    def rest(self) -> None:
        """This thread has ended its task, if it has one."""
        strip: _Strip | None = getattr(self._own, "strip", None)
        since: float | None = getattr(self._own, "since", None)
        if strip is None or since is None:
            return
        self._own.since = None
        with self._lock:  # threads beyond the lanes of their kind share them
            strip.add(since, time.perf_counter(), self._own.name)

    def recorded(self) -> tuple[Lane, ...]:
        """The lanes in which anything was done."""
        with self._lock:
            return tuple(strip.lane() for strip in self._strips.values() if strip.busy)
