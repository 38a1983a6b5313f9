"""Decisions that hang on the rank of an element's magnitude in its row."""

from __future__ import annotations

from typing import Any

import numpy as np

from mergeloom.methods.ops.loops.blocks import Address, Array, compiled, copy, fill, ints, words
from mergeloom.methods.ops.loops.sizes import MOST_BUCKETS, buckets

_FEW = 8
"""Elements whose ranks are counted without looking for less work."""
_COUNTED = 32
"""Elements whose ranks are counted in their row; for more it is put in order of its buckets."""
_SCANNED = 512
"""Elements whose ranks are counted in their bucket; for more it is sorted."""
_GREATEST = np.int32(0x7FFFFFFF)
"""The largest number, and the bits of a float32 that tell its magnitude."""
_DIGIT_BITS = 8

_buckets = compiled(buckets)


@compiled
def room_for_ranks(work: Address, row: int) -> Any:
    """Memory for `decide_by_rank` on rows of ``row`` elements."""
    # No matrices: of the rows they are unpacked to numba does not know that they are contiguous.
    step, table = 4 * row, 4 * (MOST_BUCKETS + 1)
    tables, size = work + 8 * step, _buckets(row)[0] + 1
    return (
        (ints(work, row), ints(work + step, row)),
        (words(work + 2 * step, row), words(work + 3 * step, row), words(work + 4 * step, row)),
        (ints(tables, size), ints(tables + table, size)),
        (ints(tables + 2 * table, size), ints(tables + 3 * table, size)),
        (ints(work + 5 * step, row), ints(work + 6 * step, row), ints(work + 7 * step, row)),
    )


@compiled
def _find_between(numbers: Array, low: int, high: int, found: Array) -> int:
    """Write the places of numbers from ``low`` up to, not with, ``high``; returns how many."""
    # Without branches: which way they go is what is drawn at random. So in all that follows.
    span = np.uint32(high - low)
    count = np.uint32(0)
    for i in range(numbers.size):
        found[count] = i
        count = np.uint32(count + np.uint32(np.uint32(numbers[i] - low) < span))
    return int(count)


@compiled
def _sort_into_buckets(magnitudes: Array, bucket: Array, above: Array) -> None:
    """Write the bucket of each magnitude, and how many lie in buckets ``above`` each.

    Buckets of larger magnitudes have higher numbers; none lies above the last, an empty one.
    """
    largest = np.int32(0)
    for i in range(magnitudes.size):
        largest = max(largest, magnitudes[i])
    buckets, width = _buckets(magnitudes.size)
    shift = np.int32(width)
    base = np.int32(max((largest >> width) - (buckets - 1), 0))
    for i in range(magnitudes.size):  # in 32 bits all along, so that it becomes vector code
        least = min(magnitudes[i], np.int32(1))
        bucket[i] = max(np.int32(np.int32(magnitudes[i] >> shift) - base), least)
    fill(above, 0)
    for i in range(magnitudes.size):
        above[bucket[i]] += 1
    running = 0
    for b in range(buckets, -1, -1):
        inside = above[b]
        above[b] = running
        running += inside


@compiled
def _steps_of_buckets(above: Array, steps: Array, lowest: Array, highest: Array) -> None:
    """Write the steps of the last and the first rank in each bucket; see `_sort_into_buckets`."""
    last = steps.size - 1
    for b in range(above.size):
        end = above[b - 1] if b else steps.size
        highest[b] = steps[np.uint32(min(above[b], last))]
        lowest[b] = steps[np.uint32(max(end - 1, 0))]
    lowest[0] = highest[0]  # zeros are decided: they stay what they are


@compiled
def _narrow(
    bucket: Array, numbers: Array, lowest: Array, highest: Array, places: Array, count: int
) -> int:
    """Keep of ``count`` places those with a number between the steps of its bucket's ends.

    Returns how many. Elsewhere a number that is too large becomes the largest.
    """
    left = np.uint32(0)
    for k in range(count):
        i = places[k]
        number, low, high = numbers[i], lowest[bucket[i]], highest[bucket[i]]
        places[left] = i
        left = np.uint32(left + np.uint32(np.uint32(number - low) < np.uint32(high - low)))
        numbers[i] = _GREATEST if number >= high else number
    return int(left)


@compiled
def _rank(magnitudes: Array, place: int) -> int:
    """How many magnitudes are larger than the one at a place, or as large and before it."""
    own = magnitudes[place]
    before, after = magnitudes[:place], magnitudes[place + 1 :]
    rank = np.int32(0)
    for i in range(before.size):
        rank = np.int32(rank + np.int32(before[i] >= own))
    for i in range(after.size):
        rank = np.int32(rank + np.int32(after[i] > own))
    return int(rank)


@compiled
def _rank_all(magnitudes: Array, asked: int, order: Any) -> bool:
    """Replace all magnitudes by their ranks if that is less work than to count ``asked`` of them.

    Returns whether it was. ``order`` is work, three arrays as long at least.
    """
    falls = True
    for i in range(1, magnitudes.size):
        falls &= magnitudes[i - 1] >= magnitudes[i]
    if falls:  # as where all are equal, which is usual
        for i in range(magnitudes.size):
            magnitudes[i] = i
    elif asked > _SCANNED:
        _sort(magnitudes, *order)
    return falls or asked > _SCANNED


@compiled
def _sort(magnitudes: Array, falling: Array, order: Array, sorted_: Array) -> None:
    """Replace magnitudes by their ranks, digit by digit from the lowest on.

    Where all have a digit in common, as in a bucket the higher ones, it is passed over.
    """
    count, mask = magnitudes.size, (1 << _DIGIT_BITS) - 1
    differing = np.int32(0)
    for i in range(count):
        falling[i] = _GREATEST - magnitudes[i]
        differing |= magnitudes[i] ^ magnitudes[0]
        order[i] = i
    ends = magnitudes[: 1 << _DIGIT_BITS]  # more are sorted than there are different digits
    for shift in range(0, 31, _DIGIT_BITS):
        if not (differing >> shift) & mask:
            continue
        fill(ends, 0)
        for i in range(count):
            ends[(falling[i] >> shift) & mask] += 1
        running = 0
        for digit in range(ends.size):
            inside = ends[digit]
            ends[digit] = running
            running += inside
        for k in range(count):
            digit = (falling[order[k]] >> shift) & mask
            sorted_[ends[digit]] = order[k]
            ends[digit] += 1
        copy(sorted_, order[:count])
    for rank in range(count):
        magnitudes[order[rank]] = rank


@compiled
def _order_by_bucket(
    magnitudes: Array, bucket: Array, ends: Array, ordered: Array, place: Array
) -> None:
    """Put magnitudes in falling order of their buckets, and write the ``place`` of each.

    ``ends`` is where each bucket begins, and becomes where it ends.
    """
    for i in range(magnitudes.size):
        b = bucket[i]
        end = np.uint32(ends[b])
        ordered[end] = magnitudes[i]
        place[i] = end
        ends[b] = end + 1


@compiled
def _decide_in_order(
    numbers: Array,
    steps: Array,
    undecided: Array,
    bucket: Array,
    ends: Array,
    ordered: Array,
    place: Array,
    wanted: Array,
    order: Any,
) -> None:
    """See `decide_by_rank` and `_order_by_bucket`; ``wanted`` and ``order`` are work."""
    fill(wanted, 0)
    for i in undecided:
        wanted[bucket[i]] += 1
    for i in undecided:
        b = bucket[i]
        start = ends[b + 1]
        own, inside = place[i] - start, ordered[start : ends[b]]
        if wanted[b] > _FEW:
            wanted[b] = -1 if _rank_all(inside, wanted[b], order) else 0
        rank = _rank(inside, own) if wanted[b] >= 0 else inside[own]
        if numbers[i] >= steps[start + rank]:
            numbers[i] = _GREATEST


@compiled
def decide_by_rank(bits: Array, numbers: Array, steps: Array, work: Any) -> None:
    """Make a number below the first step the largest if it is not below the step of its rank.

    Then those below the first step are those that are below their own. ``bits`` are those of
    float32 values, all are int32; ``steps``, as long as a row, falls. The rank of an element is
    how many in its row are larger in magnitude, or as large and before it; that of zeros is any.

    Most numbers lie below all steps or none. For the others magnitudes are counted by buckets,
    each of which holds neighbouring ranks; only where a number lies between the steps of its
    bucket's ends does the rank itself matter.
    """
    row = steps.size
    (magnitudes, ordered), (undecided, bucket, place), (above, wanted), ends, order = work
    lowest, highest = ends
    for start in range(0, bits.size, row):
        drawn = numbers[start : start + row]
        count = _find_between(drawn, steps[-1], steps[0], undecided)
        for i in range(row):
            magnitudes[i] = bits[start + i] & _GREATEST
        if count > _FEW:
            _sort_into_buckets(magnitudes, bucket, above)
            _steps_of_buckets(above, steps, lowest, highest)
            count = _narrow(bucket, drawn, lowest, highest, undecided, count)
        if count <= _COUNTED:
            for i in undecided[:count]:
                if drawn[i] >= steps[_rank(magnitudes, i)]:
                    drawn[i] = _GREATEST
        else:
            _order_by_bucket(magnitudes, bucket, above, ordered, place)
            _decide_in_order(
                *(drawn, steps, undecided[:count], bucket, above, ordered, place, wanted, order)
            )
