"""Count magnitudes: histograms, ranks, elements equal to or above a value."""

from __future__ import annotations

from typing import Any

import numpy as np

from mergeloom.methods.ops.loops.blocks import (
    Address,
    Array,
    Loop,
    compiled,
    difference,
    fill,
    floats,
    int32s,
    int64s,
    uint8s,
    vectors_at,
)
from mergeloom.methods.ops.loops.sizes import BLOCK

INFINITY = 0x7F800000
"""The bits of infinity; larger numbers are those of NaN."""


@Loop
def count_high(vectors: Address, size: int, low: int, counts: Address, work: Address) -> int:
    """Count magnitudes by their high bits: `methods.ops.interface.Ops.count_high`.

    ``counts`` is int64. Returns the number of nonzero magnitudes.
    """
    vector, table = vectors_at(vectors, 1)[0], int64s(counts, 1 << (31 - low))
    block, bits, other = floats(work, BLOCK), int32s(work, BLOCK), floats(work + 4 * BLOCK, BLOCK)
    nonzero = 0
    for start in range(0, size, BLOCK):
        count = min(BLOCK, size - start)
        difference(vector, start, block[:count], other[:count])
        for i in range(count):
            magnitude = bits[i] & 0x7FFFFFFF
            table[magnitude >> low] += 1
            nonzero += magnitude != 0
    return nonzero


@Loop
def count_low(
    vectors: Address,
    size: int,
    highs: Address,
    count_of_highs: int,
    low: int,
    step: int,
    counts: Address,
    levels: Address,
    work: Address,
) -> None:
    """Count magnitudes by their low bits: `methods.ops.interface.Ops.count_low`.

    ``highs`` is int32; ``counts`` has the address of an int64 table for each of ``highs``;
    ``levels`` (int32) is the matrix of counts of multiples of 2**``step``.
    """
    vector, keys = vectors_at(vectors, 1)[0], int32s(highs, count_of_highs)
    tables = int64s(counts, count_of_highs)
    lowest, finer, level = (1 << low) - 1, (1 << step) - 1, 1 << (low - step)
    block, bits, other = floats(work, BLOCK), int32s(work, BLOCK), floats(work + 4 * BLOCK, BLOCK)
    numbers, inside = int32s(work + 4 * BLOCK, BLOCK), int32s(work + 8 * BLOCK, BLOCK)
    wanted = uint8s(work + 12 * BLOCK, BLOCK)
    eights = int64s(work + 12 * BLOCK, BLOCK // 8)
    for start in range(0, size, BLOCK):
        count = min(BLOCK, size - start)
        difference(vector, start, block[:count], other[:count])
        zeros = 0
        for i in range(count):
            magnitude = bits[i] & 0x7FFFFFFF
            numbers[i] = magnitude >> low if magnitude else -1
            zeros += magnitude == 0
        fill(wanted, 0)
        for high in keys:
            for i in range(count):
                wanted[i] |= numbers[i] == high
        # Usually few elements are wanted: skip groups of eight that have none.
        hits = 0
        for group in range(BLOCK // 8):
            if eights[group]:
                for i in range(8 * group, 8 * group + 8):
                    inside[hits] = bits[i] & 0x7FFFFFFF
                    hits += wanted[i]
        for key in range(count_of_highs):
            high, table = keys[key], int64s(tables[key], lowest + 1)
            multiples = int32s(levels + 4 * level * key, level)
            if high == 0:
                table[0] += zeros
                multiples[0] += zeros
            for i in range(hits):
                if inside[i] >> low == high:
                    magnitude = inside[i] & lowest
                    table[magnitude] += 1
                    if magnitude & finer == 0:
                        multiples[magnitude >> step] += 1


@Loop
def find_ranks(
    vectors: Address,
    size: int,
    ranks: Address,
    count_of_ranks: int,
    low: int,
    found: Address,
    work: Address,
) -> int:
    """Find magnitudes by rank: `methods.ops.interface.Ops.find_ranks`.

    ``ranks`` is int64. For each rank, ``found`` (int64) receives the five numbers. Returns the
    number of nonzero magnitudes, or -1, without writing anything, if the vector contains NaN.
    """
    wanted, bits, room = int64s(ranks, count_of_ranks), int32s(work, size), work + 4 * size
    largest = _magnitudes(vectors_at(vectors, 1)[0], work, size)
    if largest > INFINITY:
        return -1
    for number in range(count_of_ranks):
        own = int64s(found + 40 * number, 5)
        value, above, equal = _of_rank(bits, largest, wanted[number], room)
        own[0], own[1], own[2] = value, above, equal
        own[3] = _count_at_least(bits, np.int32(((value >> low) + 1) << low))
        own[4] = _prefix_length(bits, np.int32(value), wanted[number] - above)
    nonzero: int = _count_at_least(bits, np.int32(1))
    return nonzero


@Loop
def bound_ranks(
    vectors: Address, count_of_vectors: int, ranks: Address, size: int, work: Address
) -> None:
    """Write the bounds of `methods.ops.interface.RankRange` into the records of vectors.

    ``ranks`` (int64) has the last rank of each vector and the number of skipped ones; 0 means that
    there is no such bound.
    """
    given, wanted = vectors_at(vectors, count_of_vectors), int64s(ranks, 2 * count_of_vectors)
    bits, room = int32s(work, size), work + 4 * size
    for number in range(count_of_vectors):
        last, skipped = wanted[2 * number], wanted[2 * number + 1]
        if last or skipped:
            largest = _magnitudes(given[number], work, size)
        if last:
            bound = _bound(bits, largest, last, room)
            given[number].above, given[number].above_end = True, bound[0]
            given[number].above_until_end, given[number].above_from_end = bound[1], bound[2]
        if skipped:
            bound = _bound(bits, largest, skipped, room)
            given[number].upto, given[number].upto_end = True, bound[0]
            given[number].upto_until_end, given[number].upto_from_end = bound[1], bound[2]


@compiled
def _bound(bits: Array, largest: Any, rank: int, room: Address) -> Any:
    """The bound between the magnitudes up to ``rank`` and the others: its end, until and from
    there (`methods.ops.interface.Bound`); ``bits`` are those of all magnitudes."""
    value, above, _ = _of_rank(bits, largest, rank, room)
    numbers = int32s(room, 2)
    # One step below the value keeps elements equal to it; NaN as a bound keeps all.
    numbers[0], numbers[1] = value - (0 < value <= INFINITY), value
    until, beyond = floats(room, 2)
    end = np.int64(bits.size)
    if 0 < value <= INFINITY:
        end = _prefix_length(bits, np.int32(value), rank - above)
    return end, until, beyond


@compiled
def _magnitudes(vector: Any, work: Address, size: int) -> Any:
    """Write the bits (int32) of the magnitudes of a vector to ``work``; returns the largest."""
    block, bits, other = floats(work, size), int32s(work, size), floats(work + 4 * size, BLOCK)
    for start in range(0, size, BLOCK):
        count = min(BLOCK, size - start)
        difference(vector, start, block[start : start + count], other[:count])
    largest = np.int32(0)
    for i in range(size):
        bits[i] &= np.int32(0x7FFFFFFF)
        largest = max(largest, bits[i])
    return largest


@compiled
def _of_rank(bits: Array, largest: Any, rank: int, room: Address) -> Any:
    """The magnitude of a rank, the number of larger ones, and of equal ones.

    ``bits`` are those of all magnitudes, ``largest`` of the largest. ``room`` is working memory for
    as many.
    """
    pool, above = bits, np.int64(0)
    least, most, reaching, exceeding = np.int64(0), np.int64(largest), bits.size, np.int64(0)
    while least < most:  # bisect for the largest value that ``rank`` magnitudes reach
        middle = (least + most + 1) >> 1
        count = np.int64(_count_at_least(pool, np.int32(middle)))
        if above + count >= rank:
            least, reaching = middle, count
        else:
            most, exceeding = middle - 1, count
        if 4 * (reaching - exceeding) <= pool.size:  # continue among possible values
            above += exceeding
            pool = _select_between(pool, np.int32(least), np.int32(most), int32s(room, bits.size))
            reaching, exceeding = pool.size, np.int64(0)
    return least, above + exceeding, reaching - exceeding


@compiled
def _prefix_length(numbers: Array, value: Any, most: Any) -> Any:
    """Length of the longest prefix in which at most ``most`` numbers equal ``value``."""
    left, short = most, 256
    for start in range(0, numbers.size, short):
        part = numbers[start : start + short]
        count = np.int32(0)
        for i in range(part.size):
            count += np.int32(part[i] == value)
        if count > left:
            for i in range(part.size):
                if part[i] == value:
                    if left == 0:
                        return start + i
                    left -= 1
        left -= count
    return numbers.size


@compiled
def _select_between(numbers: Array, least: Any, most: Any, out: Array) -> Array:
    """Write the numbers from ``least`` to ``most`` to ``out``, which may be the same memory."""
    count = 0
    for i in range(numbers.size):
        number = numbers[i]
        out[count] = number
        count += least <= number <= most
    return out[:count]


@compiled
def _count_at_least(numbers: Array, least: Any) -> Any:
    """Number of values that are at least ``least``."""
    count = np.int32(0)
    for i in range(numbers.size):
        count += np.int32(numbers[i] >= least)
    return count


@Loop
def count_equal(vectors: Address, size: int, value: float, work: Address) -> int:
    """Number of magnitudes equal to ``value``: `methods.ops.interface.Ops.count_equal`."""
    vector, sought = vectors_at(vectors, 1)[0], np.float32(value)
    block, other = floats(work, BLOCK), floats(work + 4 * BLOCK, BLOCK)
    found = 0
    for start in range(0, size, BLOCK):
        count = min(BLOCK, size - start)
        difference(vector, start, block[:count], other[:count])
        inside = np.int32(0)
        for i in range(count):
            inside += np.int32(abs(block[i]) == sought)
        found += inside
    return found


@Loop
def end_of_equal(vectors: Address, size: int, value: float, most: int, work: Address) -> int:
    """Length of a prefix by equal magnitudes: `methods.ops.interface.Ops.end_of_equal`."""
    vector, sought = vectors_at(vectors, 1)[0], np.float32(value)
    block, other = floats(work, BLOCK), floats(work + 4 * BLOCK, BLOCK)
    left = most
    for start in range(0, size, BLOCK):
        count = min(BLOCK, size - start)
        difference(vector, start, block[:count], other[:count])
        for i in range(count):
            if abs(block[i]) == sought:
                if left == 0:
                    return start + i
                left -= 1
    return size


@Loop
def count_changed(
    vectors: Address,
    count_of_vectors: int,
    size: int,
    epsilon: float,
    counts: Address,
    work: Address,
) -> None:
    """Count changed elements: `methods.ops.interface.Ops.count_changed`.

    ``counts`` (int64) receives both numbers of each vector.
    """
    given, found = vectors_at(vectors, count_of_vectors), int64s(counts, 2 * count_of_vectors)
    least, step = np.float32(epsilon), 4 * BLOCK
    block, other, by = (
        floats(work, BLOCK),
        floats(work + step, BLOCK),
        int32s(work + 2 * step, BLOCK),
    )
    blocks = work + 3 * step
    fill(found, 0)
    for start in range(0, size, BLOCK):
        count = min(BLOCK, size - start)
        fill(by[:count], 0)
        for number in range(count_of_vectors):
            changed = int32s(blocks + step * number, count)
            difference(given[number], start, block[:count], other[:count])
            for i in range(count):
                changed[i] = np.int32(0) if abs(block[i]) <= least else np.int32(1)
                by[i] += changed[i]
        for number in range(count_of_vectors):
            changed = int32s(blocks + step * number, count)
            every, alone = np.int32(0), np.int32(0)
            for i in range(count):
                every += changed[i]
                alone += changed[i] if by[i] == 1 else np.int32(0)
            found[2 * number] += every
            found[2 * number + 1] += alone
