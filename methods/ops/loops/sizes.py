"""Sizes that loops and their callers have to agree on. Planning needs some: nothing is imported."""

from __future__ import annotations

BLOCK = 2048
"""Elements of a block: what is in work fits the first-level cache."""

DOT_RUN = 1024
"""Elements whose products are summed up in one fixed order; see `methods.ops.torch_dots`."""

RUN = 512
"""Elements summed up in float32; sums of more are in float64. See `methods.ops.torch_sums`."""

LANES = 128
"""Sums that such a run is added up in at once."""

ROW_LANES = 512
"""Sums in float64 that a row is added up in at once; see `methods.ops.torch_softmax`."""

MOST_BUCKETS = 2049
"""The most buckets that `buckets` gives."""

_OCTAVES = 8
"""Powers of two below the largest magnitude within which buckets tell magnitudes apart."""


NOTED = BLOCK // 8
"""Bytes of notes on a block: a bit for each element; see `notes_bytes`."""


def whole_rows(row: int) -> int:
    """Elements of as many whole rows as fit a block, or of one."""
    return max(BLOCK // row, 1) * row


def buckets(row: int) -> tuple[int, int]:
    """How many buckets the magnitudes of a row are sorted into, and how many bits that ignores.

    The lowest bucket is for zeros, the next one for all that is small.
    """
    finer = 2
    while finer < 8 and _OCTAVES << finer < row // 4:
        finer += 1
    return (_OCTAVES << finer) + 1, 23 - finer


def work_bytes(vectors: int, row: int = 0) -> int:
    """Memory in bytes that any loop works in; it begins at a multiple of 8.

    ``vectors`` is how many it is given, ``row`` the length of rows in which elements are ranked.
    """
    blocks = 4 * (vectors + 5) * BLOCK
    ranks = 4 * (3 * whole_rows(row) + 8 * row + 4 * (MOST_BUCKETS + 1)) if row else 0
    doubles = 8 * (vectors + 2) * DOT_RUN
    return blocks + ranks + doubles


def notes_bytes(elements: int) -> int:
    """Bytes of notes on so many elements of one vector: a bit for each, in whole blocks.

    Of a block's n bytes, byte j has elements j, j + n, j + 2n …: neighbours lie in neighbouring
    bytes, which makes vector code of whoever packs and unpacks them.
    """
    return -(-elements // BLOCK) * NOTED
