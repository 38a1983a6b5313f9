"""What loops and their callers have to agree on. Needs no compiler."""

from __future__ import annotations

import numpy as np

BLOCK = 2048
"""Elements of a block: what is in work fits the first-level cache."""

DOT_RUN = 1024
"""Elements that are summed up in float64; see `methods.dots`."""

RUN = 512
"""Elements that are summed up in float32; see `methods.sums`."""

LANES = 128
"""Sums that such a run is added up in at once."""

MOST_BUCKETS = 2049
"""The most buckets that `buckets` gives."""

MOST_HIGHS = 1 << 16
"""The most different high bits that magnitudes are counted by."""

_OCTAVES = 8
"""Powers of two below the largest magnitude within which buckets tell magnitudes apart."""

VECTOR = np.dtype(
    [
        ("address", np.int64),
        ("bytes", np.int64),
        ("minus", np.int64),
        ("minus_bytes", np.int64),
        ("factors", np.int64),
        ("factor_row", np.int64),
        ("above", np.bool_),
        ("above_end", np.int64),
        ("above_before", np.float32),
        ("above_after", np.float32),
        ("upto", np.bool_),
        ("upto_end", np.int64),
        ("upto_before", np.float32),
        ("upto_after", np.float32),
        ("draws", np.bool_),
        ("first", np.uint32),
        ("second", np.uint32),
        ("word_end", np.int64),
        ("next_first", np.uint32),
        ("next_second", np.uint32),
        ("bound", np.int32),
        ("steps", np.int64),
        ("ranked_row", np.int64),
        ("vote", np.float32),
        ("coefficient", np.float32),
        ("share", np.float32),
    ],
    align=True,
)
"""A vector: the addresses of its operands (``minus`` may be 0: none), the bytes of an element, the
address of a factor for each row (or 0) and the length of those rows, the conditions of
`methods.compiled.Kept`, and the weights it has. ``ranked_row`` is the length of a row where
elements are ranked, else 0."""


def block_length(row: int) -> int:
    """Elements that are worked on at once: whole rows where elements are ranked in such rows."""
    return max(BLOCK // row, 1) * row if row else BLOCK


def buckets(row: int) -> tuple[int, int]:
    """How many buckets the magnitudes of a row are sorted into, and how many bits that ignores.

    The lowest bucket is for zeros, the next one for all that is small.
    """
    finer = 2
    while finer < 8 and _OCTAVES << finer < row // 4:
        finer += 1
    return (_OCTAVES << finer) + 1, 23 - finer


def work_bytes(vectors: int, row: int) -> int:
    """Memory in bytes, at a multiple of 8, that any loop works in.

    ``vectors`` is how many it is given, ``row`` the length of rows in which elements are ranked.
    """
    blocks = 4 * (vectors + 5) * block_length(row)
    ranks = 4 * (8 * row + 4 * (MOST_BUCKETS + 1))
    doubles = 8 * (vectors + 2) * DOT_RUN
    return blocks + ranks + doubles + MOST_HIGHS
