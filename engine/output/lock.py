"""A lock on an output directory, released by the system when the process ends.

With ``flock``, the directory itself is locked and nothing is left behind. Elsewhere the
``filelock`` package locks a file by the means of the system.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_POSIX: Any = None
"""The module ``fcntl``, if the system has it."""
with contextlib.suppress(ImportError):
    import fcntl

    _POSIX = fcntl

_MOMENT = 0.05

NAME = "lock"
"""The file that is locked where directories cannot be locked."""


class Locked(Exception):
    """Another process holds the lock."""


def hold(directory: Path) -> Callable[[], None]:
    """Lock an existing ``directory``; returns a function that releases the lock.

    Raises:
        Locked: another process holds it.
        OSError: the file system does not support locks.
    """
    return _hold_file(directory / NAME) if _POSIX is None else _hold_directory(directory)


def is_held(directory: Path) -> bool:
    """Whether a process holds the lock of a ``directory``; false if that is unknown.

    On POSIX this tries a shared lock, which does not disturb other processes.
    """
    if _POSIX is None:
        return (directory / NAME).exists() and _is_file_held(directory)
    try:
        number = os.open(directory, os.O_RDONLY)
    except OSError:
        return False
    try:
        _POSIX.flock(number, _POSIX.LOCK_SH | _POSIX.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(number)
    return False


def _is_file_held(directory: Path) -> bool:
    try:
        _hold_file(directory / NAME)()
    except Locked:
        return True
    return False


def _hold_directory(directory: Path) -> Callable[[], None]:
    number = os.open(directory, os.O_RDONLY)
    try:
        try:
            _POSIX.flock(number, _POSIX.LOCK_EX | _POSIX.LOCK_NB)
        except BlockingIOError:  # `is_held` of another process has it for a moment
            time.sleep(_MOMENT)
            _POSIX.flock(number, _POSIX.LOCK_EX | _POSIX.LOCK_NB)
    except BaseException as error:
        os.close(number)
        if isinstance(error, BlockingIOError):
            raise Locked from error
        raise
    return lambda: os.close(number)


def _hold_file(path: Path) -> Callable[[], None]:
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise Locked from error
    return lock.release
