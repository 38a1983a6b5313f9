"""Sizes that loops and their callers have to agree on. Planning needs some: nothing is imported."""

from __future__ import annotations

import enum


class Kind(enum.IntEnum):
    """Types of elements, by the names that safetensors headers have for them."""

    BF16 = 0
    F32 = 1
    F16 = 2
    F64 = 3
    F8_E4M3 = 4
    F8_E5M2 = 5
    I64 = 6
    I32 = 7
    I16 = 8
    I8 = 9
    U64 = 10
    U32 = 11
    U16 = 12
    U8 = 13
    BOOL = 14
    F8_E8M0 = 15
    F8_E4M3FNUZ = 16
    F8_E5M2FNUZ = 17
    F4 = 18
    I4 = 19
    U4 = 20
    U4_UPPER = 21
    U4_EVEN = 22
    U2 = 23


BLOCK = 2048
"""Elements of a block: what is in work fits the first-level cache."""

DOT_RUN = 1024
"""Elements whose products are summed up in one fixed order; see `methods.dots`."""

RUN = 512
"""Elements whose magnitudes are summed up in one fixed order."""

LANES = 128
"""Sums that such a run is added up in at once."""

ROW_LANES = 512
"""Sums in float64 that a row is added up in at once; see `methods.divergence`."""

PRODUCT_COLUMNS = 512
"""Columns of a product that are computed at once: so many of a few dozen rows fit a cache."""

MOST_BUCKETS = 2049
"""The most buckets that `buckets` gives."""

_OCTAVES = 8
"""Powers of two below the largest magnitude within which buckets tell magnitudes apart."""


MARKED = BLOCK // 8
"""Bytes of the marks of a block: a bit for each element; see `marks_bytes`."""


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


def product_bytes(rank: int) -> int:
    """Memory in bytes that the loop works in that adds a product of so many rows."""
    return 4 * ((rank + 9) * (PRODUCT_COLUMNS + 16) + 9 * rank)


def marks_bytes(elements: int) -> int:
    """Bytes of marks on ``elements`` elements of one vector: a bit for each, in whole blocks.

    Of a block's n bytes, byte j has elements j, j + n, j + 2n …: neighbours lie in neighbouring
    bytes, which makes vector code of the loops that pack and unpack them.
    """
    return -(-elements // BLOCK) * MARKED


PANEL = 32
"""Rows of a long matrix whose products are added up at once."""

LARGE, FEW = 256, 8
"""From this shorter side on, and where no more than one in so many singular values is wanted, these
are found by Lanczos' method."""

TILE = 64
"""Rows and columns of a Gram matrix that they are added to at once."""


def leading_bytes(size: int, rank: int) -> int:
    """Memory in bytes that `leading_of_matrix` works in; ``size`` is the shorter side."""
    return 8 * (size * size + (PANEL + 11 + min(rank, size)) * size)


def factors_bytes(inner: int, rows: int) -> int:
    """Memory in bytes that `leading_of_product` works in; ``inner`` is the sum of the ranks."""
    return 8 * (5 * inner * inner + (PANEL + 15) * inner) + 4 * (rows * inner + 1)


ATOMS = 64
"""Rows of a table that targets are compared with at once; see `methods.ops.loops.tables`."""


def pursuit_bytes(count: int, most: int, width: int) -> int:
    """Memory in bytes that `tables.pursue_scan` and `pursue_fit` work in."""
    doubles = 8 * (count * most * (most + 1) + width)
    rows = count * (most + 1)
    return doubles + 4 * (rows * width + count * (ATOMS + 3) + ATOMS * (ATOMS + 1))


def neighbours_bytes(count: int, width: int) -> int:
    """Memory in bytes that `tables.neighbours_scan` works in."""
    return 4 * (width + count * ATOMS + ATOMS * (ATOMS + 1)) + 8 * ATOMS


def mixing_bytes(count: int, width: int) -> int:
    """Memory in bytes that `tables.mix_scan` works in."""
    return 8 * count * width + 4 * width
