"""Sources of bytes: a source has a name, a size and an identity, and opens a reader."""

from __future__ import annotations

import enum
from typing import Protocol

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.memory.ledger import Block
from mergeloom.engine.memory.pages import page_offset, span_bytes
from mergeloom.engine.storage.file_system import FILES, Files


class IOMode(str, enum.Enum):
    """How files are read and written: through the page cache, directly, or as is best for each."""

    AUTO = "auto"
    DIRECT = "direct"
    BUFFERED = "buffered"


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How sources are read; ``files`` has the system calls for local files."""

    io: IOMode = IOMode.AUTO
    files: Files = FILES


class Reader(Protocol):
    """Reads one source by position. Thread-safe."""

    @property
    def connections(self) -> int:
        """The best number of concurrent requests."""
        ...

    def read(
        self, start: int, stop: int, block: Block, at: int, may_overwrite: bool = True
    ) -> None:
        """Read bytes ``[start, stop)`` to byte ``at`` of ``block``.

        With ``may_overwrite``, the bytes of the block before and after, up to the page boundaries,
        may be overwritten.

        Raises:
            RunError: the source ends early, is missing, has changed, or cannot be read.
        """
        ...

    def check_unchanged(self) -> None:
        """Check that the source has not changed since planning.

        Raises:
            RunError: it has changed.
        """
        ...

    def close(self) -> None: ...


def read_part(reader: Reader, start: int, stop: int) -> bytes:
    """Bytes ``[start, stop)`` of a source; for small ranges.

    Raises:
        RunError: they cannot be read.
    """
    block, at = Block(span_bytes(stop - start)), page_offset(start)
    reader.read(start, stop, block, at)
    return bytes(block.memory[at : at + stop - start])


class Source(Protocol):
    """A source of the bytes of loads: a file, memory, a remote object.

    ``name`` is for messages, ``size`` is in bytes. ``identity`` represents the content in the
    fingerprint: equal identities mean equal bytes.
    """

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    @property
    def identity(self) -> str: ...

    @property
    def description(self) -> str:
        """The parts of the identity as text for people."""
        ...

    def identified(self, digest: str) -> Source:
        """The same source with the digest of part of its bytes added to its identity."""
        ...

    def open(self, options: ReadOptions) -> Reader:
        """Open the source for reading.

        Raises:
            RunError: the source is missing, has changed, or cannot be read.
        """
        ...
