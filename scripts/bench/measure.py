"""Measures processes from start to end: time and peak memory, with a cold page cache."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from scripts.bench.cgroup import GroupUsage, MemoryGroup

_DROP = Path("/proc/sys/vm/drop_caches")
_SECTOR = 512
_CHECK_SECONDS = 0.02
_SETTLING_SECONDS = 1.0


class StoppedError(OSError):
    """A run was stopped; the message gives the reason."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of a command.

    Wall and CPU seconds (user and system); peak resident bytes; bytes read from and written to
    disk, without the page cache; exit status (negative: the signal that ended it); its output; and
    the counters of its memory cgroup.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    read_bytes: int
    write_bytes: int
    status: int
    output: str
    complaints: str
    group: GroupUsage | None


def run(
    command: Sequence[str],
    *,
    limit: int | None = None,
    variables: Mapping[str, str] | None = None,
    check: Callable[[], str | None] | None = None,
) -> Measured:
    """Run ``command`` to its end, in a memory cgroup of ``limit`` bytes if given.

    ``check`` is called several times a second; it stops the run by returning a reason.

    Raises:
        StoppedError: ``check`` stopped the run.
        OSError: the command cannot be started, or the cgroup cannot be created.
    """
    with contextlib.ExitStack() as stack:
        group = None if limit is None else stack.enter_context(MemoryGroup(limit))
        output = stack.enter_context(tempfile.TemporaryFile())
        complaints = stack.enter_context(tempfile.TemporaryFile())
        began = time.perf_counter()
        process = subprocess.Popen(
            list(command) if group is None else group.command(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=complaints,
            env={**os.environ, **(variables or {})},
        )
        try:
            found, status, used = os.wait4(process.pid, 0 if check is None else os.WNOHANG)
            while check is not None and found == 0:
                reason = check()
                if reason is not None:
                    raise StoppedError(reason)
                time.sleep(_CHECK_SECONDS)
                found, status, used = os.wait4(process.pid, os.WNOHANG)
        except BaseException:
            _end(process)
            raise
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        return Measured(
            seconds,
            used.ru_utime + used.ru_stime,
            used.ru_maxrss * 1024,
            used.ru_inblock * _SECTOR,
            used.ru_oublock * _SECTOR,
            process.returncode,
            _text(output),
            _text(complaints),
            None if group is None else group.usage(),
        )


def machine() -> dict[str, Any]:
    """The machine that measures: Python, cores, processor, bytes of memory."""
    with open("/proc/cpuinfo") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return {
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "processor": names[0] if names else platform.machine(),
        "memory_bytes": psutil.virtual_memory().total,
    }


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it started, which would slow down the next run."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for each in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
    process.kill()
    process.wait()


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def cool(files: Iterable[Path]) -> str:
    """Drop ``files`` from the page cache, and all others if permitted; return how.

    Then wait a moment, in which the disk can discard blocks of removed files: that would slow down
    the next run.
    """
    os.sync()
    time.sleep(_SETTLING_SECONDS)
    try:
        _DROP.write_text("1")
    except OSError:
        for path in files:
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return "fadvise"
    return "drop_caches"


def warm_up(files: Iterable[Path]) -> None:
    """Read ``files`` into the page cache."""
    piece = bytearray(1 << 24)
    for path in files:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(piece):
                pass
