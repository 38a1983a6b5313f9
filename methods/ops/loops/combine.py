"""Combinations of vectors, element by element, added to a base."""

from __future__ import annotations

import numpy as np

from mergeloom.methods.ops.loops.blocks import (
    Address,
    Loop,
    copy,
    difference,
    fill,
    floats,
    fused,
    int32s,
    load,
    multiply,
    uint32s,
    vectors_at,
)
from mergeloom.methods.ops.loops.keep import trim
from mergeloom.methods.ops.loops.sizes import BLOCK


@Loop
def combine(
    vectors: Address,
    count_of_vectors: int,
    constants: Address,
    elects: int,
    divides: int,
    cancelled: float,
    base: Address,
    base_bytes: int,
    scale: float,
    out: Address,
    size: int,
    work: Address,
) -> None:
    """Combine vectors: `methods.ops.interface.Ops.combine`.

    ``elects``: 0 no sign election, 1 by sum, 2 by count. ``divides``: divide by the sum of the
    agreeing shares. ``base`` may be 0.
    """
    zero, one = np.float32(0.0), np.float32(1.0)
    multiple, smallest = np.float32(scale), np.float32(cancelled)
    # Without a base, the sum begins with -0.0, so that a first product of -0.0 keeps its sign.
    nothing = zero if base else -zero
    given, hashed = vectors_at(vectors, count_of_vectors), uint32s(constants, 3)
    step = 4 * BLOCK
    other, numbers = floats(work, BLOCK), int32s(work + step, BLOCK)
    sign, total = floats(work + 2 * step, BLOCK), floats(work + 3 * step, BLOCK)
    divisor, blocks = floats(work + 4 * step, BLOCK), work + 5 * step
    for start in range(0, size, BLOCK):
        count = min(BLOCK, size - start)
        for i in range(count):
            total[i] = nothing
            divisor[i] = zero
        loaded = 0
        for number in range(count_of_vectors):
            vector, block = given[number], floats(blocks + step * number, count)
            load(vector.address, vector.bytes, start, block)
            if vector.minus:
                if vector.minus != loaded:
                    loaded = vector.minus
                    load(loaded, vector.minus_bytes, start, other[:count])
                for i in range(count):
                    block[i] -= other[i]
            multiply(vector, start, block)
            trim(vector, start, block, numbers[:count], hashed)
            weight = vector.vote if elects else vector.coefficient
            if elects == 2:  # each vector has one vote, whatever the magnitude
                for i in range(count):
                    vote = one if block[i] > zero else -one if block[i] < zero else zero
                    total[i] = fused(weight, vote, total[i])
                continue
            for i in range(count):
                total[i] = fused(weight, block[i], total[i])
        if elects:
            for i in range(count):
                sign[i] = one if total[i] >= zero else -one
                total[i] = zero
            for number in range(count_of_vectors):
                vector, block = given[number], floats(blocks + step * number, count)
                flip = -one if vector.vote < zero else one
                coefficient = flip * vector.coefficient
                share = vector.share
                for i in range(count):
                    value = block[i] * sign[i] * flip
                    agreeing = max(value, zero)
                    total[i] = fused(coefficient, agreeing, total[i])
                    divisor[i] += share if agreeing > zero else zero
            for i in range(count):
                value = total[i] * sign[i]
                if divides:
                    value /= divisor[i] + (one if abs(divisor[i]) <= smallest else zero)
                total[i] = value
        result = floats(out + 4 * start, count)
        if not base:
            copy(total, result)
            continue
        if base != loaded:
            load(base, base_bytes, start, other[:count])
        for i in range(count):
            result[i] = fused(multiple, total[i], other[i])


@Loop
def choose(vectors: Address, least: float, out: Address, size: int, work: Address) -> None:
    """Select between a vector's two arrays: `methods.ops.interface.Ops.choose`."""
    vector, limit = vectors_at(vectors, 1)[0], np.float32(least)
    score, other = floats(work, BLOCK), floats(work + 4 * BLOCK, BLOCK)
    for start in range(0, size, BLOCK):
        count = min(BLOCK, size - start)
        block = floats(out + 4 * start, count)
        load(vector.address, vector.bytes, start, block)
        load(vector.minus, vector.minus_bytes, start, other[:count])
        for i in range(count):
            score[i] = block[i] - other[i]
        multiply(vector, start, score[:count])
        for i in range(count):
            first, second = block[i], other[i]
            block[i] = first if abs(score[i]) >= limit else second


@Loop
def step(
    vectors: Address,
    limit: float,
    base: Address,
    base_bytes: int,
    out: Address,
    size: int,
    work: Address,
) -> None:
    """Add a clipped vector to the base: `methods.ops.interface.Ops.step`."""
    vector, most = vectors_at(vectors, 1)[0], np.float32(limit)
    other = floats(work, BLOCK)
    for start in range(0, size, BLOCK):
        count = min(BLOCK, size - start)
        block = floats(out + 4 * start, count)
        difference(vector, start, block, other[:count])
        load(base, base_bytes, start, other[:count])
        for i in range(count):
            value = block[i]
            value = min(value, most)
            value = max(value, -most)
            block[i] = value + other[i]


@Loop
def disjoint(
    vectors: Address,
    count_of_vectors: int,
    epsilon: float,
    base: Address,
    base_bytes: int,
    out: Address,
    size: int,
    work: Address,
) -> None:
    """Add the mean of changed elements to the base: `methods.ops.interface.Ops.disjoint`.

    The ``coefficient`` of a vector is its excess.
    """
    zero, one, least = np.float32(0.0), np.float32(1.0), np.float32(epsilon)
    given = vectors_at(vectors, count_of_vectors)
    step = 4 * BLOCK
    block, other = floats(work, BLOCK), floats(work + step, BLOCK)
    more, by = floats(work + 2 * step, BLOCK), floats(work + 3 * step, BLOCK)
    for start in range(0, size, BLOCK):
        count = min(BLOCK, size - start)
        total = floats(out + 4 * start, count)
        for i in range(count):
            total[i] = zero
            more[i] = zero
            by[i] = zero
        for number in range(count_of_vectors):
            vector = given[number]
            difference(vector, start, block[:count], other[:count])
            excess = vector.coefficient
            for i in range(count):
                value = zero if abs(block[i]) <= least else block[i]
                total[i] += value
                more[i] = fused(excess, value, more[i])
                by[i] += one if value != zero else zero
        load(base, base_bytes, start, other[:count])
        for i in range(count):
            value = total[i] + (more[i] if by[i] == one else zero)
            total[i] = value / max(by[i], one) + other[i]


@Loop
def variance(
    vectors: Address, count_of_vectors: int, out: Address, size: int, work: Address
) -> None:
    """Write the sums of squared deviations of vectors from their mean, element by element."""
    given, divisor = vectors_at(vectors, count_of_vectors), np.float32(count_of_vectors)
    step = 4 * BLOCK
    other, mean, blocks = floats(work, BLOCK), floats(work + step, BLOCK), work + 2 * step
    for start in range(0, size, BLOCK):
        count = min(BLOCK, size - start)
        total = floats(out + 4 * start, count)
        fill(mean[:count], np.float32(0.0))
        for number in range(count_of_vectors):
            block = floats(blocks + step * number, count)
            difference(given[number], start, block, other[:count])
        # Relative to the first, so that the variance of equal values is exactly 0.
        first = floats(blocks, count)
        for i in range(count):
            other[i] = first[i]
        for number in range(count_of_vectors):
            block = floats(blocks + step * number, count)
            for i in range(count):
                block[i] -= other[i]
                mean[i] += block[i]
        for i in range(count):
            mean[i] /= divisor
            total[i] = np.float32(0.0)
        for number in range(count_of_vectors):
            block = floats(blocks + step * number, count)
            for i in range(count):
                deviation = block[i] - mean[i]
                total[i] += deviation * deviation
