"""Compare random numbers with bounds that depend on the rank of a magnitude in its row."""

from __future__ import annotations

from typing import Any

import numpy as np

from mergeloom.methods.ops.loops.blocks import Address, Array, compiled, copy, fill, int32s, uint32s
from mergeloom.methods.ops.loops.sizes import MAX_BUCKETS, buckets

_COUNT_DIRECTLY = 8
"""Up to this number of elements, ranks are counted directly."""
_COUNT_IN_ROW = 32
"""Up to this number of elements, ranks are counted in the row; beyond, the row is ordered by
buckets."""
_COUNT_IN_BUCKET = 512
"""Up to this number of elements, ranks are counted in the bucket; beyond, the bucket is sorted."""
_INT32_MAX = np.int32(0x7FFFFFFF)
"""The largest int32, and the mask of the magnitude bits of a float32."""
_DIGIT_BITS = 8

_buckets = compiled(buckets)


@compiled
def room_for_ranks(work: Address, row: int) -> Any:
    """The arrays that `decide_by_rank` works in, for rows of ``row`` elements."""
    # Separate arrays: numba does not know that rows unpacked from a matrix are contiguous.
    step, table = 4 * row, 4 * (MAX_BUCKETS + 1)
    tables, size = work + 8 * step, _buckets(row)[0] + 1
    return (
        (int32s(work, row), int32s(work + step, row)),
        (
            uint32s(work + 2 * step, row),
            uint32s(work + 3 * step, row),
            uint32s(work + 4 * step, row),
        ),
        (int32s(tables, size), int32s(tables + table, size)),
        (int32s(tables + 2 * table, size), int32s(tables + 3 * table, size)),
        (int32s(work + 5 * step, row), int32s(work + 6 * step, row), int32s(work + 7 * step, row)),
    )


@compiled
def _find_between(numbers: Array, low: int, high: int, found: Array) -> int:
    """Write the indices of numbers in [``low``, ``high``); returns their count."""
    # No branches here and below: they would depend on random numbers and be mispredicted.
    span = np.uint32(high - low)
    count = np.uint32(0)
    for i in range(numbers.size):
        found[count] = i
        count = np.uint32(count + np.uint32(np.uint32(numbers[i] - low) < span))
    return int(count)


@compiled
def _sort_into_buckets(magnitudes: Array, bucket: Array, earlier: Array, above: Array) -> None:
    """Write the bucket of each magnitude, how many ``earlier`` elements are in the same one, and
    for each bucket the count of elements in higher ones.

    Buckets of larger magnitudes have higher numbers; the last bucket is empty. Those of even
    numbers contain equal magnitudes only: differences of 16-bit floats have few distinct values.
    """
    largest = np.int32(0)
    for i in range(magnitudes.size):
        largest = max(largest, magnitudes[i])
    buckets, width = _buckets(magnitudes.size)
    shift, low = np.int32(width), np.int32((1 << width) - 1)
    base = np.int32(max((largest >> width) - (buckets // 2 - 1), 0))
    for i in range(magnitudes.size):  # all in 32 bits, so that the loop vectorises
        least = min(magnitudes[i], np.int32(1))
        more = min(np.int32(magnitudes[i] & low), np.int32(1))
        number = np.int32(np.int32(magnitudes[i] >> shift) - base)
        bucket[i] = max(np.int32(np.int32(number + number) + more), least)
    fill(above, 0)
    for i in range(magnitudes.size):
        inside = above[bucket[i]]
        earlier[i] = inside
        above[bucket[i]] = inside + 1
    running = 0
    for b in range(buckets, -1, -1):
        inside = above[b]
        above[b] = running
        running += inside


@compiled
def _steps_of_buckets(above: Array, steps: Array, lowest: Array, highest: Array) -> None:
    """Write the steps of the last and of the first rank in each bucket."""
    last = steps.size - 1
    for b in range(above.size):
        end = above[b - 1] if b else steps.size
        highest[b] = steps[np.uint32(min(above[b], last))]
        lowest[b] = steps[np.uint32(max(end - 1, 0))]
    lowest[0] = highest[0]  # nothing to decide for zeros: they stay zero, marked or not


@compiled
def _narrow(
    bucket: Array, numbers: Array, lowest: Array, highest: Array, places: Array, count: int
) -> int:
    """Keep, of ``count`` places, those whose number lies between the steps of their bucket.

    Returns the count kept. Numbers at or above the highest step become `_INT32_MAX`.
    """
    left = np.uint32(0)
    for k in range(count):
        i = places[k]
        number, low, high = numbers[i], lowest[bucket[i]], highest[bucket[i]]
        places[left] = i
        left = np.uint32(left + np.uint32(np.uint32(number - low) < np.uint32(high - low)))
        numbers[i] = _INT32_MAX if number >= high else number
    return int(left)


@compiled
def _decide_equal(
    numbers: Array, steps: Array, bucket: Array, earlier: Array, above: Array, places: Array
) -> int:
    """Decide the elements at ``places`` whose bucket contains equal magnitudes only, so that their
    ranks are known; keep the others. Returns the count kept."""
    left = np.uint32(0)
    for i in places:
        b = bucket[i]
        if b & np.uint32(1):
            places[left] = i
            left += np.uint32(1)
        elif numbers[i] >= steps[np.uint32(above[b] + earlier[i])]:
            numbers[i] = _INT32_MAX
    return int(left)


@compiled
def _rank(magnitudes: Array, place: int) -> int:
    """The rank of the magnitude at ``place``: descending, ties in index order."""
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
    """Replace all magnitudes by their ranks if that is faster than counting ``asked`` ranks.

    Returns whether it did. ``order`` is working memory: three arrays of at least the same length.
    """
    falls = True
    for i in range(1, magnitudes.size):
        falls &= magnitudes[i - 1] >= magnitudes[i]
    if falls:  # true if all are equal, which is common
        for i in range(magnitudes.size):
            magnitudes[i] = i
    elif asked > _COUNT_IN_BUCKET:
        _sort(magnitudes, *order)
    return falls or asked > _COUNT_IN_BUCKET


@compiled
def _sort(magnitudes: Array, falling: Array, order: Array, sorted_: Array) -> None:
    """Replace magnitudes by their ranks: radix sort from the lowest digit on.

    Digits that all have in common, such as the higher ones in a bucket, are skipped.
    """
    count, mask = magnitudes.size, (1 << _DIGIT_BITS) - 1
    differing = np.int32(0)
    for i in range(count):
        falling[i] = _INT32_MAX - magnitudes[i]
        differing |= magnitudes[i] ^ magnitudes[0]
        order[i] = i
    ends = magnitudes[: 1 << _DIGIT_BITS]  # fits, because more than `_COUNT_IN_BUCKET` are sorted
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
    magnitudes: Array, bucket: Array, earlier: Array, above: Array, ordered: Array
) -> None:
    """Order magnitudes by bucket, descending."""
    for i in range(magnitudes.size):
        ordered[np.uint32(above[bucket[i]] + earlier[i])] = magnitudes[i]


@compiled
def _decide_in_order(
    numbers: Array,
    steps: Array,
    undecided: Array,
    bucket: Array,
    earlier: Array,
    above: Array,
    ordered: Array,
    wanted: Array,
    order: Any,
) -> None:
    """The part of `decide_by_rank` for a row ordered by `_order_by_bucket`.

    ``wanted`` and ``order`` are working memory.
    """
    fill(wanted, 0)
    for i in undecided:
        wanted[bucket[i]] += 1
    for i in undecided:
        b = bucket[i]
        start, own = above[b], earlier[i]
        inside = ordered[start : above[b - 1]]
        if wanted[b] > _COUNT_DIRECTLY:
            wanted[b] = -1 if _rank_all(inside, wanted[b], order) else 0
        rank = _rank(inside, own) if wanted[b] >= 0 else inside[own]
        if numbers[i] >= steps[start + rank]:
            numbers[i] = _INT32_MAX


@compiled
def decide_by_rank(bits: Array, numbers: Array, steps: Array, work: Any) -> None:
    """Replace each number that is not below the step of its rank by `_INT32_MAX`.

    Afterwards a number is below the first step exactly if it was below its own. ``bits`` are the
    bits of float32 values; ``steps`` has one bound per rank, descending; all are int32. The rank of
    an element is its position in the row by descending magnitude, ties in index order; zeros may
    have any rank.

    Most numbers are below all steps or none. For the others, magnitudes are counted in buckets of
    adjacent ranks; the exact rank is only needed for numbers between the steps of their bucket, and
    only computed if the magnitudes in the bucket differ.
    """
    row = steps.size
    (magnitudes, ordered), (undecided, bucket, earlier), (above, wanted), ends, order = work
    lowest, highest = ends
    for start in range(0, bits.size, row):
        drawn = numbers[start : start + row]
        count = _find_between(drawn, steps[-1], steps[0], undecided)
        for i in range(row):
            magnitudes[i] = bits[start + i] & _INT32_MAX
        if count > _COUNT_DIRECTLY:
            _sort_into_buckets(magnitudes, bucket, earlier, above)
            _steps_of_buckets(above, steps, lowest, highest)
            count = _narrow(bucket, drawn, lowest, highest, undecided, count)
            count = _decide_equal(drawn, steps, bucket, earlier, above, undecided[:count])
        if count <= _COUNT_IN_ROW:
            for i in undecided[:count]:
                if drawn[i] >= steps[_rank(magnitudes, i)]:
                    drawn[i] = _INT32_MAX
        else:
            _order_by_bucket(magnitudes, bucket, earlier, above, ordered)
            _decide_in_order(
                *(drawn, steps, undecided[:count], bucket, earlier, above, ordered, wanted, order)
            )
