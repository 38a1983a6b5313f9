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

_fcntl: Any = None
"""The module ``fcntl``, if the system has it."""
with contextlib.suppress(ImportError):
    import fcntl

    _fcntl = fcntl

_RETRY_SECONDS = 0.05

LOCK_FILE = "lock"
"""The file that is locked on systems where directories cannot be locked."""


class AlreadyLocked(Exception):
    """Another process holds the lock."""


def lock_directory(directory: Path) -> Callable[[], None]:
    """Lock an existing ``directory``; returns a function that releases the lock.

    Raises:
        AlreadyLocked: another process holds it.
        OSError: the file system does not support locks.
    """
    return _lock_file(directory / LOCK_FILE) if _fcntl is None else _flock_directory(directory)


def is_held(directory: Path) -> bool:
    """Whether a process holds the lock of a ``directory``; false if that is unknown.

    On POSIX this tries a shared lock, which does not disturb other processes.
    """
    if _fcntl is None:
        return (directory / LOCK_FILE).exists() and _is_file_locked(directory)
    try:
        number = os.open(directory, os.O_RDONLY)
    except OSError:
        return False
    try:
        _fcntl.flock(number, _fcntl.LOCK_SH | _fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(number)
    return False


def _is_file_locked(directory: Path) -> bool:
    try:
        _lock_file(directory / LOCK_FILE)()
    except AlreadyLocked:
        return True
    return False


def _flock_directory(directory: Path) -> Callable[[], None]:
    number = os.open(directory, os.O_RDONLY)
    try:
        try:
            _fcntl.flock(number, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
        except BlockingIOError:  # another process may hold it briefly in `is_held`
            time.sleep(_RETRY_SECONDS)
            _fcntl.flock(number, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
    except BaseException as error:
        os.close(number)
        if isinstance(error, BlockingIOError):
            raise AlreadyLocked from error
        raise
    return lambda: os.close(number)


def _lock_file(path: Path) -> Callable[[], None]:
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise AlreadyLocked from error
    return lock.release
