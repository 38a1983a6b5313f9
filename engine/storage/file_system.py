"""The file system, one method for each call: all that a run does to an output passes through here,
and all that it reads of its inputs.

The program uses one `Files`. Tests hand down subclasses that record calls, fail them, cut them
short, or end the process in the middle of one.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mergeloom.engine.base.errors import RunError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

DIRECT = getattr(os, "O_DIRECT", 0)
"""Flag of `Files.open` for requests that bypass the page cache; 0 where there is none."""

_ALWAYS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

_SEEKING = threading.Lock()
"""Held where a descriptor has one position for all threads, and no call that names another."""

_CLONE_RANGE = 0x4020940D
"""FICLONERANGE of linux/fs.h."""

_NO_SYNC = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES)
"""What file systems answer that know no sync of directories, or forbid to look into one."""


class Files:
    """Calls of the operating system. All raise `OSError`; positions and sizes are in bytes."""

    def open(self, path: Path | str, flags: int) -> int:
        """A descriptor of a file, which is made if ``flags`` say so."""
        return os.open(path, flags | _ALWAYS, 0o644)

    def close(self, fd: int) -> None:
        os.close(fd)

    def read(self, fd: int, buffer: memoryview, position: int) -> int:
        """Fill the start of ``buffer``; how many bytes came, 0 at the end of the file."""
        if hasattr(os, "preadv"):
            return os.preadv(fd, [buffer], position)
        with _SEEKING:
            os.lseek(fd, position, os.SEEK_SET)
            content = os.read(fd, len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def write(self, fd: int, content: memoryview | bytes, position: int) -> int:
        """Write the start of ``content``; how many bytes went."""
        if hasattr(os, "pwritev"):
            return os.pwritev(fd, [content], position)
        with _SEEKING:
            os.lseek(fd, position, os.SEEK_SET)
            return os.write(fd, content)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def allocate(self, fd: int, size: int) -> None:
        """Reserve the blocks of a file's first ``size`` bytes, where the file system can."""
        if size and hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(fd, 0, size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                    raise

    def clone(self, source: int, start: int, nbytes: int, target: int, to: int) -> None:
        """Let ``nbytes`` of one file, from ``to`` on, be those of another from ``start`` on,
        without moving them: both share them until one is changed. All are whole blocks."""
        if fcntl is None:
            raise OSError(errno.EOPNOTSUPP, "no clones here")
        fcntl.ioctl(target, _CLONE_RANGE, struct.pack("qQQQ", source, start, nbytes, to))

    def sync(self, fd: int) -> None:
        """Return when what was written to a file, and its size, are durable."""
        getattr(os, "fdatasync", os.fsync)(fd)

    def make_directory(self, path: Path) -> None:
        os.mkdir(path)

    def rename(self, source: Path, target: Path) -> None:
        """Give a file another name in its directory, in one step; replaces what had it."""
        os.replace(source, target)

    def remove(self, path: Path) -> None:
        os.unlink(path)

    def sync_directory(self, path: Path) -> None:
        """Return when the names in a directory are durable, where the file system can tell."""
        try:
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno not in _NO_SYNC:
                raise


FILES = Files()


def make_directories(files: Files, path: Path) -> None:
    """Make a directory and those above it that are missing, durably."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for each in reversed(missing):
        try:
            files.make_directory(each)
        except FileExistsError:  # another process was faster
            if not each.is_dir():
                raise
        files.sync_directory(each.parent)


def write_some(files: Files, fd: int, content: memoryview | bytes, position: int) -> int:
    """Write the start of ``content``, at least one byte; how many bytes went.

    Raises:
        OSError: none could be written.
    """
    count = files.write(fd, content, position)
    if count == 0:
        raise OSError(errno.EIO, "nothing could be written")
    return count


def write_all(files: Files, fd: int, content: memoryview | bytes, position: int) -> int:
    """Write all of ``content``, and return where it ends."""
    rest = memoryview(content)
    while rest:
        count = write_some(files, fd, rest, position)
        rest, position = rest[count:], position + count
    return position


@contextmanager
def reported(verb: str, path: Path | str) -> Iterator[None]:
    """Turn the system's errors into one line that names what could not be done, and where.

    Raises:
        RunError: an `OSError` was raised.
    """
    try:
        yield
    except OSError as error:
        raise RunError(
            f"cannot {verb} '{path}': {error.strerror or error}; "
            "the same command continues when that is mended"
        ) from error
