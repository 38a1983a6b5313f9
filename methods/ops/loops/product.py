"""Add a low-rank product (up · down) to a matrix."""

from __future__ import annotations

import numpy as np

from mergeloom.methods.ops.loops.blocks import (
    Address,
    Array,
    Loop,
    compiled,
    fill,
    floats,
    fused,
    load,
)
from mergeloom.methods.ops.loops.convert import widened
from mergeloom.methods.ops.loops.sizes import PRODUCT_COLUMNS as COLUMNS

_ROWS = 8
"""Rows of the result computed at once, so that the rows of ``down`` stay in the cache."""
_STRIDE = COLUMNS + 16
"""Elements between rows in working memory: not a power of two, which would map all rows to the same
cache set."""


@compiled
def _add_eight(factors: Array, rows: Address, total: Array) -> None:
    """Add eight rows, each times its factor, in order; the sum stays in a register.

    Rows are `_STRIDE` elements apart.
    """
    count, step = total.size, 4 * _STRIDE
    r0, r1, r2, r3 = (
        floats(rows, count),
        floats(rows + step, count),
        floats(rows + 2 * step, count),
        floats(rows + 3 * step, count),
    )
    r4, r5, r6, r7 = (
        floats(rows + 4 * step, count),
        floats(rows + 5 * step, count),
        floats(rows + 6 * step, count),
        floats(rows + 7 * step, count),
    )
    f0, f1, f2, f3 = factors[0], factors[1], factors[2], factors[3]
    f4, f5, f6, f7 = factors[4], factors[5], factors[6], factors[7]
    for i in range(count):
        value = fused(f1, r1[i], fused(f0, r0[i], total[i]))
        value = fused(f3, r3[i], fused(f2, r2[i], value))
        value = fused(f5, r5[i], fused(f4, r4[i], value))
        total[i] = fused(f7, r7[i], fused(f6, r6[i], value))


@compiled
def _add_rows(factors: Array, rows: Address, total: Array) -> None:
    """Add fewer than eight rows, like `_add_eight`."""
    for number in range(factors.size):
        row, factor = floats(rows + 4 * _STRIDE * number, total.size), factors[number]
        for i in range(total.size):
            total[i] = fused(factor, row[i], total[i])


@Loop
def add_product(
    weight: Address,
    weight_bytes: int,
    down: Address,
    down_kind: int,
    up: Address,
    up_kind: int,
    rank: int,
    width: int,
    first: int,
    scale: float,
    out: Address,
    size: int,
    work: Address,
) -> None:
    """Add a low-rank product: `methods.ops.interface.Ops.add_product`.

    Rows of the result have ``width`` elements; ``first`` is the index of its first element.

         ▒▒▒▒▒▒▒▒ rows of down: one block of columns at a time, as float32
         ────────
      ▒▒ ████████ eight rows of the result, added to by eight rows of down at a time
      up
    """
    multiple, last = np.float32(scale), first + size
    longest = max(rank, COLUMNS)
    totals = floats(work + 4 * longest, _ROWS * _STRIDE)
    factors = floats(work + 4 * (longest + _ROWS * _STRIDE), _ROWS * rank)
    rows = work + 4 * (longest + _ROWS * (_STRIDE + rank))
    for left in range(0, width, COLUMNS):
        right, filled = min(left + COLUMNS, width), False
        for top in range(first // width, -(-last // width), _ROWS):
            for number in range(top, top + _ROWS):
                begin, end = max(number * width + left, first), min(number * width + right, last)
                if begin >= end:
                    continue
                if not filled:
                    filled = True
                    for each in range(rank):
                        row = floats(rows + 4 * _STRIDE * each, right - left)
                        widened(down, down_kind, each * width + left, row, work)
                own = factors[(number - top) * rank : (number - top + 1) * rank]
                widened(up, up_kind, number * rank, own, work)
            fill(totals, np.float32(0.0))
            for done in range(0, rank, 8):
                for number in range(top, top + _ROWS):
                    start = number * width + left
                    begin, end = max(start, first), min(number * width + right, last)
                    if begin >= end:
                        continue
                    inside = (number - top) * _STRIDE
                    total = totals[inside : inside + end - begin]
                    own = factors[(number - top) * rank + done : (number - top + 1) * rank]
                    shared = rows + 4 * (_STRIDE * done + begin - start)
                    if own.size >= 8:
                        _add_eight(own, shared, total)
                    else:
                        _add_rows(own, shared, total)
            for number in range(top, top + _ROWS):
                begin, end = max(number * width + left, first), min(number * width + right, last)
                if begin >= end:
                    continue
                total = totals[(number - top) * _STRIDE : (number - top + 1) * _STRIDE]
                block = floats(out + 4 * (begin - first), end - begin)
                load(weight, weight_bytes, begin - first, block)
                for i in range(block.size):
                    block[i] = fused(multiple, total[i], block[i])
