"""Small files of the output other than shards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from mergeloom.engine.base.errors import FILE_CHANGED, RunError
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.storage.digest import ContentDigest, digest_of
from mergeloom.engine.storage.source import IOMode, ReadOptions, Source
from mergeloom.engine.storage.source_file import planning_reader, source_pieces

DIGEST = "digest "
"""Prefix of values in an identity that are digests, which are not shown to people."""


@dataclass(frozen=True, slots=True)
class SideFile:
    """A small file of the output: its content, or the source to copy.

    ``digest`` is the digest of the content at planning time.
    """

    name: str
    content: bytes | Source
    digest: str
    size: int

    @classmethod
    def from_content(cls, name: str, content: bytes) -> SideFile:
        """A file with the given content."""
        return cls(name, content, digest_of([content]), len(content))

    @classmethod
    def copy_of(cls, name: str, source: Source) -> SideFile:
        """A copy of ``source``.

        Raises:
            CheckpointError: it cannot be read.
        """
        with planning_reader(source) as reader:
            return cls(name, source, digest_of(source_pieces(reader, source.size)), source.size)

    def pieces(self) -> Iterator[bytes]:
        """The content in pieces.

        Raises:
            RunError: it cannot be read, or has changed since planning.
        """
        if isinstance(self.content, bytes):
            yield self.content
            return
        digest = ContentDigest()
        with contextlib.closing(self.content.open(ReadOptions(IOMode.BUFFERED))) as reader:
            for piece in source_pieces(reader, self.content.size):
                digest.update(piece)
                yield piece
        if digest.hexdigest() != self.digest:
            raise RunError(f"'{self.content.name}' has changed since planning", remedy=FILE_CHANGED)
