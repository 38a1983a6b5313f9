"""Histograms of magnitudes."""

from __future__ import annotations

from mergeloom.methods.ops.loops.blocks import (
    Address,
    Loop,
    bytes_,
    difference,
    fill,
    floats,
    ints,
    longs,
    vectors_at,
)
from mergeloom.methods.ops.loops.sizes import BLOCK


@Loop
def count_high(vectors: Address, size: int, low: int, counts: Address, work: Address) -> int:
    """Add to ``counts`` (int64) each magnitude of a vector by its bits above the ``low`` ones.

    It is the one in ``vectors``, of ``size`` elements. The result is how many are not zero.
    """
    vector, table = vectors_at(vectors, 1)[0], longs(counts, 1 << (31 - low))
    block, bits, other = floats(work, BLOCK), ints(work, BLOCK), floats(work + 4 * BLOCK, BLOCK)
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
    """Count the magnitudes whose bits above the ``low`` ones are one of ``highs`` by those below.

    Each of ``highs`` (int32) has its table among ``counts`` (addresses of int64); those whose low
    bits are a multiple of 2**``step`` go to its row of ``levels`` (int32) by that multiple too.
    """
    vector, keys = vectors_at(vectors, 1)[0], ints(highs, count_of_highs)
    tables = longs(counts, count_of_highs)
    lowest, finer, level = (1 << low) - 1, (1 << step) - 1, 1 << (low - step)
    block, bits, other = floats(work, BLOCK), ints(work, BLOCK), floats(work + 4 * BLOCK, BLOCK)
    numbers, inside = ints(work + 4 * BLOCK, BLOCK), ints(work + 8 * BLOCK, BLOCK)
    wanted = bytes_(work + 12 * BLOCK, BLOCK)
    eights = longs(work + 12 * BLOCK, BLOCK // 8)
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
        # Few elements are wanted, most often: what has none of them is passed over by eights.
        hits = 0
        for group in range(BLOCK // 8):
            if eights[group]:
                for i in range(8 * group, 8 * group + 8):
                    inside[hits] = bits[i] & 0x7FFFFFFF
                    hits += wanted[i]
        for key in range(count_of_highs):
            high, table = keys[key], longs(tables[key], lowest + 1)
            multiples = ints(levels + 4 * level * key, level)
            if high == 0:
                table[0] += zeros
                multiples[0] += zeros
            for i in range(hits):
                if inside[i] >> low == high:
                    magnitude = inside[i] & lowest
                    table[magnitude] += 1
                    if magnitude & finer == 0:
                        multiples[magnitude >> step] += 1
