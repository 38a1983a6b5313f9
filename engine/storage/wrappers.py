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
from mergeloom.engine.storage.source import Reader, ReadOptions, Source

R = TypeVar("R")
W = TypeVar("W", bound="WrappedSource")


class TransientError(RunError):
    """A transient failure of reading: a connection broke, a server was busy.

    ``retry_after`` is the delay in seconds that the server asks for, or 0.
    """

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class WrappedSource:
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

    def open(self, options: ReadOptions) -> Reader:
        """Open it for reading; see `Source.open`."""
        return self.inner.open(options)


@dataclass(frozen=True, slots=True)
class RetryingSource(WrappedSource):
    """Retries transient failures (`TransientError`), with ``attempts`` attempts in all.

    The delay before the second attempt is ``first_delay`` seconds, and is doubled each time.
    """

    attempts: int = 5
    first_delay: float = 0.5
    sleep: Callable[[float], None] = time.sleep

    def open(self, options: ReadOptions) -> Reader:
        return _RetryingReader(self.with_retries(lambda: self.inner.open(options)), self)

    def with_retries(self, action: Callable[[], R]) -> R:
        """The result of ``action``, called until it succeeds or the attempts are used up.

        Raises:
            RunError: the last attempt failed, or one failed permanently.
        """
        for attempt in range(1, self.attempts):
            try:
                return action()
            except TransientError as error:
                self.sleep(max(error.retry_after, self.first_delay * 2 ** (attempt - 1)))
        return action()


@dataclass(frozen=True, slots=True)
class LimitedSource(WrappedSource):
    """Limits a source to ``requests`` concurrent requests and ``rate`` bytes per second (0: no
    limit)."""

    requests: int
    rate: float = 0.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def open(self, options: ReadOptions) -> Reader:
        return _LimitedReader(self.inner.open(options), self)


class _WrappedReader:
    """A reader that wraps another one."""

    def __init__(self, inner: Reader) -> None:
        self._inner = inner

    @property
    def connections(self) -> int:
        return self._inner.connections

    def read(
        self, start: int, stop: int, block: Block, at: int, may_overwrite: bool = True
    ) -> None:
        self._inner.read(start, stop, block, at, may_overwrite)

    def check_unchanged(self) -> None:
        self._inner.check_unchanged()

    def close(self) -> None:
        self._inner.close()


class _RetryingReader(_WrappedReader):
    def __init__(self, inner: Reader, source: RetryingSource) -> None:
        super().__init__(inner)
        self._source = source

    def read(
        self, start: int, stop: int, block: Block, at: int, may_overwrite: bool = True
    ) -> None:
        self._source.with_retries(lambda: self._inner.read(start, stop, block, at, may_overwrite))

    def check_unchanged(self) -> None:
        self._source.with_retries(self._inner.check_unchanged)


class _LimitedReader(_WrappedReader):
    def __init__(self, inner: Reader, source: LimitedSource) -> None:
        super().__init__(inner)
        self._source = source
        self._slots = threading.BoundedSemaphore(source.requests)
        self._lock = threading.Lock()
        self._free_at = source.clock()

    @property
    def connections(self) -> int:
        return min(self._inner.connections, self._source.requests)

    def read(
        self, start: int, stop: int, block: Block, at: int, may_overwrite: bool = True
    ) -> None:
        with self._slots:
            self._await_turn(stop - start)
            self._inner.read(start, stop, block, at, may_overwrite)

    def _await_turn(self, nbytes: int) -> None:
        """Wait until the rate allows another request."""
        source = self._source
        if not source.rate:
            return
        with self._lock:
            now = source.clock()
            wait = max(0.0, self._free_at - now)
            self._free_at = now + wait + nbytes / source.rate
        if wait:
            source.sleep(wait)
