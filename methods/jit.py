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


@intrinsic
def _floats(context: Any, address: Any) -> Any:
    """The float32 numbers at an address."""
    pointer = types.CPointer(types.float32)

    def generate(inner: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], inner.get_value_type(pointer))

    return pointer(types.int64), generate


@_compiled
def _widen(vector: Array, start: int, count: int, block: Array) -> None:
    """Copy elements to ``block``: float32 numbers, or the bits of bfloat16 ones (uint16)."""
    part = vector[start : start + count]  # indices from 0 on, so that loops become vector code
    if vector.itemsize == 2:
        bits = block.view(np.uint32)
        for i in range(count):
            bits[i] = np.uint32(part[i]) << np.uint32(16)
    else:
        for i in range(count):
            block[i] = part[i]


@_compiled
def _subtract(
    vector: Array, minus: Array, start: int, count: int, block: Array, other: Array
) -> None:
    """Write a difference to ``block``, with ``other`` as work; an empty ``minus`` means zeros."""
    _widen(vector, start, count, block)
    if minus.size:
        _widen(minus, start, count, other)
        for i in range(count):
            block[i] -= other[i]


@_compiled
def count_high(vector: Array, minus: Array, low: int, counts: Array) -> int:
    """Add to ``counts`` (int64) each magnitude of a difference by its bits above the ``low`` ones.

    The result is the number of elements that are not zero. An empty ``minus`` means zeros. Both
    operands are float32, or the bits of bfloat16 as uint16.
    """
    nonzero = 0
    block, other = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.float32)
    bits = block.view(np.int32)
    for start in range(0, vector.size, _BLOCK):
        count = min(_BLOCK, vector.size - start)
        _subtract(vector, minus, start, count, block, other)
        for i in range(count):
            magnitude = bits[i] & 0x7FFFFFFF
            counts[magnitude >> low] += 1
            nonzero += magnitude != 0
    return nonzero


@_compiled
def count_low(
    vector: Array, minus: Array, high: int, low: int, step: int, counts: Array, levels: Array
) -> int:
    """Count the magnitudes whose bits above the ``low`` ones are ``high`` by those low bits.

    Adds to ``counts`` (int64); those whose low bits are a multiple of 2**``step`` go to
    ``levels`` (int32) by that multiple too. The result is how many there were. The magnitudes are
    those of a difference, as for `count_high`.
    """
    found = 0
    lowest = (1 << low) - 1
    finer = (1 << step) - 1
    inside = np.empty(_BLOCK, np.int32)
    block, other = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.float32)
    bits = block.view(np.int32)
    for start in range(0, vector.size, _BLOCK):
        count = min(_BLOCK, vector.size - start)
        _subtract(vector, minus, start, count, block, other)
        # Which elements those are is unforeseeable for a processor, so this has no branch.
        hits = zeros = 0
        for i in range(count):
            magnitude = bits[i] & 0x7FFFFFFF
            inside[hits] = magnitude & lowest
            hits += (magnitude >> low == high) & (magnitude != 0)
            zeros += magnitude == 0
        if high == 0:
            counts[0] += zeros
            levels[0] += zeros
            found += zeros
        for i in range(hits):
            counts[inside[i]] += 1
            if inside[i] & finer == 0:
                levels[inside[i] >> step] += 1
        found += hits
    return found


@_compiled
def elected_sum(
    addresses: Array,
    votes: Array,
    coefficients: Array,
    shares: Array,
    divides: bool,
    cancelled: np.float32,
    out: Array,
) -> None:
    """See `methods.elect.elected_sum`. The vectors lie at ``addresses``; they are only read."""
    zero, one = np.float32(0.0), np.float32(1.0)
    sign = np.empty(_BLOCK, np.float32)
    total = np.empty(_BLOCK, np.float32)
    divisor = np.empty(_BLOCK, np.float32)
    for start in range(0, out.size, _BLOCK):
        count = min(_BLOCK, out.size - start)
        for i in range(count):
            total[i] = zero
            divisor[i] = zero
        for number in range(addresses.size):
            vector = carray(_floats(addresses[number] + 4 * start), (count,))
            vote = votes[number]
            for i in range(count):
                total[i] = _fused(vote, vector[i], total[i])
        for i in range(count):
            sign[i] = one if total[i] >= zero else -one
            total[i] = zero
        for number in range(addresses.size):
            vector = carray(_floats(addresses[number] + 4 * start), (count,))
            flip = -one if votes[number] < zero else one
            coefficient = flip * coefficients[number]
            share = shares[number]
            for i in range(count):
                value = vector[i] * sign[i] * flip
                agreeing = zero if value < zero else value
                total[i] = _fused(coefficient, agreeing, total[i])
                divisor[i] += share if agreeing > zero else zero
        for i in range(count):
            value = total[i] * sign[i]
            if divides:
                value /= divisor[i] + (one if abs(divisor[i]) <= cancelled else zero)
            out[start + i] = value


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
def drop_from(bits: Array, numbers: Array, bound: int) -> None:
    """Set to zero, in place, each element whose number (int32) is not below ``bound``."""
    for place in range(bits.size):
        bits[place] = bits[place] if numbers[place] < bound else 0


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
    between = np.empty(row + 1, np.int32)
    keys = np.empty(row, np.int64)
    for r in range(rows):
        own, drawn = bits[r], numbers[r]
        largest = 0
        for i in range(row):
            largest = max(largest, own[i] & 0x7FFFFFFF)
        base = (largest >> width) - buckets
        for b in range(buckets + 1):
            above[b] = 0
        for i in range(row):
            magnitude = own[i] & 0x7FFFFFFF
            bucket[i] = max((magnitude >> width) - base, 1) if magnitude else 0
            above[bucket[i]] += 1
        running = 0
        for b in range(buckets, -1, -1):
            inside = above[b]
            above[b] = running
            places[b] = running
            running += inside
        undecided = 0
        for i in range(row):
            # Without branches: which way they go is what is drawn at random.
            b = bucket[i]
            first, last = above[b], above[max(b - 1, 0)] - 1
            possible = (b > 0) & (drawn[i] >= steps[last])
            drops[i] = possible & (drawn[i] >= steps[first])
            between[undecided] = i
            undecided += possible & ~drops[i]
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
