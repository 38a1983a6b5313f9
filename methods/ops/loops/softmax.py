"""Sums of exponentials of rows, for the divergences of their softmax."""

from __future__ import annotations

from typing import Any

import numpy as np

from mergeloom.methods.ops.loops.blocks import (
    Address,
    Array,
    Loop,
    compiled,
    doubles,
    fill,
    floats,
    fused_double,
    int16s,
    int32s,
    load,
)
from mergeloom.methods.ops.loops.exp_series import (
    EXPONENT_BIAS,
    LEAST,
    LN2_HIGH,
    LN2_LOW,
    LOG2_E,
    MANTISSA_BITS,
    TERMS,
    TO_INTEGER,
)
from mergeloom.methods.ops.loops.sizes import BLOCK, ROW_LANES


@compiled
def _highest(address: Address, size: int, start: int, count: int, work: Address) -> Any:
    """The largest of ``count`` elements; any value if one of them is NaN.

    Compares bits as integers: these are ordered like the numbers once all bits but the sign of
    negative numbers are inverted.
    """
    bits = int32s(work, 1)
    if size == 2:
        narrow = int16s(address + 2 * start, count)
        top = np.int16(-32768)
        for i in range(count):
            top = max(top, _ordered_short(narrow[i]))
        bits[0] = np.int32(_ordered_short(top)) << 16
    else:
        wide = int32s(address + 4 * start, count)
        highest = np.int32(-2147483648)
        for i in range(count):
            highest = max(highest, _ordered(wide[i]))
        bits[0] = _ordered(highest)
    return np.float64(floats(work, 1)[0])


@compiled
def _ordered_short(bits: Any) -> Any:
    """Map the bits of a bfloat16 number to an integer of the same order; its own inverse."""
    return np.int16(bits ^ np.int16(np.int16(bits >> 15) & np.int16(0x7FFF)))


@compiled
def _ordered(bits: Any) -> Any:
    """Map the bits of a float32 number to an integer of the same order; its own inverse."""
    return np.int32(bits ^ np.int32(np.int32(bits >> 31) & np.int32(0x7FFFFFFF)))


@compiled
def _exponential(block: Array, highest: Any, out: Array, powers: Array) -> None:
    """Write exp(x - ``highest``) of a block's float32 numbers x, in float64.

    ``powers`` is working memory of the same length. See `methods.ops.loops.exp_series`.
    """
    for i in range(block.size):
        x = max(np.float64(block[i]) - highest, LEAST)
        whole = fused_double(x, LOG2_E, TO_INTEGER)
        powers[i] = whole
        whole -= TO_INTEGER
        out[i] = fused_double(whole, -LN2_LOW, fused_double(whole, -LN2_HIGH, x))
    bits = powers.view(np.int64)
    for i in range(block.size):
        bits[i] = (bits[i] + EXPONENT_BIAS) << MANTISSA_BITS
    for i in range(block.size):
        rest = out[i]
        power = fused_double(rest, TERMS[-1], TERMS[-2])
        for k in range(len(TERMS) - 3, -1, -1):
            power = fused_double(power, rest, TERMS[k])
        out[i] = power * powers[i]


@compiled
def _sum(lanes: Array) -> Any:
    """The sum of all elements, by adding halves; overwrites them."""
    width = lanes.size
    while width > 1:
        half = (width + 1) // 2
        for i in range(width - half):
            lanes[i] += lanes[half + i]
        width = half
    return lanes[0]


@Loop
def divergences(
    base: Address,
    base_bytes: int,
    other: Address,
    other_bytes: int,
    rows: int,
    row: int,
    sums: Address,
    work: Address,
) -> None:
    """Write the sums from which `methods.ops.maths.divergences_of` computes divergences.

    ``sums`` is float64 (5, rows): the largest elements of the rows of ``base`` and ``other``, the
    sums of their exponentials, and the sum of the exponentials of ``other`` times the differences.
    """
    found = doubles(sums, 5 * rows)
    own, theirs = floats(work, BLOCK), floats(work + 4 * BLOCK, BLOCK)
    lanes, first = min(row, ROW_LANES), work + 8 * BLOCK
    low, high = doubles(first, lanes), doubles(first + 8 * ROW_LANES, lanes)
    weighted = doubles(first + 16 * ROW_LANES, lanes)
    values, powers = doubles(first + 24 * ROW_LANES, lanes), doubles(first + 32 * ROW_LANES, lanes)
    for number in range(rows):
        begin = number * row
        base_top = _highest(base, base_bytes, begin, row, work)
        other_top = _highest(other, other_bytes, begin, row, work)
        fill(low, 0.0)
        fill(high, 0.0)
        fill(weighted, 0.0)
        for start in range(0, row, ROW_LANES):
            count = min(ROW_LANES, row - start)
            value, power = values[:count], powers[:count]
            load(base, base_bytes, begin + start, own[:count])
            load(other, other_bytes, begin + start, theirs[:count])
            _exponential(own[:count], base_top, value, power)
            for i in range(count):
                low[i] += value[i]
            _exponential(theirs[:count], other_top, value, power)
            for i in range(count):
                high[i] += value[i]
                weighted[i] += value[i] * (np.float64(theirs[i]) - np.float64(own[i]))
        found[number] = base_top
        found[rows + number] = other_top
        found[2 * rows + number] = _sum(low)
        found[3 * rows + number] = _sum(high)
        found[4 * rows + number] = _sum(weighted)
