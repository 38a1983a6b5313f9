"""Limits for a parser under test: time, memory, files, processes, code."""

from __future__ import annotations

import codecs
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from mergeloom.engine.base.errors import LoomError
from mergeloom.engine.base.records import GENERATED

CASE_SECONDS = 10.0
MEMORY_BYTES = 512 << 20
"""What a target may take beyond what the process has when fuzzing begins."""


class Forbidden(BaseException):
    """A target did something that no parser may do."""


class TooSlow(BaseException):
    """A target took too long."""


@dataclass
class Guard:
    """An audit hook that watches a target. Hooks cannot be removed, so it can be switched off."""

    folder: Path
    watching: bool = False
    _forbidden: frozenset[str] = field(
        default=frozenset(
            (
                *("exec", "import", "pickle.find_class", "marshal.loads", "ctypes.dlopen"),
                *("os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen"),
                *("socket.connect", "socket.bind", "socket.getaddrinfo", "os.kill", "os.chmod"),
            )
        )
    )

    def install(self) -> None:
        codecs.lookup("cp437")  # zipfile imports it for names that are not marked as UTF-8
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.watching:
            return
        if event == "exec" and getattr(arguments[0], "co_filename", None) == GENERATED:
            return  # the first record of a class is made; no input is involved
        if event in self._forbidden:
            self.watching = False
            raise Forbidden(f"{event} {arguments!r:.200}")
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, (str, bytes)) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self._check(path)
        elif event in ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.link"):
            for argument in arguments:
                if isinstance(argument, (str, bytes)):
                    self._check(argument)

    def _check(self, path: str | bytes) -> None:
        if not Path(os.path.abspath(os.fsdecode(path))).is_relative_to(self.folder):
            self.watching = False
            raise Forbidden(f"'{os.fsdecode(path)}' was to be written")


def attempt(function: Callable[[bytes], object], case: bytes, guard: Guard) -> str:
    """Try one case; the kind of the result. Everything but a clear error is raised."""
    signal.setitimer(signal.ITIMER_REAL, CASE_SECONDS)
    guard.watching = True
    try:
        function(case)
    except LoomError as error:
        lines = [str(finding) for finding in error.findings]
        for line in lines:
            if not line.isprintable() or len(line) > 5000 or len(lines) > 1000:
                raise AssertionError(f"not one printable line: {line[:300]!r}") from error
        return "refused"
    finally:
        guard.watching = False
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "taken"


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Allow this process `MEMORY_BYTES` more than it has now."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def too_slow(number: int, frame: FrameType | None) -> None:
    raise TooSlow(f"more than {CASE_SECONDS} seconds")
