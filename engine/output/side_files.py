"""Small files beside the shards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mergeloom.engine.base.errors import RunError
from mergeloom.engine.storage.digest import ContentDigest, digest_of, pieces_of
from mergeloom.engine.storage.file_system import reported

DIGEST = "digest "
"""How a value of an identity begins that means nothing to people."""


@dataclass(frozen=True, slots=True)
class SideFile:
    """A small file of the output: its bytes, or the path of the file to copy.

    ``digest`` is that of the content when the file was planned.
    """

    name: str
    content: bytes | Path
    digest: str
    size: int

    @classmethod
    def made(cls, name: str, content: bytes) -> SideFile:
        """A file of the output with this content."""
        return cls(name, content, digest_of([content]), len(content))

    @classmethod
    def copied(cls, name: str, path: Path) -> SideFile:
        """A copy of the file at ``path``.

        Raises:
            OSError: it cannot be read.
        """
        return cls(name, path, digest_of(pieces_of(path)), path.stat().st_size)

    def pieces(self) -> Iterator[bytes]:
        """The content, piece by piece.

        Raises:
            RunError: it cannot be read, or is no longer what was planned with.
        """
        if isinstance(self.content, bytes):
            yield self.content
            return
        digest = ContentDigest()
        with reported("read", self.content):
            for piece in pieces_of(self.content):
                digest.update(piece)
                yield piece
        if digest.hexdigest() != self.digest:
            raise RunError(
                f"'{self.content}' changed since it was planned with: restore it and the same "
                "command continues, or merge what is there now with --restart"
            )
