"""Loops compiled by numba, for `methods.compiled`. Importing this module imports numba.

Each gives bit for bit what the torch operations that it stands for give: the same roundings in the
same order. Arrays are flat and contiguous unless said otherwise.
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
_SCANNED = 24
"""Elements of a bucket whose ranks are counted one by one; for more the bucket is sorted."""

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


VECTOR = np.dtype(
    [
        ("address", np.int64),
        ("bytes", np.int64),
        ("minus", np.int64),
        ("minus_bytes", np.int64),
        ("factors", np.int64),
        ("row", np.int64),
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
        ("bound", np.int32),
        ("vote", np.float32),
        ("coefficient", np.float32),
        ("share", np.float32),
    ],
    align=True,
)
"""A vector: the addresses of its operands (``minus`` may be 0: none), the bytes of an element, the
address of the factors of its rows (or 0) and their length, the conditions of
`methods.compiled.Kept`, and the weights it has."""


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
        stop, row = start + block.size, vector.row
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
def draw(
    first: np.uint32,
    second: np.uint32,
    weyl: np.uint32,
    factor: np.uint32,
    other: np.uint32,
    out: Array,
) -> None:
    """The numbers of `methods.random`, as uint32."""
    for place in range(out.size):
        x = np.uint32(first + np.uint32(np.uint32(place) * weyl))
        x ^= x >> np.uint32(16)
        x = np.uint32(x * factor) ^ second
        x ^= x >> np.uint32(15)
        out[place] = np.uint32(x * other)


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
def _trim(vector: Any, start: int, block: Array, numbers: Array, constants: Array) -> None:
    """Set to zero what is dropped of a vector's elements from ``start`` on, which fill ``block``.

    ``numbers`` (int32) is work as long as ``block``.
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
        weyl, factor, other = constants
        first = np.uint32(vector.first + np.uint32(np.uint32(start) * weyl))
        draw(first, vector.second, weyl, factor, other, numbers.view(np.uint32))
        bits = block.view(np.int32)
        for i in range(count):
            bits[i] = bits[i] if numbers[i] < vector.bound else 0


@_compiled
def sparse(vectors: Array, constants: Array, out: Array) -> None:
    """Write what is kept of the one vector in ``vectors`` to ``out``; the rest is zero."""
    other, numbers = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.int32)
    vector = vectors[0]
    for start in range(0, out.size, _BLOCK):
        count = min(_BLOCK, out.size - start)
        block = out[start : start + count]
        _difference(vector, start, block, other[:count])
        _trim(vector, start, block, numbers[:count], constants)


@_compiled
def _sum_runs(block: Array, squares: bool, work: Array, sums: Array) -> None:
    """Write the sums of runs of magnitudes or squares, by adding halves.

    What lacks of the last run is 0.
    """
    for run in range(sums.size):
        part = block[run * _RUN : (run + 1) * _RUN]
        for i in range(part.size):
            work[i] = part[i] * part[i] if squares else abs(part[i])
        for i in range(part.size, _RUN):
            work[i] = np.float32(0.0)
        half = _RUN // 2
        while half:
            upper = work[half : 2 * half]
            for i in range(half):
                work[i] += upper[i]
            half //= 2
        sums[run] = work[0]


@_compiled
def run_sums(
    vectors: Array, constants: Array, size: int, squares: bool, whole: Array, kept: Array
) -> None:
    """Sums of the magnitudes of the one vector in ``vectors``, run by run, and of what is kept.

    Or of their squares.
    """
    other, numbers = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.int32)
    block, work = np.empty(_BLOCK, np.float32), np.empty(_RUN, np.float32)
    vector = vectors[0]
    trims = vector.above or vector.upto or vector.draws
    for start in range(0, size, _BLOCK):
        part = block[: min(_BLOCK, size - start)]
        runs = slice(start // _RUN, -(-(start + part.size) // _RUN))
        _difference(vector, start, part, other[: part.size])
        _sum_runs(part, squares, work, whole[runs])
        if trims:
            _trim(vector, start, part, numbers[: part.size], constants)
            _sum_runs(part, squares, work, kept[runs])
        else:
            kept[runs] = whole[runs]


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
    blocks = np.empty((vectors.size, _BLOCK), np.float32)
    other, numbers = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.int32)
    sign = np.empty(_BLOCK, np.float32)
    total = np.empty(_BLOCK, np.float32)
    divisor = np.empty(_BLOCK, np.float32)
    for start in range(0, out.size, _BLOCK):
        count = min(_BLOCK, out.size - start)
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
            _trim(vector, start, block, numbers[:count], constants)
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


@_compiled
def step(vectors: Array, most: float, out: Array) -> None:
    """Write a vector's second operand plus the vector, clipped to ``most`` in magnitude.

    NaN stays.
    """
    other = np.empty(_BLOCK, np.float32)
    limit = np.float32(most)
    for start in range(0, out.size, _BLOCK):
        count = min(_BLOCK, out.size - start)
        block = out[start : start + count]
        _difference(vectors[0], start, block, other[:count])
        for i in range(count):
            value = block[i]
            value = -limit if value < -limit else value
            block[i] = (limit if value > limit else value) + other[i]


@_compiled
def _sort_into_buckets(row: Array, width: int, bucket: Array, inside: Array) -> None:
    """Write the bucket of each element of a row, and how many lie inside of each."""
    buckets = inside.size - 1
    largest = 0
    for i in range(row.size):
        largest = max(largest, row[i] & 0x7FFFFFFF)
    base = (largest >> width) - buckets
    for i in range(row.size):  # a loop of its own, so that it becomes vector code
        magnitude = row[i] & 0x7FFFFFFF
        bucket[i] = max((magnitude >> width) - base, 1) if magnitude else 0
    inside[:] = 0
    for i in range(row.size):
        inside[bucket[i]] += 1


@_compiled
def drop_by_rank(bits: Array, numbers: Array, steps: Array, width: int, buckets: int) -> None:
    """Set to zero, in place, each element whose number is not below the step of its rank.

    ``bits`` and ``numbers`` are int32 matrices, ``steps`` falls. The rank of an element is the
    number of elements in its row that are larger in magnitude, or as large and before it.

    Magnitudes are told apart by the bits above the ``width`` lowest, in ``buckets`` buckets below
    the row's largest, zeros apart. A bucket holds neighbouring ranks; only where a number lies
    between the steps of its bucket's ends does the rank itself matter.
    """
    rows, row = bits.shape
    # Bucket b is number b + 1, zeros are number 0.
    above = np.empty(buckets + 1, np.int64)
    places = np.empty(buckets + 1, np.int64)
    wanted = np.zeros(buckets + 1, np.int32)
    bucket = np.empty(row, np.int32)
    drops = np.empty(row, np.bool_)
    certain = np.empty(buckets + 1, np.int32)
    possible = np.empty(buckets + 1, np.int32)
    between = np.empty(row + 1, np.int32)
    keys = np.empty(row, np.int64)
    for r in range(rows):
        own, drawn = bits[r], numbers[r]
        _sort_into_buckets(own, width, bucket, above)
        running = 0
        for b in range(buckets, -1, -1):
            inside = above[b]
            above[b] = running
            places[b] = running
            running += inside
            if inside:
                certain[b] = steps[above[b]]
                possible[b] = steps[running - 1]
        possible[0] = certain[0]  # zeros are decided: they stay what they are
        undecided = 0
        for i in range(row):
            # Without branches: which way they go is what is drawn at random.
            b = bucket[i]
            drops[i] = drawn[i] >= certain[b]
            between[undecided] = i
            undecided += (drawn[i] >= possible[b]) & ~drops[i]
        if undecided:
            for u in range(undecided):
                wanted[bucket[between[u]]] += 1
            for i in range(row):
                b = bucket[i]
                keys[places[b]] = ((own[i] & 0x7FFFFFFF) ^ 0x7FFFFFFF) << 32 | i
                places[b] += 1
            for u in range(undecided):
                i = between[u]
                b = bucket[i]
                start, stop = above[b], above[b - 1]
                if 0 < wanted[b] <= _SCANNED:
                    key = ((own[i] & 0x7FFFFFFF) ^ 0x7FFFFFFF) << 32 | i
                    rank = start
                    for k in range(start, stop):
                        rank += keys[k] < key
                    drops[i] = drawn[i] >= steps[rank]
                elif wanted[b]:
                    keys[start:stop].sort()
                    for k in range(start, stop):
                        i = keys[k] & 0xFFFFFFFF
                        drops[i] = drawn[i] >= steps[k]
                    wanted[b] = 0
            for u in range(undecided):
                wanted[bucket[between[u]]] = 0
        for i in range(row):
            own[i] = 0 if drops[i] else own[i]
