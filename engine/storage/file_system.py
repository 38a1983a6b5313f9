"""The file system as an object with one method per system call, for all files of a run.

The program uses one `Files`. Tests pass subclasses that record calls, make them fail or return
early, or end the process during a call.
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
    fcntl = None  # type: ignore[assignment]  # callers ask whether it is there

DIRECT = getattr(os, "O_DIRECT", 0)
"""Flag of `Files.open` for direct requests, which bypass the page cache; 0 if unsupported."""

_ALL_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

_SEEK_LOCK = threading.Lock()
"""Serialises seek and read or write on platforms without positioned calls."""

_CLONE_RANGE = 0x4020940D
"""``FICLONERANGE`` of ``linux/fs.h``."""

_NO_SYNC = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES)
"""Errors of file systems that cannot sync directories, or do not allow opening them."""


class Files:
    """System calls. All raise `OSError`; positions and sizes are in bytes."""

    def open(self, path: Path | str, flags: int) -> int:
        """Open a file and return its descriptor; ``flags`` say whether to create it."""
        return os.open(path, flags | _ALL_FLAGS, 0o644)

    def close(self, fd: int) -> None:
        os.close(fd)

    def read(self, fd: int, buffer: memoryview, position: int) -> int:
        """Read into the start of ``buffer``; returns the number of bytes, 0 at the end of the
        file."""
        if hasattr(os, "preadv"):
            return os.preadv(fd, [buffer], position)
        with _SEEK_LOCK:
            os.lseek(fd, position, os.SEEK_SET)
            content = os.read(fd, len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def write(self, fd: int, content: memoryview | bytes, position: int) -> int:
        """Write the start of ``content``; returns the number of bytes written."""
        if hasattr(os, "pwritev"):
            return os.pwritev(fd, [content], position)
        with _SEEK_LOCK:
            os.lseek(fd, position, os.SEEK_SET)
            return os.write(fd, content)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def allocate(self, fd: int, size: int) -> None:
        """Allocate the first ``size`` bytes of a file, if the file system can."""
        if size and hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(fd, 0, size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                    raise

    def clone(self, source: int, start: int, nbytes: int, target: int, to: int) -> None:
        """Clone ``nbytes`` bytes at ``start`` of ``source`` to offset ``to`` of ``target``: both
        files share the blocks until one of them changes. All three numbers are multiples of the
        block size; ``source`` and ``target`` are descriptors."""
        if fcntl is None:
            raise OSError(errno.EOPNOTSUPP, "this system cannot clone files")
        fcntl.ioctl(target, _CLONE_RANGE, struct.pack("qQQQ", source, start, nbytes, to))

    def sync(self, fd: int) -> None:
        """Make the content and size of a file durable."""
        getattr(os, "fdatasync", os.fsync)(fd)

    def make_directory(self, path: Path) -> None:
        os.mkdir(path)

    def rename(self, source: Path, target: Path) -> None:
        """Rename a file within its directory, atomically, replacing an existing file."""
        os.replace(source, target)

    def remove(self, path: Path) -> None:
        os.unlink(path)

    def sync_directory(self, path: Path) -> None:
        """Make the names in a directory durable, if the file system supports it."""
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
    """Create a directory and its missing parents, durably."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for each in reversed(missing):
        try:
            files.make_directory(each)
        except FileExistsError:  # created by another process meanwhile
            if not each.is_dir():
                raise
        files.sync_directory(each.parent)


def write_some(files: Files, fd: int, content: memoryview | bytes, position: int) -> int:
    """Write the start of ``content``, at least one byte; returns the number of bytes written.

    Raises:
        OSError: no byte could be written.
    """
    count = files.write(fd, content, position)
    if count == 0:
        raise OSError(errno.EIO, "no byte was written")
    return count


def write_all(files: Files, fd: int, content: memoryview | bytes, position: int) -> int:
    """Write all of ``content``; returns the position after it.

    Raises:
        OSError: not all of it could be written.
    """
    rest = memoryview(content)
    while rest:
        count = write_some(files, fd, rest, position)
        rest, position = rest[count:], position + count
    return position


@contextmanager
def reported(verb: str, path: Path | str) -> Iterator[None]:
    """Turn an `OSError` into a one-line `RunError` with the failed action and the path.

    Raises:
        RunError: an `OSError` was raised.
    """
    try:
        yield
    except OSError as error:
        raise RunError(
            f"cannot {verb} '{path}': {error.strerror or error}",
            remedy="fix this, and the same command continues",
        ) from error
