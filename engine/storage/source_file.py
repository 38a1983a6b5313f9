"""A source as a file object, for libraries that read files."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mergeloom.engine.base.errors import CheckpointError, RunError, unreadable
from mergeloom.engine.storage.digest import PIECE_BYTES
from mergeloom.engine.storage.source import IOMode, Reader, ReadOptions, Source, read_part

_BUFFER_BYTES = 1 << 16


class SourceFile(io.RawIOBase):
    """A seekable, read-only file object over a source of ``size`` bytes."""

    def __init__(self, reader: Reader, size: int) -> None:
        self._reader = reader
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative position {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        stop = min(self._position + len(buffer), self._size)
        if stop <= self._position:
            return 0
        content = read_part(self._reader, self._position, stop)
        buffer[: len(content)] = content
        self._position = stop
        return len(content)


def source_pieces(reader: Reader, size: int) -> Iterator[bytes]:
    """All bytes of a source of ``size`` bytes, piece by piece.

    Raises:
        RunError: they cannot be read.
    """
    for start in range(0, size, PIECE_BYTES):
        yield read_part(reader, start, min(start + PIECE_BYTES, size))


@contextmanager
def planning_reader(source: Source) -> Iterator[Reader]:
    """A reader of a source for planning: failures are errors of the checkpoint, not of a run.

    Raises:
        CheckpointError: the source cannot be opened or read.
    """
    try:
        with contextlib.closing(source.open(ReadOptions(IOMode.BUFFERED))) as reader:
            yield reader
    except RunError as error:
        if isinstance(error.__cause__, OSError):
            raise unreadable(source.name, error.__cause__, CheckpointError) from error
        raise CheckpointError(
            f"cannot read '{source.name}': {error.cause}", remedy=error.remedy
        ) from error


@contextmanager
def opened_file(source: Source) -> Iterator[io.BufferedReader]:
    """A source as a file object that is closed afterwards.

    Raises:
        CheckpointError: it cannot be opened or read.
    """
    with planning_reader(source) as reader:
        yield io.BufferedReader(SourceFile(reader, source.size), _BUFFER_BYTES)
