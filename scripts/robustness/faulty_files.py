"""Files on which calls fail, are cut short, or change the inputs."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from mergeloom.engine.storage.file_system import FILES, Files

R = TypeVar("R")

_WRITING = frozenset(
    ("create", "write", "truncate", "allocate", "sync", "make_directory", "rename")
)
ERRORS: dict[str, tuple[int, frozenset[str] | None]] = {
    "disk full": (errno.ENOSPC, _WRITING),
    "quota exceeded": (errno.EDQUOT, _WRITING),
    "read-only file system": (errno.EROFS, _WRITING | {"remove"}),
    "input/output error": (errno.EIO, None),
    "no memory": (errno.ENOMEM, None),
    "stale handle": (errno.ESTALE, None),
}
"""Errors of the system, and the calls that may return them (``None``: all)."""


class FaultyFiles(Files):
    """One call fails: the one with this ``number``, or it and every later one."""

    def __init__(
        self, error: int, kinds: frozenset[str] | None, number: int, lasting: bool
    ) -> None:
        self.calls = 0
        self.failures = 0
        self._error = error
        self._kinds = kinds
        self._number = number
        self._lasting = lasting
        self._lock = threading.Lock()

    def open(self, path: Path | str, flags: int) -> int:
        kind = "create" if flags & os.O_CREAT else "open"
        return self._call(kind, lambda: FILES.open(path, flags))

    def read(self, fd: int, buffer: memoryview, position: int) -> int:
        return self._call("read", lambda: FILES.read(fd, buffer, position))

    def write(self, fd: int, content: memoryview | bytes, position: int) -> int:
        return self._call("write", lambda: FILES.write(fd, content, position))

    def truncate(self, fd: int, size: int) -> None:
        self._call("truncate", lambda: FILES.truncate(fd, size))

    def allocate(self, fd: int, size: int) -> None:
        self._call("allocate", lambda: FILES.allocate(fd, size))

    def sync(self, fd: int) -> None:
        self._call("sync", lambda: FILES.sync(fd))

    def make_directory(self, path: Path) -> None:
        self._call("make_directory", lambda: FILES.make_directory(path))

    def rename(self, source: Path, target: Path) -> None:
        self._call("rename", lambda: FILES.rename(source, target))

    def remove(self, path: Path) -> None:
        self._call("remove", lambda: FILES.remove(path))

    def sync_directory(self, path: Path) -> None:
        self._call("sync", lambda: FILES.sync_directory(path))

    def _call(self, kind: str, call: Callable[[], R]) -> R:
        if self._kinds is None or kind in self._kinds:
            with self._lock:
                self.calls += 1
                fails = self.calls == self._number or (self._lasting and self.calls > self._number)
                self.failures += fails
            if fails:
                raise OSError(self._error, os.strerror(self._error))
        return call()


class ShortFiles(Files):
    """Reads and writes transfer only a part of the bytes, as a file system is allowed to."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)

    def read(self, fd: int, buffer: memoryview, position: int) -> int:
        return FILES.read(fd, buffer[: self._part(len(buffer))], position)

    def write(self, fd: int, content: memoryview | bytes, position: int) -> int:
        view = memoryview(content)
        return FILES.write(fd, view[: self._part(len(view))], position)

    def _part(self, length: int) -> int:
        return self._chance.choice((length, 4096, self._chance.randint(1, length)))


class MeddlingFiles(Files):
    """Runs a function that changes the inputs just before one of the reads."""

    def __init__(self, number: int, meddle: Callable[[], None]) -> None:
        self._number = number
        self._meddle = meddle
        self._reads = 0
        self._lock = threading.Lock()

    def read(self, fd: int, buffer: memoryview, position: int) -> int:
        with self._lock:
            self._reads += 1
            if self._reads == self._number:
                self._meddle()
        return FILES.read(fd, buffer, position)
