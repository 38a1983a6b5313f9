"""What holds for any source, as sources around it: patience and moderation."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from mergeloom.engine.base.errors import RunError
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.memory.ledger import Block
from mergeloom.engine.storage.source import Access, Reader, Source

R = TypeVar("R")
W = TypeVar("W", bound="Wrapped")


class PassingError(RunError):
    """Reading failed in a way that may be over soon: a connection broke, a server was busy.

    ``after`` is how many seconds the other side asks to be left alone, or 0.
    """

    def __init__(self, message: str, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


@dataclass(frozen=True, slots=True)
class Wrapped:
    """A source around another: the same bytes."""

    inner: Source

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def size(self) -> int:
        return self.inner.size

    @property
    def identity(self) -> str:
        return self.inner.identity

    @property
    def description(self) -> str:
        return self.inner.description

    def identified(self: W, digest: str) -> W:
        """The same, around what is identified more closely; see `Source.identified`."""
        return replace(self, inner=self.inner.identified(digest))

    def open(self, access: Access) -> Reader:
        """Open it for reading; see `Source.open`."""
        return self.inner.open(access)


@dataclass(frozen=True, slots=True)
class Retrying(Wrapped):
    """Asks again, ``attempts`` times in all, after what passes (`PassingError`).

    Before the second attempt it waits ``pause`` seconds, then twice as long each time.
    """

    attempts: int = 5
    pause: float = 0.5
    sleep: Callable[[float], None] = time.sleep

    def open(self, access: Access) -> Reader:
        return _RetryingReader(self.patiently(lambda: self.inner.open(access)), self)

    def patiently(self, act: Callable[[], R]) -> R:
        """The result of ``act``, which is called as often as it takes and is allowed.

        Raises:
            RunError: the last attempt failed too, or one failed for good.
        """
        for attempt in range(1, self.attempts):
            try:
                return act()
            except PassingError as error:
                self.sleep(max(error.after, self.pause * 2 ** (attempt - 1)))
        return act()


@dataclass(frozen=True, slots=True)
class Limited(Wrapped):
    """Makes at most ``requests`` at once, and reads at most ``rate`` bytes a second (0: any)."""

    requests: int
    rate: float = 0.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def open(self, access: Access) -> Reader:
        return _LimitedReader(self.inner.open(access), self)


class _WrappedReader:
    """A reader around another."""

    def __init__(self, inner: Reader) -> None:
        self._inner = inner

    @property
    def connections(self) -> int:
        return self._inner.connections

    def read(self, start: int, stop: int, block: Block, at: int, alone: bool = True) -> None:
        self._inner.read(start, stop, block, at, alone)

    def check_unchanged(self) -> None:
        self._inner.check_unchanged()

    def close(self) -> None:
        self._inner.close()


class _RetryingReader(_WrappedReader):
    def __init__(self, inner: Reader, how: Retrying) -> None:
        super().__init__(inner)
        self._how = how

    def read(self, start: int, stop: int, block: Block, at: int, alone: bool = True) -> None:
        self._how.patiently(lambda: self._inner.read(start, stop, block, at, alone))

    def check_unchanged(self) -> None:
        self._how.patiently(self._inner.check_unchanged)


class _LimitedReader(_WrappedReader):
    def __init__(self, inner: Reader, how: Limited) -> None:
        super().__init__(inner)
        self._how = how
        self._slots = threading.BoundedSemaphore(how.requests)
        self._lock = threading.Lock()
        self._free_at = how.clock()

    @property
    def connections(self) -> int:
        return min(self._inner.connections, self._how.requests)

    def read(self, start: int, stop: int, block: Block, at: int, alone: bool = True) -> None:
        with self._slots:
            self._await_turn(stop - start)
            self._inner.read(start, stop, block, at, alone)

    def _await_turn(self, nbytes: int) -> None:
        """Wait until what was read before has had its time."""
        how = self._how
        if not how.rate:
            return
        with self._lock:
            now = how.clock()
            wait = max(0.0, self._free_at - now)
            self._free_at = now + wait + nbytes / how.rate
        if wait:
            how.sleep(wait)
