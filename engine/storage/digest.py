"""Digests of tensors: grains are digested in any order and combined in grain order.

xxh3-128 detects flipped, missing and swapped bytes at memory speed. It does not protect against
deliberate forgery.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import xxhash

ALGORITHM = "xxh3-128/grains"
PIECE_BYTES = 1 << 20
"""Bytes of a file read at once."""

_DIGEST_BYTES = 16


ContentDigest = xxhash.xxh3_128
"""Computes the digest of content given piece by piece."""


def digest_of(pieces: Iterable[bytes | memoryview]) -> str:
    """The digest of the concatenated ``pieces``."""
    digest = ContentDigest()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def file_pieces(path: Path) -> Iterator[bytes]:
    """The content of a file, piece by piece.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


class TensorDigest:
    """Collects the digests of a tensor's grains; distinct grains may be added concurrently."""

    __slots__ = ("_grains",)

    def __init__(self, grains: int) -> None:
        self._grains = bytearray(grains * _DIGEST_BYTES)

    def add(self, index: int, content: memoryview) -> None:
        """Digest the bytes of grain ``index``."""
        self._grains[index * _DIGEST_BYTES : (index + 1) * _DIGEST_BYTES] = xxhash.xxh3_128_digest(
            content
        )

    def hexdigest(self) -> str:
        """The digest of the tensor; all grains must have been added."""
        return xxhash.xxh3_128_hexdigest(bytes(self._grains))
