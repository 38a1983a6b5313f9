"""Sums of magnitudes and dot products, in an order that depends only on element indices."""

from __future__ import annotations

from typing import Any

import numpy as np

from mergeloom.methods.ops.loops.blocks import (
    Address,
    Array,
    Loop,
    compiled,
    difference,
    doubles,
    fill,
    floats,
    int32s,
    uint32s,
    vectors_at,
)
from mergeloom.methods.ops.loops.keep import trim
from mergeloom.methods.ops.loops.sizes import BLOCK, DOT_LANES, DOT_RUN, SUM_RUN


@compiled
def _sum_runs(block: Array, start: int, size: int, squares: int, run: Array) -> Any:
    """The float64 sum of magnitudes or squares of the runs that end in this block.

    A run is summed by adding halves, in float64, because one sum may be subtracted from another
    that is nearly equal. Blocks of a vector of ``size`` elements are passed in order, this one from
    ``start`` on; ``run`` keeps the part of a run that continues in the next block. The last run is
    padded with zeros.
    """
    done, total = 0, 0.0
    while done < block.size:
        place = (start + done) % SUM_RUN
        part = block[done : done + SUM_RUN - place]
        for i in range(part.size):
            value = np.float64(part[i])
            run[place + i] = value * value if squares else abs(value)
        done += part.size
        if place + part.size == SUM_RUN or start + done == size:
            fill(run[place + part.size :], 0.0)
            half = SUM_RUN // 2
            while half:
                upper = run[half : 2 * half]
                for i in range(half):
                    run[i] += upper[i]
                half //= 2
            total += run[0]
    return total


@Loop
def magnitudes(
    vectors: Address, constants: Address, size: int, squares: int, sums: Address, work: Address
) -> None:
    """Sum the magnitudes, or ``squares``, of all and of the kept elements of a vector.

    ``sums`` (float64) receives both sums.
    """
    given, hashed, found = vectors_at(vectors, 1), uint32s(constants, 3), doubles(sums, 2)
    vector = given[0]
    run, kept_run = doubles(work, SUM_RUN), doubles(work + 8 * SUM_RUN, SUM_RUN)
    step, first = 4 * BLOCK, work + 16 * SUM_RUN
    block, other, numbers = floats(first, BLOCK), floats(first + step, BLOCK), first + 2 * step
    trims = vector.above or vector.upto or vector.draws or vector.marks
    whole = kept = 0.0
    for start in range(0, size, BLOCK):
        part = block[: min(BLOCK, size - start)]
        difference(vector, start, part, other[: part.size])
        whole += _sum_runs(part, start, size, squares, run)
        if trims:
            trim(vector, start, part, int32s(numbers, part.size), hashed)
            kept += _sum_runs(part, start, size, squares, kept_run)
    found[0] = whole
    found[1] = kept if trims else whole


@Loop
def dots(vectors: Address, count_of_vectors: int, size: int, sums: Address, work: Address) -> None:
    """Write the dot products of all pairs of vectors to ``sums`` (float64).

    Runs of `DOT_RUN` elements are summed by `_dot`, then added in order.
    """
    given = vectors_at(vectors, count_of_vectors)
    found = doubles(sums, count_of_vectors * (count_of_vectors + 1) // 2)
    lanes, values = doubles(work, DOT_LANES), work + 8 * DOT_LANES
    single = values + 8 * DOT_RUN * count_of_vectors
    block, other = floats(single, DOT_RUN), floats(single + 4 * DOT_RUN, DOT_RUN)
    fill(found, 0.0)
    for start in range(0, size, DOT_RUN):
        count = min(DOT_RUN, size - start)
        for number in range(count_of_vectors):
            difference(given[number], start, block[:count], other[:count])
            wide = doubles(values + 8 * DOT_RUN * number, DOT_RUN)
            for i in range(count):
                wide[i] = block[i]
            for i in range(count, DOT_RUN):
                wide[i] = 0.0
        pair = 0
        for first in range(count_of_vectors):
            one = doubles(values + 8 * DOT_RUN * first, DOT_RUN)
            for second in range(first + 1):
                two = doubles(values + 8 * DOT_RUN * second, DOT_RUN)
                found[pair] += _dot(one, two, lanes)
                pair += 1


@compiled
def _dot(one: Array, other: Array, lanes: Array) -> Any:
    """The dot product of a run; overwrites ``lanes``."""
    for k in range(DOT_LANES):
        lanes[k] = one[k] * other[k]
    for start in range(DOT_LANES, DOT_RUN, DOT_LANES):  # a constant length, for the compiler
        for k in range(DOT_LANES):
            lanes[k] += one[start + k] * other[start + k]
    return _fold(lanes)


@compiled
def _short_dot(one: Array, other: Array, lanes: Array) -> Any:
    """The dot product of a shorter run, whose length is a multiple of `DOT_LANES`."""
    for k in range(DOT_LANES):
        lanes[k] = one[k] * other[k]
    for start in range(DOT_LANES, one.size, DOT_LANES):
        for k in range(DOT_LANES):
            lanes[k] += one[start + k] * other[start + k]
    return _fold(lanes)


@compiled
def _fold(lanes: Array) -> Any:
    """The sum of all lanes, by adding halves; overwrites them."""
    half = DOT_LANES // 2
    while half:
        for k in range(half):
            lanes[k] += lanes[half + k]
        half //= 2
    return lanes[0]


@Loop
def row_dots(
    vectors: Address, count_of_vectors: int, rows: int, row: int, sums: Address, work: Address
) -> None:
    """Write the dot products of all pairs of vectors for each row: float64, (pairs, rows)."""
    given = vectors_at(vectors, count_of_vectors)
    pairs = count_of_vectors * (count_of_vectors + 1) // 2
    found = doubles(sums, pairs * rows)
    lanes, values = doubles(work, DOT_LANES), work + 8 * DOT_LANES
    single = values + 8 * DOT_RUN * count_of_vectors
    block, other = floats(single, DOT_RUN), floats(single + 4 * DOT_RUN, DOT_RUN)
    fill(found, 0.0)
    for number in range(rows):
        for start in range(0, row, DOT_RUN):
            count = min(DOT_RUN, row - start)
            filled = -(-count // DOT_LANES) * DOT_LANES
            for each in range(count_of_vectors):
                difference(given[each], number * row + start, block[:count], other[:count])
                wide = doubles(values + 8 * DOT_RUN * each, filled)
                for i in range(count):
                    wide[i] = block[i]
                fill(wide[count:], 0.0)
            pair = 0
            for first in range(count_of_vectors):
                one = doubles(values + 8 * DOT_RUN * first, filled)
                for second in range(first + 1):
                    two = doubles(values + 8 * DOT_RUN * second, filled)
                    if filled == DOT_RUN:
                        found[pair * rows + number] += _dot(one, two, lanes)
                    else:
                        found[pair * rows + number] += _short_dot(one, two, lanes)
                    pair += 1


@Loop
def column_dots(
    vectors: Address,
    count_of_vectors: int,
    size: int,
    columns: int,
    first_column: int,
    sums: Address,
    work: Address,
) -> None:
    """Write the dot products of all pairs of vectors along columns: float64, (pairs, columns).

    The first element is in column ``first_column``.
    """
    given = vectors_at(vectors, count_of_vectors)
    pairs = count_of_vectors * (count_of_vectors + 1) // 2
    other, blocks = floats(work, BLOCK), work + 4 * BLOCK
    fill(doubles(sums, pairs * columns), 0.0)
    for start in range(0, size, BLOCK):
        count = min(BLOCK, size - start)
        for each in range(count_of_vectors):
            block = floats(blocks + 4 * BLOCK * each, count)
            difference(given[each], start, block, other[:count])
        done = 0
        while done < count:
            column = (first_column + start + done) % columns
            length = min(columns - column, count - done)
            pair = 0
            for first in range(count_of_vectors):
                one = floats(blocks + 4 * (BLOCK * first + done), length)
                for second in range(first + 1):
                    two = floats(blocks + 4 * (BLOCK * second + done), length)
                    own = doubles(sums + 8 * (pair * columns + column), length)
                    for i in range(length):
                        own[i] += np.float64(one[i]) * np.float64(two[i])
                    pair += 1
            done += length


@Loop
def column_sums(source: Address, rows: int, columns: int, sums: Address, work: Address) -> None:
    """Write the sum of float32 rows, added in order: float64 (columns)."""
    found = doubles(sums, columns)
    fill(found, 0.0)
    for number in range(rows):
        row = floats(source + 4 * number * columns, columns)
        for i in range(columns):
            found[i] += np.float64(row[i])
