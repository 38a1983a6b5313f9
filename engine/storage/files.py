"""Positioned reads and writes between files and caller-owned blocks.

Direct requests bypass the page cache: on a cold disk they are faster, and they leave no cached
pages that count towards a memory limit. They require file position, memory address and length to be
multiples of a page. A reader therefore widens its requests to whole pages; a writer writes the
whole pages of a tile directly, and partial pages together with the adjacent tile
(`engine.storage.shared_pages`) or through the page cache. If the file system refuses direct
requests, or the input is cached already, the same calls use the page cache.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from random import random

from mergeloom.engine.base.errors import FILE_CHANGED, CheckpointError, RunError, unreadable
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.memory.ledger import Block
from mergeloom.engine.memory.pages import PAGE
from mergeloom.engine.storage.file_system import (
    DIRECT,
    FILES,
    Files,
    make_directories,
    reported,
    write_all,
    write_some,
)
from mergeloom.engine.storage.shared_pages import Part, SharedPages
from mergeloom.engine.storage.source import IOMode, ReadOptions

_SAMPLES = 32
"""Number of pages sampled to find out whether a file is in the page cache."""
_SPLIT_FROM_BYTES = 16 * PAGE
"""Reads of fewer bytes in whole pages are not split into direct and buffered parts."""
_SAMPLE_FROM_BYTES = 1 << 20
"""Bytes of a read from which the page cache is sampled first; reads of headers and small files are
shorter."""

MODIFIED = ", modified "
"""The text before the modification time in the description of a source."""


@dataclass(frozen=True, slots=True)
class FileSource:
    """A local file as a source of loads.

    ``size`` is in bytes; ``modified`` is the modification time in nanoseconds since 1970,
    ``header_digest`` the digest of the header, if known.
    """

    path: str
    size: int
    modified: int
    identity: str
    header_digest: str = ""

    @property
    def description(self) -> str:
        """The parts of the identity as text."""
        return f"{self.size} bytes, header {self.header_digest}{MODIFIED}{self.modified}"

    @property
    def name(self) -> str:
        return self.path

    @staticmethod
    def at(path: Path) -> FileSource:
        """The file at ``path``, identified by its current size and modification time.

        Raises:
            CheckpointError: the file is missing or cannot be accessed.
        """
        try:
            status = path.stat()
        except OSError as error:
            raise unreadable(path, error, CheckpointError) from error
        identity = f"{status.st_size}-{status.st_mtime_ns}"
        return FileSource(str(path), status.st_size, status.st_mtime_ns, identity)

    def identified(self, digest: str) -> FileSource:
        """The same file with the digest of its header."""
        return replace(self, identity=f"{digest}-{self.identity}", header_digest=digest)

    def open(self, options: ReadOptions) -> FileReader:
        """Open the file.

        Raises:
            RunError: the file is missing, has changed, or cannot be read.
        """
        return FileReader(self, options.io, options.files)


class FileReader:
    """Reads a file by position, directly or through the page cache. Thread-safe."""

    connections = 6

    def __init__(self, source: FileSource, mode: IOMode, files: Files = FILES) -> None:
        self.source = source
        self._files = files
        self._direct = -1
        with reported("open", source.path):
            self._fd = files.open(source.path, os.O_RDONLY)
        try:
            self.check_unchanged()
        except BaseException:
            self.close()
            raise
        self._is_cached: bool | None = None
        """Whether most of the file is in the page cache; ``None`` if not determined yet."""
        if mode is not IOMode.BUFFERED:
            self._is_cached = _is_cached(self._fd)
        direct = mode is IOMode.DIRECT or (mode is IOMode.AUTO and not self._is_cached)
        if direct and DIRECT:
            with contextlib.suppress(OSError):
                self._direct = files.open(source.path, os.O_RDONLY | DIRECT)

    @property
    def is_direct(self) -> bool:
        """Whether requests bypass the page cache."""
        return self._direct >= 0

    def read(
        self, start: int, stop: int, block: Block, at: int, may_overwrite: bool = True
    ) -> None:
        """Read file bytes ``[start, stop)`` to byte ``at`` of ``block``.

        Requests can be direct if ``at`` is congruent to ``start`` modulo `PAGE`. With
        ``may_overwrite``, the bytes of the block before and after, up to the page boundaries, may
        be overwritten.

        Raises:
            RunError: the file ends early, is gone, has changed, or cannot be read.
        """
        direct = self._direct >= 0 and stop - start >= PAGE and (at - start) % PAGE == 0
        if may_overwrite or not direct:
            self._read(start, stop, block, at, direct)
            return
        first, last = -(-start // PAGE) * PAGE, stop // PAGE * PAGE
        if last - first < _SPLIT_FROM_BYTES:
            self._read(start, stop, block, at, False)
            return
        for begin, end in ((start, first), (first, last), (last, stop)):
            if begin < end:
                self._read(begin, end, block, at + begin - start, begin == first)

    def _read(self, start: int, stop: int, block: Block, at: int, direct: bool) -> None:
        before = start % PAGE if direct else 0
        length = stop - start + before
        drop = not direct and self._should_drop(length)
        if direct:
            length = -(-length // PAGE) * PAGE
        view = block.memory[at - before : at - before + length]
        position, needed = start - before, stop - start + before
        done = 0
        with reported("read", self.source.path):
            while done < needed:
                fd = self._direct if direct and done % PAGE == 0 else self._fd
                try:
                    count = self._files.read(fd, view[done:], position + done)
                except OSError as error:
                    if fd == self._fd or error.errno != errno.EINVAL:
                        raise
                    direct = False
                    continue
                if count == 0:
                    raise RunError(
                        f"'{self.source.path}' ends at byte {position + done} instead of {stop}: "
                        "it changed while it was read",
                        remedy=FILE_CHANGED,
                    )
                done += count
            if drop:
                os.posix_fadvise(self._fd, position, done, os.POSIX_FADV_DONTNEED)

    def _should_drop(self, nbytes: int) -> bool:
        """Whether to remove the pages of a read of ``nbytes`` bytes from the page cache afterwards:
        yes, unless the file was cached before."""
        if not hasattr(os, "posix_fadvise"):
            return False
        if self._is_cached is None:
            if nbytes < _SAMPLE_FROM_BYTES:
                return False
            self._is_cached = _is_cached(self._fd)
        return not self._is_cached

    def clone(self, start: int, stop: int, writer: FileWriter, to: int) -> None:
        """Clone bytes ``[start, stop)`` of this file to offset ``to`` of the file of ``writer``.

        Raises:
            RunError: the file system cannot clone them.
        """
        with reported("clone", self.source.path):
            writer.clone(self._fd, start, stop - start, to)

    def check_unchanged(self) -> None:
        """Check that the file has not changed since planning.

        Raises:
            RunError: its size or modification time has changed.
        """
        with reported("read", self.source.path):
            now = os.fstat(self._fd)
        if (now.st_size, now.st_mtime_ns) != (self.source.size, self.source.modified):
            raise RunError(f"'{self.source.path}' has changed since planning", remedy=FILE_CHANGED)

    def close(self) -> None:
        for fd in (self._fd, self._direct):
            if fd >= 0:
                self._files.close(fd)
        self._fd = self._direct = -1


class FileWriter:
    """Writes to one preallocated file of ``size`` bytes, at any position. Thread-safe."""

    def __init__(
        self, path: Path, size: int, mode: IOMode, files: Files = FILES, allocate: bool = True
    ) -> None:
        self.path = path
        self._allocate = allocate
        self.size = size
        self._files = files
        self._fd = self._direct = -1
        self._shared = SharedPages()
        try:
            with reported("create", path):
                self._open(mode)
        except BaseException:
            self.close()
            raise

    def _open(self, mode: IOMode) -> None:
        flags = os.O_RDWR | os.O_CREAT
        self._fd = self._files.open(self.path, flags)
        if os.fstat(self._fd).st_size != self.size:
            self._files.truncate(self._fd, self.size)
        if mode is not IOMode.BUFFERED and DIRECT:
            with contextlib.suppress(OSError):
                self._direct = self._files.open(self.path, flags | DIRECT)
        if self._direct >= 0 and self._allocate:
            self._files.allocate(self._fd, self.size)
        # The journal refers to this file, so it must exist after a power failure.
        self._files.sync_directory(self.path.parent)

    @property
    def is_direct(self) -> bool:
        """Whether whole pages bypass the page cache."""
        return self._direct >= 0

    def write(self, start: int, stop: int, block: Block, at: int) -> None:
        """Write the bytes at ``at`` of ``block`` to file bytes ``[start, stop)``.

        Whole pages are written directly if ``at`` is congruent to ``start`` modulo `PAGE`; then the
        bytes of the block up to the next page boundaries may be overwritten. Partial pages may be
        kept until `flush` or `sync`.

        Raises:
            RunError: the disk is full, or writing failed for another reason.
        """
        offset = at - start
        with reported("write", self.path):
            if self._direct >= 0 and offset % PAGE == 0:
                self._write_pages(start, stop, block, offset)
                return
            self._write(self._fd, start, stop, block, offset)
            if self._direct < 0:
                self._drop_cached_pages()

    def _write_pages(self, start: int, stop: int, block: Block, offset: int) -> None:
        """Write whole pages directly, including pages completed by kept parts."""
        first, last = -(-start // PAGE) * PAGE, stop // PAGE * PAGE
        ends = [(start, first), (last, stop)]
        if first > last:  # all bytes are in one page
            ends, first = [(start, stop)], last
        joined: list[Part] = []
        written = False
        try:
            for begin, end in ends:
                if begin == end:
                    continue
                rest = self._shared.join(begin, block.memory[begin + offset : end + offset])
                if rest is not None:
                    joined.append(rest)
                    there = rest[0] + offset
                    block.memory[there : there + len(rest[1])] = rest[1]
                    first, last = (
                        min(first, begin // PAGE * PAGE),
                        max(last, -(-end // PAGE) * PAGE),
                    )
            self._write(self._direct, first, last, block, offset)
            written = True
        finally:
            self._shared.pages_written(joined, written)

    def clone(self, source: int, start: int, nbytes: int, to: int) -> None:
        """Clone bytes of the descriptor ``source`` to offset ``to``; see `Files.clone`."""
        self._files.clone(source, start, nbytes, self._fd, to)

    def write_bytes(self, start: int, content: bytes) -> None:
        """Write a few bytes, such as a header, through the page cache."""
        with reported("write", self.path):
            write_all(self._files, self._fd, content, start)

    def sync(self) -> None:
        """Make everything written so far durable."""
        self.flush()
        with reported("write", self.path):
            self._files.sync(self._fd)
            if self._direct < 0:
                self._drop_cached_pages()

    def flush(self) -> None:
        """Write kept parts of pages, so that everything written can be read."""
        parts = self._shared.take()
        try:
            with reported("write", self.path):
                while parts:
                    start, content = parts[-1]
                    write_all(self._files, self._fd, content, start)
                    parts.pop()
        finally:
            self._shared.give_back(parts)

    def close(self) -> None:
        for fd in (self._fd, self._direct):
            if fd >= 0:
                self._files.close(fd)
        self._fd = self._direct = -1

    def _drop_cached_pages(self) -> None:
        """Start writing dirty pages to the disk, and remove clean ones from the page cache.

        Left to the kernel, dirty pages would fill a memory limit and could not be freed.
        """
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def _write(self, fd: int, start: int, stop: int, block: Block, offset: int) -> None:
        while start < stop:
            view = block.memory[start + offset : stop + offset]
            start += write_some(self._files, fd, view, start)
            if start < stop and fd == self._direct and start % PAGE:
                fd = self._fd  # a short direct write ended within a page


def write_file(path: Path, content: bytes | Iterable[bytes], files: Files = FILES) -> None:
    """Replace a small file atomically (temporary file, sync, rename); creates its directory.

    Raises:
        RunError: the disk is full, or writing failed for another reason.
    """
    temporary = path.with_name(path.name + ".partial")
    with reported("write", path):
        make_directories(files, path.parent)
        fd = files.open(temporary, os.O_WRONLY | os.O_CREAT)
        try:
            files.truncate(fd, 0)
            position = 0
            for piece in (content,) if isinstance(content, bytes) else content:
                position = write_all(files, fd, piece, position)
            files.sync(fd)
        finally:
            files.close(fd)
        files.rename(temporary, path)
        files.sync_directory(path.parent)


def _is_cached(fd: int) -> bool:
    """Whether most of a file is in the page cache, from a sample of its pages.

    The kernel starts to read a page whose presence is queried, so each sample is random: a later
    query of the same pages would find them cached.
    """
    size = os.fstat(fd).st_size
    if not hasattr(os, "RWF_NOWAIT") or size == 0:
        return False
    hits = 0
    probe = bytearray(1)
    for sample in range(_SAMPLES):
        position = int(size * (sample + random()) / _SAMPLES)
        try:
            os.preadv(fd, [probe], position, os.RWF_NOWAIT)
            hits += 1
        except OSError:
            pass
    return hits > _SAMPLES * 3 // 4
