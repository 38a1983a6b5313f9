"""Sizes shared by loops and their callers; imports nothing heavy, because planning uses some."""

from __future__ import annotations

import enum


class ElementType(enum.IntEnum):
    """Dtypes as numbers for loops, under their codes in `engine.base.dtypes`."""

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
"""Elements of a block, so that the blocks in working memory fit the first-level cache."""

DOT_RUN = 1024
"""Elements per run of a dot product; each run is summed in a fixed order (`sum.dots`)."""

SUM_RUN = 512
"""Elements per run of a sum of magnitudes, likewise (`sum.magnitudes`)."""

DOT_LANES = 128
"""Parallel partial sums of a run of a dot product."""

ROW_LANES = 512
"""Parallel float64 partial sums of a row (`softmax.divergences`)."""

PRODUCT_COLUMNS = 512
"""Columns of a product computed at once, so that a few dozen rows of them fit the cache."""

MAX_BUCKETS = 2050
"""Maximum number of buckets (`buckets`)."""

_OCTAVES = 8
"""Number of powers of two, below the largest magnitude, that are divided into buckets."""


MARK_BYTES = BLOCK // 8
"""Bytes of the marks of a block: one bit per element; see `marks_bytes`."""


def whole_rows(row: int) -> int:
    """Number of elements of the whole rows that fit a block, at least one row."""
    return max(BLOCK // row, 1) * row


def buckets(row: int) -> tuple[int, int]:
    """The number of buckets for the magnitudes of a row, and the number of low bits ignored.

    Bucket 0 is for zeros, bucket 1 for all small magnitudes. Then there are two for each value of
    the other bits: the first for the magnitude whose low bits are 0, the second for the rest.
    """
    finer = 2
    while finer < 8 and _OCTAVES << finer < row // 4:
        finer += 1
    return (_OCTAVES << finer) + 2, 24 - finer


def work_bytes(vectors: int, row: int = 0) -> int:
    """Size in bytes of ``work``, the working memory of any loop, which is aligned to 8 bytes.

    ``vectors`` is the number of vectors, ``row`` the length of rows for ranking, 0 for none.
    """
    blocks = 4 * (vectors + 5) * BLOCK
    ranks = 4 * (3 * whole_rows(row) + 8 * row + 4 * (MAX_BUCKETS + 1)) if row else 0
    doubles = 8 * (vectors + 2) * DOT_RUN
    return blocks + ranks + doubles


def product_bytes(rank: int) -> int:
    """Size in bytes of the working memory of `product.add_product`."""
    return 4 * ((rank + 9) * (PRODUCT_COLUMNS + 16) + 9 * rank)


def marks_bytes(elements: int) -> int:
    """Size in bytes of the marks of ``elements`` elements: one bit each, in whole blocks.

    Byte j of a block of n bytes has elements j, j + n, j + 2n, …: adjacent elements are in adjacent
    bytes, so that packing and unpacking vectorise.
    """
    return -(-elements // BLOCK) * MARK_BYTES


MAX_RANKED = 1 << 14
"""Maximum number of elements for `count.find_ranks`, so that its working memory fits the cache."""


def ranking_bytes(elements: int) -> int:
    """Size in bytes of the working memory of `count.find_ranks`."""
    return 4 * (elements + max(elements, BLOCK))


GRAM_PANEL = 32
"""Rows of a long matrix that are added to a Gram matrix at once."""

LANCZOS_MIN_SIZE, LANCZOS_RATIO = 256, 8
"""Lanczos' method is used if the shorter side is at least `LANCZOS_MIN_SIZE` and at most one in
`LANCZOS_RATIO` singular values is wanted."""

GRAM_TILE = 64
"""Rows and columns of the tile of a Gram matrix that is updated at once."""


def leading_bytes(size: int, rank: int) -> int:
    """Size in bytes of the working memory of `leading_of_matrix`; ``size`` is the shorter side."""
    return 8 * (size * size + (GRAM_PANEL + 11 + min(rank, size)) * size)


def factors_bytes(inner: int, rows: int) -> int:
    """Size in bytes of the working memory of `leading_of_product`; ``inner`` sums the ranks."""
    return 8 * (5 * inner * inner + (GRAM_PANEL + 15) * inner) + 4 * (rows * inner + 1)


ATOM_TILE = 64
"""Rows of a table that targets are compared with at once (`methods.ops.loops.tables`)."""


def pursuit_bytes(count: int, most: int, width: int) -> int:
    """Size in bytes of the working memory of `tables.pursue_scan` and `pursue_fit`."""
    doubles = 8 * (count * most * (most + 1) + width)
    rows = count * (most + 1)
    return doubles + 4 * (rows * width + count * (ATOM_TILE + 3) + ATOM_TILE * (ATOM_TILE + 1))


def neighbours_bytes(count: int, width: int) -> int:
    """Size in bytes of the working memory of `tables.neighbours_scan`."""
    return 4 * (width + count * ATOM_TILE + ATOM_TILE * (ATOM_TILE + 1)) + 8 * ATOM_TILE


def mixing_bytes(count: int, width: int) -> int:
    """Size in bytes of the working memory of `tables.mix_scan`."""
    return 8 * count * width + 4 * width
