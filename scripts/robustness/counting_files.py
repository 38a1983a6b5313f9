"""A file system that counts calls in memory shared with forks, and kills its process at one."""

from __future__ import annotations

import mmap
import os
import signal
import struct
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from mergeloom.engine.storage.file_system import Files

R = TypeVar("R")


class SharedCounters:
    """Integers in memory that is shared with forked processes, and survives them."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)

    def __getitem__(self, place: int) -> int:
        (value,) = struct.unpack_from("q", self._memory, 8 * place)
        return int(value)

    def __setitem__(self, place: int, value: int) -> None:
        struct.pack_into("q", self._memory, 8 * place, value)

    def clear(self) -> None:
        self._memory[:] = bytes(mmap.PAGESIZE)


READ, READS, READ_AT_COMMIT = range(3)
"""Counters: bytes read, read requests, bytes read when the last durable commit began."""


class CountingFiles(Files):
    """Counts bytes read and calls, and kills the process at a chosen call.

    ``kind`` and ``number`` select the call (counted from 1); ``after`` tells whether the process is
    killed after it or before. Killed before a write, the process first writes a part of the data,
    to leave a torn write behind.
    """

    def __init__(
        self, shared: SharedCounters, kind: str | None = None, number: int = 0, after: bool = False
    ) -> None:
        self._shared = shared
        self._kind = kind
        self._number = number
        self._after = after
        self.calls: Counter[str] = Counter()
        self._journal = -1
        self._commit_began: int | None = None
        self._lock = threading.Lock()

    def open(self, path: Path | str, flags: int) -> int:
        fd = super().open(path, flags)
        if Path(path).name == "journal":
            self._journal = fd
        return fd

    def read(self, fd: int, buffer: memoryview, position: int) -> int:
        count = super().read(fd, buffer, position)
        with self._lock:
            self._shared[READ] += count
            self._shared[READS] += 1
        return count

    def write(self, fd: int, content: memoryview | bytes, position: int) -> int:
        view = memoryview(content)
        kind = "journal" if fd == self._journal else "write"

        def torn() -> None:
            super(CountingFiles, self).write(fd, view[: len(view) // 2], position)

        return self._counted(
            kind, lambda: super(CountingFiles, self).write(fd, view, position), torn
        )

    def sync(self, fd: int) -> None:
        # A commit covers what is complete when it begins: it syncs the shards, then the journal.
        if self._commit_began is None:
            self._commit_began = self._shared[READ]
        self._counted("sync", lambda: super(CountingFiles, self).sync(fd))
        if fd == self._journal:
            self._shared[READ_AT_COMMIT] = self._commit_began
            self._commit_began = None

    def truncate(self, fd: int, size: int) -> None:
        self._counted("truncate", lambda: super(CountingFiles, self).truncate(fd, size))

    def make_directory(self, path: Path) -> None:
        self._counted("make_directory", lambda: super(CountingFiles, self).make_directory(path))

    def rename(self, source: Path, target: Path) -> None:
        self._commit_began = None  # a complete shard is synced once more; it was recorded earlier
        self._counted("rename", lambda: super(CountingFiles, self).rename(source, target))

    def remove(self, path: Path) -> None:
        self._counted("remove", lambda: super(CountingFiles, self).remove(path))

    def sync_directory(self, path: Path) -> None:
        self._counted("sync_directory", lambda: super(CountingFiles, self).sync_directory(path))

    def _counted(
        self, kind: str, call: Callable[[], R], torn: Callable[[], None] = lambda: None
    ) -> R:
        with self._lock:
            self.calls[kind] += 1
            chosen = (kind, self.calls[kind]) == (self._kind, self._number)
        if chosen and not self._after:
            torn()
            os.kill(os.getpid(), signal.SIGKILL)
        result = call()
        if chosen:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
