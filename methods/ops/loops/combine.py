"""Combinations of sparse vectors, put on a base."""

from __future__ import annotations

import numpy as np

from mergeloom.methods.ops.loops.blocks import (
    Address,
    Loop,
    copy,
    floats,
    fused,
    ints,
    load,
    multiply_rows,
    vectors_at,
    words,
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
    """See `methods.ops.compiled_ops.Loops.combine`."""
    zero, one = np.float32(0.0), np.float32(1.0)
    multiple, smallest = np.float32(scale), np.float32(cancelled)
    # Without a base the first product has to stay what it is, even the sign of a zero.
    nothing = zero if base else -zero
    given, hashed = vectors_at(vectors, count_of_vectors), words(constants, 3)
    step = 4 * BLOCK
    other, numbers = floats(work, BLOCK), ints(work + step, BLOCK)
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
            multiply_rows(vector, start, block)
            trim(vector, start, block, numbers[:count], hashed)
            weight = vector.vote if elects else vector.coefficient
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
    """Write a vector's first operand where its magnitude reaches ``least``, else its second."""
    vector, limit = vectors_at(vectors, 1)[0], np.float32(least)
    score, other = floats(work, BLOCK), floats(work + 4 * BLOCK, BLOCK)
    for start in range(0, size, BLOCK):
        count = min(BLOCK, size - start)
        block = floats(out + 4 * start, count)
        load(vector.address, vector.bytes, start, block)
        load(vector.minus, vector.minus_bytes, start, other[:count])
        for i in range(count):
            score[i] = block[i] - other[i]
        multiply_rows(vector, start, score[:count])
        for i in range(count):
            first, second = block[i], other[i]
            block[i] = first if abs(score[i]) >= limit else second
