"""Sums of magnitudes and dot products, in the order in which torch's side adds them up."""

from __future__ import annotations

from typing import Any

from mergeloom.methods.ops.loops.blocks import (
    Address,
    Array,
    Loop,
    compiled,
    copy,
    difference,
    doubles,
    fill,
    floats,
    ints,
    vectors_at,
    words,
)
from mergeloom.methods.ops.loops.keep import trim
from mergeloom.methods.ops.loops.sizes import BLOCK, DOT_RUN, LANES, RUN


@compiled
def _sum_runs(block: Array, start: int, size: int, squares: int, run: Array, sums: Array) -> None:
    """Write sums of runs of magnitudes or squares, by adding halves; what lacks of the last is 0.

    Blocks of a vector of ``size`` come one after the other, this one from ``start`` on; what
    begins of a run in one block and ends in another waits in ``run``.
    """
    done = 0
    while done < block.size:
        place = (start + done) % RUN
        part = block[done : done + RUN - place]
        for i in range(part.size):
            run[place + i] = part[i] * part[i] if squares else abs(part[i])
        done += part.size
        if place + part.size == RUN or start + done == size:
            fill(run[place + part.size :], 0.0)
            half = RUN // 2
            while half:
                upper = run[half : 2 * half]
                for i in range(half):
                    run[i] += upper[i]
                half //= 2
            sums[(start + done - 1) // RUN] = run[0]


@Loop
def run_sums(
    vectors: Address,
    constants: Address,
    size: int,
    squares: int,
    whole: Address,
    kept: Address,
    work: Address,
) -> None:
    """Sums of the magnitudes of the one vector in ``vectors``, run by run, and of what is kept.

    Or of their squares. ``whole`` and ``kept`` (float32) get one for each run.
    """
    given, hashed, runs = vectors_at(vectors, 1), words(constants, 3), -(-size // RUN)
    vector = given[0]
    sums, kept_sums = floats(whole, runs), floats(kept, runs)
    run, kept_run = floats(work, RUN), floats(work + 4 * RUN, RUN)
    step, first = 4 * BLOCK, work + 8 * RUN
    block, other, numbers = floats(first, BLOCK), floats(first + step, BLOCK), first + 2 * step
    trims = vector.above or vector.upto or vector.draws or vector.noted
    for start in range(0, size, BLOCK):
        part = block[: min(BLOCK, size - start)]
        difference(vector, start, part, other[: part.size])
        _sum_runs(part, start, size, squares, run, sums)
        if trims:
            trim(vector, start, part, ints(numbers, part.size), hashed)
            _sum_runs(part, start, size, squares, kept_run, kept_sums)
    if not trims:
        copy(sums, kept_sums)


@Loop
def dot_products(
    vectors: Address, count_of_vectors: int, size: int, sums: Address, work: Address
) -> None:
    """Write the dot products of all pairs of vectors to ``sums``, run by run; see
    `methods.ops.torch_dots`.

    ``sums`` is a float64 matrix, of a row for each pair.
    """
    given, runs = vectors_at(vectors, count_of_vectors), -(-size // DOT_RUN)
    lanes, values = doubles(work, LANES), work + 8 * LANES
    single = values + 8 * DOT_RUN * count_of_vectors
    block, other = floats(single, DOT_RUN), floats(single + 4 * DOT_RUN, DOT_RUN)
    for run in range(runs):
        start = run * DOT_RUN
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
                doubles(sums, (pair + 1) * runs)[pair * runs + run] = _dot(one, two, lanes)
                pair += 1


@compiled
def _dot(one: Array, other: Array, lanes: Array) -> Any:
    """The dot product of a run; overwrites ``lanes``."""
    for k in range(LANES):
        lanes[k] = one[k] * other[k]
    for start in range(LANES, DOT_RUN, LANES):
        for k in range(LANES):
            lanes[k] += one[start + k] * other[start + k]
    half = LANES // 2
    while half:
        for k in range(half):
            lanes[k] += lanes[half + k]
        half //= 2
    return lanes[0]
