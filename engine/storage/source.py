"""Where bytes come from: a source has a name, a size and an identity, and opens a reader."""

from __future__ import annotations

import enum
from typing import Protocol

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.memory.ledger import Block
from mergeloom.engine.memory.pages import lead, span_bytes
from mergeloom.engine.storage.file_system import FILES, Files


class IOMode(str, enum.Enum):
    """How files are accessed: through the page cache, around it, or as the file suggests."""

    AUTO = "auto"
    DIRECT = "direct"
    BUFFERED = "buffered"


@dataclass(frozen=True, slots=True)
class Access:
    """How sources are read; ``files`` is the file system that local ones lie in."""

    io: IOMode = IOMode.AUTO
    files: Files = FILES


class Reader(Protocol):
    """Reads one source by position. Safe to use from several threads."""

    @property
    def connections(self) -> int:
        """How many requests at once it likes best."""
        ...

    def read(self, start: int, stop: int, block: Block, at: int, alone: bool = True) -> None:
        """Read bytes ``[start, stop)`` so that the first lands at byte ``at`` of ``block``.

        If they are ``alone``, whole pages around them lie within the block and may be overwritten.

        Raises:
            RunError: the source ends early, is gone, has changed, or cannot be read.
        """
        ...

    def check_unchanged(self) -> None:
        """Make sure that the source is what was planned with.

        Raises:
            RunError: it has changed.
        """
        ...

    def close(self) -> None: ...


def read_part(reader: Reader, start: int, stop: int) -> bytes:
    """A few bytes of a source.

    Raises:
        RunError: they cannot be read.
    """
    block, at = Block(span_bytes(stop - start)), lead(start)
    reader.read(start, stop, block, at)
    return bytes(block.memory[at : at + stop - start])


class Source(Protocol):
    """Where the bytes of loads come from: a file, memory, a remote object.

    ``name`` is for messages, ``size`` in bytes. ``identity`` names the content for the
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
        """What the identity is made of, in words."""
        ...

    def identified(self, digest: str) -> Source:
        """The same source, of which more is known: the digest of a part of its bytes."""
        ...

    def open(self, access: Access) -> Reader:
        """Open it for reading.

        Raises:
            RunError: it is gone, has changed, or cannot be read.
        """
        ...
