"""Loops compiled by numba, for `methods.compiled`. Importing this module imports numba.

Each gives bit for bit what the torch operations that it stands for give: the same roundings in the
same order. Arrays are flat and contiguous unless said otherwise.

They are in one file because numba's cache notices what changes in the file of a loop, and not in
those of the loops that it calls.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic

_BLOCK = 2048
"""Elements of a block: what is in work fits the first-level cache."""
_RUN = 512
"""Elements that are summed up in float32; see `methods.sums`."""
_DOT_RUN, _LANES = 1024, 128
"""Elements that are summed up in float64, in so many sums at once; see `methods.dots`."""
_FEW = 8
"""Elements whose ranks are counted without looking for less work."""
_COUNTED = 32
"""Elements whose ranks are counted in their row; for more it is put in order of its buckets."""
_SCANNED = 512
"""Elements whose ranks are counted in their bucket; for more it is sorted."""
_OCTAVES = 8
"""Powers of two below the largest magnitude within which buckets tell magnitudes apart."""
_GREATEST = np.int32(0x7FFFFFFF)
"""The largest number, and the bits of a float32 that tell its magnitude."""

_compiled = njit(nogil=True, cache=True, error_model="numpy")

Array = Any


@intrinsic
def _fused(context: Any, factor: Any, other: Any, addend: Any) -> Any:
    """factor * other + addend with one rounding, as torch adds a multiple."""
    single = types.float32

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return single(single, single, single), generate


def _numbers_at(kind: Any) -> Any:
    """The function that takes an address to the numbers of a type that begin there."""

    @intrinsic
    def at(context: Any, address: Any) -> Any:
        pointer = types.CPointer(kind)

        def generate(inner: Any, builder: Any, __: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], inner.get_value_type(pointer))

        return pointer(types.int64), generate

    return at


_floats, _halves = _numbers_at(types.float32), _numbers_at(types.uint16)
_ints = _numbers_at(types.int32)


VECTOR = np.dtype(
    [
        ("address", np.int64),
        ("bytes", np.int64),
        ("minus", np.int64),
        ("minus_bytes", np.int64),
        ("factors", np.int64),
        ("factor_row", np.int64),
        ("above", np.bool_),
        ("above_end", np.int64),
        ("above_before", np.float32),
        ("above_after", np.float32),
        ("upto", np.bool_),
        ("upto_end", np.int64),
        ("upto_before", np.float32),
        ("upto_after", np.float32),
        ("draws", np.bool_),
        ("first", np.uint32),
        ("second", np.uint32),
        ("word_end", np.int64),
        ("next_first", np.uint32),
        ("next_second", np.uint32),
        ("bound", np.int32),
        ("steps", np.int64),
        ("ranked_row", np.int64),
        ("vote", np.float32),
        ("coefficient", np.float32),
        ("share", np.float32),
    ],
    align=True,
)
"""A vector: the addresses of its operands (``minus`` may be 0: none), the bytes of an element, the
address of a factor for each row (or 0) and the length of those rows, the conditions of
`methods.compiled.Kept`, and the weights it has. ``ranked_row`` is the length of a row where
elements are ranked, else 0."""


@_compiled
def _load(address: int, size: int, start: int, block: Array) -> None:
    """Fill ``block`` with elements at an address: float32 numbers, or bfloat16 ones."""
    count = block.size
    if size == 2:
        halves = carray(_halves(address + 2 * start), (count,))
        bits = block.view(np.uint32)
        for i in range(count):
            bits[i] = np.uint32(halves[i]) << np.uint32(16)
    else:
        floats = carray(_floats(address + 4 * start), (count,))
        for i in range(count):
            block[i] = floats[i]


@_compiled
def _difference(vector: Any, start: int, block: Array, other: Array) -> None:
    """Write the elements of a vector from ``start`` on to ``block``; ``other`` is work as long."""
    _load(vector.address, vector.bytes, start, block)
    if vector.minus:
        _load(vector.minus, vector.minus_bytes, start, other)
        for i in range(block.size):
            block[i] -= other[i]
    _multiply_rows(vector, start, block)


@_compiled
def _multiply_rows(vector: Any, start: int, block: Array) -> None:
    """Multiply elements from ``start`` on, in place, by the factors of their rows, if any."""
    if vector.factors:
        stop, row = start + block.size, vector.factor_row
        factors = carray(_floats(vector.factors), (-(-stop // row),))
        for number in range(start // row, factors.size):
            factor = factors[number]
            part = block[max(number * row - start, 0) : (number + 1) * row - start]
            for i in range(part.size):
                part[i] *= factor


@_compiled
def count_high(vectors: Array, size: int, low: int, counts: Array) -> int:
    """Add to ``counts`` (int64) each magnitude of a vector by its bits above the ``low`` ones.

    It is the one in ``vectors``, of ``size`` elements. The result is how many are not zero.
    """
    nonzero = 0
    block, other = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.float32)
    bits = block.view(np.int32)
    for start in range(0, size, _BLOCK):
        count = min(_BLOCK, size - start)
        _difference(vectors[0], start, block[:count], other[:count])
        for i in range(count):
            magnitude = bits[i] & 0x7FFFFFFF
            counts[magnitude >> low] += 1
            nonzero += magnitude != 0
    return nonzero


@_compiled
def count_low(
    vectors: Array, size: int, highs: Array, low: int, step: int, counts: Any, levels: Array
) -> None:
    """Count the magnitudes whose bits above the ``low`` ones are one of ``highs`` by those below.

    Each of ``highs`` (int32) has one of the three arrays ``counts`` (int64); those whose low bits
    are a multiple of 2**``step`` go to its row of ``levels`` (int32) by that multiple too.
    """
    lowest = (1 << low) - 1
    finer = (1 << step) - 1
    inside = np.empty(_BLOCK, np.int32)
    block, other = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.float32)
    bits = block.view(np.int32)
    wanted = np.zeros(1 << (31 - low), np.uint8)
    for high in highs:
        wanted[high] = 1
    for start in range(0, size, _BLOCK):
        count = min(_BLOCK, size - start)
        _difference(vectors[0], start, block[:count], other[:count])
        # Which elements those are is unforeseeable for a processor, so this has no branch.
        hits = zeros = 0
        for i in range(count):
            magnitude = bits[i] & 0x7FFFFFFF
            inside[hits] = magnitude
            hits += wanted[magnitude >> low] & (magnitude != 0)
            zeros += magnitude == 0
        for key in range(len(highs)):
            high, table, multiples = highs[key], counts[key], levels[key]
            if high == 0:
                table[0] += zeros
                multiples[0] += zeros
            for i in range(hits):
                if inside[i] >> low == high:
                    magnitude = inside[i] & lowest
                    table[magnitude] += 1
                    if magnitude & finer == 0:
                        multiples[magnitude >> step] += 1


@_compiled
def _hash(first: np.uint32, second: np.uint32, constants: Array, out: Array) -> None:
    """The numbers of `methods.random` with these words, as uint32."""
    weyl, factor, other = constants
    for place in range(out.size):
        x = np.uint32(first + np.uint32(np.uint32(place) * weyl))
        x ^= x >> np.uint32(16)
        x = np.uint32(x * factor) ^ second
        x ^= x >> np.uint32(15)
        out[place] = np.uint32(x * other)


@_compiled
def _draw(vector: Any, start: int, constants: Array, numbers: Array) -> None:
    """Write the numbers of a vector's elements from ``start`` on to ``numbers`` (int32)."""
    out, weyl = numbers.view(np.uint32), constants[0]
    end = min(max(vector.word_end - start, 0), out.size)
    first = np.uint32(vector.first + np.uint32(np.uint32(start) * weyl))
    _hash(first, vector.second, constants, out[:end])
    if end < out.size:
        place = np.uint32(start + end - vector.word_end)
        first = np.uint32(vector.next_first + np.uint32(place * weyl))
        _hash(first, vector.next_second, constants, out[end:])


@_compiled
def _keep_above(part: Array, limit: np.float32) -> None:
    """Set to zero, in place, what is not larger than ``limit``; NaN stays."""
    for i in range(part.size):
        part[i] = np.float32(0.0) if abs(part[i]) <= limit else part[i]


@_compiled
def _keep_upto(part: Array, limit: np.float32) -> None:
    """Set to zero, in place, what is larger than ``limit``, and NaN."""
    for i in range(part.size):
        part[i] = part[i] if abs(part[i]) <= limit else np.float32(0.0)


@_compiled
def _buckets(row: int) -> tuple[int, int]:
    """How many buckets the magnitudes of a row are sorted into, and how many bits that ignores.

    The lowest bucket is for zeros, the next one for all that is small.
    """
    finer = 2
    while finer < 8 and _OCTAVES << finer < row // 4:
        finer += 1
    return (_OCTAVES << finer) + 1, 23 - finer


@_compiled
def _room_for_ranks(vectors: Array) -> Any:
    """Work for `_decide_by_rank` on rows of these vectors: none where nothing is ranked."""
    row = vectors["ranked_row"].max()
    buckets = _buckets(row)[0] + 1
    # No matrices: of the rows they are unpacked to numba does not know that they are contiguous.
    return (
        (np.empty(row, np.int32), np.empty(row, np.int32)),
        (np.empty(row, np.uint32), np.empty(row, np.uint32), np.empty(row, np.uint32)),
        (np.empty(buckets, np.int32), np.empty(buckets, np.int32)),
        (np.empty(buckets, np.int32), np.empty(buckets, np.int32)),
    )


@_compiled
def _find_between(numbers: Array, low: int, high: int, found: Array) -> int:
    """Write the places of numbers from ``low`` up to, not with, ``high``; returns how many."""
    # Without branches: which way they go is what is drawn at random. So in all that follows.
    span = np.uint32(high - low)
    count = np.uint32(0)
    for i in range(numbers.size):
        found[count] = i
        count = np.uint32(count + np.uint32(np.uint32(numbers[i] - low) < span))
    return int(count)


@_compiled
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
    above[:] = 0
    for i in range(magnitudes.size):
        above[bucket[i]] += 1
    running = 0
    for b in range(buckets, -1, -1):
        inside = above[b]
        above[b] = running
        running += inside


@_compiled
def _steps_of_buckets(above: Array, steps: Array, lowest: Array, highest: Array) -> None:
    """Write the steps of the last and the first rank in each bucket; see `_sort_into_buckets`."""
    last = steps.size - 1
    for b in range(above.size):
        end = above[b - 1] if b else steps.size
        highest[b] = steps[np.uint32(min(above[b], last))]
        lowest[b] = steps[np.uint32(max(end - 1, 0))]
    lowest[0] = highest[0]  # zeros are decided: they stay what they are


@_compiled
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


@_compiled
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


@_compiled
def _rank_all(magnitudes: Array, asked: int) -> bool:
    """Replace all magnitudes by their ranks if that is less work than to count ``asked`` of them.

    Returns whether it was.
    """
    falls = True
    for i in range(1, magnitudes.size):
        falls &= magnitudes[i - 1] >= magnitudes[i]
    if falls:  # as where all are equal, which is usual
        for i in range(magnitudes.size):
            magnitudes[i] = i
    elif asked > _SCANNED:
        order = np.argsort(_GREATEST - magnitudes, kind="mergesort")
        for rank in range(order.size):
            magnitudes[order[rank]] = rank
    return falls or asked > _SCANNED


@_compiled
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


@_compiled
def _decide_in_order(
    numbers: Array,
    steps: Array,
    undecided: Array,
    bucket: Array,
    ends: Array,
    ordered: Array,
    place: Array,
    wanted: Array,
) -> None:
    """See `_decide_by_rank` and `_order_by_bucket`; ``wanted`` is work."""
    wanted[:] = 0
    for i in undecided:
        wanted[bucket[i]] += 1
    for i in undecided:
        b = bucket[i]
        start = ends[b + 1]
        own, inside = place[i] - start, ordered[start : ends[b]]
        if wanted[b] > _FEW:
            wanted[b] = -1 if _rank_all(inside, wanted[b]) else 0
        rank = _rank(inside, own) if wanted[b] >= 0 else inside[own]
        if numbers[i] >= steps[start + rank]:
            numbers[i] = _GREATEST


@_compiled
def _decide_by_rank(bits: Array, numbers: Array, steps: Array, work: Any) -> None:
    """Make the number of each element the largest if it is not below the step of its rank.

    Then those below the first step are those that are below their own. ``bits`` are those of
    float32 values, all are int32; ``steps``, as long as a row, falls. The rank of an element is
    how many in its row are larger in magnitude, or as large and before it; that of zeros is any.

    Most numbers lie below all steps or none. For the others magnitudes are counted by buckets,
    each of which holds neighbouring ranks; only where a number lies between the steps of its
    bucket's ends does the rank itself matter.
    """
    row = steps.size
    (magnitudes, ordered), (undecided, bucket, place), (above, wanted), (lowest, highest) = work
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
            _decide_in_order(drawn, steps, undecided[:count], bucket, above, ordered, place, wanted)


@_compiled
def _trim(
    vector: Any, start: int, block: Array, numbers: Array, work: Array, constants: Array
) -> None:
    """Set to zero what is dropped of a vector's elements from ``start`` on, which fill ``block``.

    ``numbers`` (int32) is work as long as ``block``, ``work`` is that of `_room_for_ranks`.
    """
    count = block.size
    if vector.above:
        end = min(max(vector.above_end - start, 0), count)
        _keep_above(block[:end], vector.above_before)
        _keep_above(block[end:], vector.above_after)
    if vector.upto:
        end = min(max(vector.upto_end - start, 0), count)
        _keep_upto(block[:end], vector.upto_before)
        _keep_upto(block[end:], vector.upto_after)
    if vector.draws:
        bits = block.view(np.int32)
        _draw(vector, start, constants, numbers)
        if vector.ranked_row:
            steps = carray(_ints(vector.steps), (vector.ranked_row,))
            _decide_by_rank(bits, numbers, steps, work)
        for i in range(count):
            bits[i] = bits[i] if numbers[i] < vector.bound else 0


@_compiled
def _block_of(vectors: Array) -> int:
    """Elements that are worked on at once: whole rows where a vector's elements are ranked."""
    row = vectors["ranked_row"].max()
    return max(_BLOCK // row, 1) * row if row else _BLOCK


@_compiled
def _sum_runs(block: Array, start: int, size: int, squares: bool, run: Array, sums: Array) -> None:
    """Write sums of runs of magnitudes or squares, by adding halves; what lacks of the last is 0.

    Blocks of a vector of ``size`` come one after the other, this one from ``start`` on; what
    begins of a run in one block and ends in another waits in ``run``.
    """
    done = 0
    while done < block.size:
        place = (start + done) % _RUN
        part = block[done : done + _RUN - place]
        for i in range(part.size):
            run[place + i] = part[i] * part[i] if squares else abs(part[i])
        done += part.size
        if place + part.size == _RUN or start + done == size:
            run[place + part.size :] = 0.0
            half = _RUN // 2
            while half:
                upper = run[half : 2 * half]
                for i in range(half):
                    run[i] += upper[i]
                half //= 2
            sums[(start + done - 1) // _RUN] = run[0]


@_compiled
def run_sums(
    vectors: Array, constants: Array, size: int, squares: bool, whole: Array, kept: Array
) -> None:
    """Sums of the magnitudes of the one vector in ``vectors``, run by run, and of what is kept.

    Or of their squares.
    """
    length, work = _block_of(vectors), _room_for_ranks(vectors)
    other, numbers = np.empty(length, np.float32), np.empty(length, np.int32)
    block = np.empty(length, np.float32)
    run, kept_run = np.empty(_RUN, np.float32), np.empty(_RUN, np.float32)
    vector = vectors[0]
    trims = vector.above or vector.upto or vector.draws
    for start in range(0, size, length):
        part = block[: min(length, size - start)]
        _difference(vector, start, part, other[: part.size])
        _sum_runs(part, start, size, squares, run, whole)
        if trims:
            _trim(vector, start, part, numbers[: part.size], work, constants)
            _sum_runs(part, start, size, squares, kept_run, kept)
    if not trims:
        kept[:] = whole


@_compiled
def dot_products(vectors: Array, size: int, sums: Array) -> None:
    """Write the dot products of all pairs of vectors to ``sums``, run by run; see `methods.dots`.

    ``sums`` is a float64 matrix, of a row for each pair.
    """
    block, other = np.empty(_DOT_RUN, np.float32), np.empty(_DOT_RUN, np.float32)
    doubles = np.empty((vectors.size, _DOT_RUN), np.float64)
    lanes = np.empty(_LANES, np.float64)
    for run in range(sums.shape[1]):
        start = run * _DOT_RUN
        count = min(_DOT_RUN, size - start)
        for number in range(vectors.size):
            _difference(vectors[number], start, block[:count], other[:count])
            for i in range(count):
                doubles[number, i] = block[i]
            for i in range(count, _DOT_RUN):
                doubles[number, i] = 0.0
        pair = 0
        for first in range(vectors.size):
            for second in range(first + 1):
                sums[pair, run] = _dot(doubles[first], doubles[second], lanes)
                pair += 1


@_compiled
def _dot(one: Array, other: Array, lanes: Array) -> Any:
    """The dot product of a run; overwrites ``lanes``."""
    for k in range(_LANES):
        lanes[k] = one[k] * other[k]
    for start in range(_LANES, _DOT_RUN, _LANES):
        for k in range(_LANES):
            lanes[k] += one[start + k] * other[start + k]
    half = _LANES // 2
    while half:
        for k in range(half):
            lanes[k] += lanes[half + k]
        half //= 2
    return lanes[0]


@_compiled
def combine(
    vectors: Array,
    constants: Array,
    elects: bool,
    divides: bool,
    cancelled: np.float32,
    base: int,
    base_bytes: int,
    scale: np.float32,
    out: Array,
) -> None:
    """See `methods.compiled.Loops.combine`."""
    zero, one = np.float32(0.0), np.float32(1.0)
    # Without a base the first product has to stay what it is, even the sign of a zero.
    nothing = zero if base else -zero
    length, work = _block_of(vectors), _room_for_ranks(vectors)
    blocks = np.empty((vectors.size, length), np.float32)
    other, numbers = np.empty(length, np.float32), np.empty(length, np.int32)
    sign = np.empty(length, np.float32)
    total = np.empty(length, np.float32)
    divisor = np.empty(length, np.float32)
    for start in range(0, out.size, length):
        count = min(length, out.size - start)
        for i in range(count):
            total[i] = nothing
            divisor[i] = zero
        loaded = 0
        for number in range(vectors.size):
            vector, block = vectors[number], blocks[number, :count]
            _load(vector.address, vector.bytes, start, block)
            if vector.minus:
                if vector.minus != loaded:
                    loaded = vector.minus
                    _load(loaded, vector.minus_bytes, start, other[:count])
                for i in range(count):
                    block[i] -= other[i]
            _multiply_rows(vector, start, block)
            _trim(vector, start, block, numbers[:count], work, constants)
            weight = vector.vote if elects else vector.coefficient
            for i in range(count):
                total[i] = _fused(weight, block[i], total[i])
        if elects:
            for i in range(count):
                sign[i] = one if total[i] >= zero else -one
                total[i] = zero
            for number in range(vectors.size):
                vector, block = vectors[number], blocks[number, :count]
                flip = -one if vector.vote < zero else one
                coefficient = flip * vector.coefficient
                share = vector.share
                for i in range(count):
                    value = block[i] * sign[i] * flip
                    agreeing = zero if value < zero else value
                    total[i] = _fused(coefficient, agreeing, total[i])
                    divisor[i] += share if agreeing > zero else zero
            for i in range(count):
                value = total[i] * sign[i]
                if divides:
                    value /= divisor[i] + (one if abs(divisor[i]) <= cancelled else zero)
                total[i] = value
        result = out[start : start + count]
        if not base:
            result[:] = total[:count]
            continue
        if base != loaded:
            _load(base, base_bytes, start, other[:count])
        for i in range(count):
            result[i] = _fused(scale, total[i], other[i])


@_compiled
def choose(vectors: Array, least: float, out: Array) -> None:
    """Write a vector's first operand where its magnitude reaches ``least``, else its second."""
    score, other = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.float32)
    vector, limit = vectors[0], np.float32(least)
    for start in range(0, out.size, _BLOCK):
        count = min(_BLOCK, out.size - start)
        block = out[start : start + count]
        _load(vector.address, vector.bytes, start, block)
        _load(vector.minus, vector.minus_bytes, start, other[:count])
        for i in range(count):
            score[i] = block[i] - other[i]
        _multiply_rows(vector, start, score[:count])
        for i in range(count):
            first, second = block[i], other[i]
            block[i] = first if abs(score[i]) >= limit else second


@_compiled
def _raise(highest: Array, others: Array) -> None:
    """Raise elements, in place, to those of ``others`` that are higher."""
    for i in range(others.size):
        own, other = highest[i], others[i]
        highest[i] = other if other > own else own


@_compiled
def _highest(address: int, size: int, start: int, count: int, top: Array, block: Array) -> Any:
    """The highest of elements at an address, or any where one is NaN; two blocks are work."""
    width = min(count, _BLOCK)
    _load(address, size, start, top[:width])
    for first in range(width, count, _BLOCK):
        part = block[: min(_BLOCK, count - first)]
        _load(address, size, start + first, part)
        _raise(top, part)
    while width > 1:
        half = (width + 1) // 2
        _raise(top, top[half:width])
        width = half
    return top[0]


@_compiled
def subtract_highest(address: int, size: int, out: Array, highest: Array) -> None:
    """Write the rows at an address, less their highest elements, to ``out`` (a float64 matrix).

    ``highest`` gets those elements.
    """
    block, other = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.float32)
    row = out.shape[1]
    for number in range(out.shape[0]):
        begin = number * row
        top = np.float64(_highest(address, size, begin, row, block, other))
        highest[number] = top
        for start in range(0, row, _BLOCK):
            part = out[number, start : start + _BLOCK]
            _load(address, size, begin + start, block[: part.size])
            for i in range(part.size):
                part[i] = np.float64(block[i]) - top


@_compiled
def weigh(address: int, size: int, minus: int, minus_size: int, out: Array) -> None:
    """Multiply ``out`` (float64), in place, by the differences of elements at two addresses."""
    block, other = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.float32)
    for start in range(0, out.size, _BLOCK):
        part = out[start : start + _BLOCK]
        _load(address, size, start, block[: part.size])
        _load(minus, minus_size, start, other[: part.size])
        for i in range(part.size):
            part[i] *= np.float64(block[i]) - np.float64(other[i])
