"""Wrappers for sources: retries, and limits of concurrency and rate."""

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


class TransientError(RunError):
    """A transient failure of reading: a connection broke, a server was busy.

    ``after`` is the delay in seconds that the server asks for, or 0.
    """

    def __init__(self, message: str, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


@dataclass(frozen=True, slots=True)
class Wrapped:
    """A source that wraps another one with the same bytes."""

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
        """The same wrapper around the identified source; see `Source.identified`."""
        return replace(self, inner=self.inner.identified(digest))

    def open(self, access: Access) -> Reader:
        """Open it for reading; see `Source.open`."""
        return self.inner.open(access)


@dataclass(frozen=True, slots=True)
class Retrying(Wrapped):
    """Retries transient failures (`TransientError`), with ``attempts`` attempts in all.

    The delay before the second attempt is ``pause`` seconds, and doubles each time.
    """

    attempts: int = 5
    pause: float = 0.5
    sleep: Callable[[float], None] = time.sleep

    def open(self, access: Access) -> Reader:
        return _RetryingReader(self.patiently(lambda: self.inner.open(access)), self)

    def patiently(self, act: Callable[[], R]) -> R:
        """The result of ``act``, called until it succeeds or the attempts are used up.

        Raises:
            RunError: the last attempt failed, or one failed permanently.
        """
        for attempt in range(1, self.attempts):
            try:
                return act()
            except TransientError as error:
                self.sleep(max(error.after, self.pause * 2 ** (attempt - 1)))
        return act()


@dataclass(frozen=True, slots=True)
class Limited(Wrapped):
    """Limits a source to ``requests`` concurrent requests and ``rate`` bytes per second (0: no
    limit)."""

    requests: int
    rate: float = 0.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def open(self, access: Access) -> Reader:
        return _LimitedReader(self.inner.open(access), self)


class _WrappedReader:
    """A reader that wraps another one."""

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
        """Wait until the rate allows another request."""
        how = self._how
        if not how.rate:
            return
        with self._lock:
            now = how.clock()
            wait = max(0.0, self._free_at - now)
            self._free_at = now + wait + nbytes / how.rate
        if wait:
            how.sleep(wait)
