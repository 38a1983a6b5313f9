"""Eigenvalues and eigenvectors of symmetric matrices, in float64.

A matrix is made tridiagonal by reflections (Householder 1958), its largest eigenvalues are found by
bisection (Barth, Martin, Wilkinson 1967) and their vectors by inverse iteration (Peters, Wilkinson
1971), each kept orthogonal to those before.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mergeloom.methods.ops.loops.blocks import Array, compiled

NOTHING = 1e-14
"""Eigenvalues of a Gram matrix below this share of the largest are rounding."""
EPSILON = 2.0**-52
_SOLVES = 4
"""Steps of inverse iteration: two are enough where no other eigenvalue is near."""


@compiled
def dot(x: Array, y: Array) -> float:
    """The dot product, in eight sums, which vector code can be made of."""
    a = b = c = d = e = f = g = h = 0.0
    count = min(x.size, y.size)
    whole = count - count % 8
    for i in range(0, whole, 8):
        a += x[i] * y[i]
        b += x[i + 1] * y[i + 1]
        c += x[i + 2] * y[i + 2]
        d += x[i + 3] * y[i + 3]
        e += x[i + 4] * y[i + 4]
        f += x[i + 5] * y[i + 5]
        g += x[i + 6] * y[i + 6]
        h += x[i + 7] * y[i + 7]
    total = ((a + b) + (c + d)) + ((e + f) + (g + h))
    for i in range(whole, count):
        total += x[i] * y[i]
    return total


@compiled
def add(out: Array, factor: float, x: Array) -> None:
    for i in range(min(out.size, x.size)):
        out[i] += factor * x[i]


@compiled
def _tridiagonalise(
    matrix: Array, size: int, diagonal: Array, beside: Array, lengths: Array, work: Array
) -> None:
    """Reflect a symmetric matrix, of which the lower half is given, to a tridiagonal one.

    ``diagonal`` and, from 1 on, ``beside`` are its elements. The reflections stay in the rows of
    ``matrix``, which they are vectors of, with half of their squared ``lengths``, 0 for none.
    """
    change, next_change = work[:size], work[size : 2 * size]
    pending = 0  # the row whose reflection has not been applied yet
    for i in range(size - 1, -1, -1):
        row = matrix[i * size : i * size + i]
        if pending:
            above = matrix[pending * size : pending * size + pending]
            add(matrix[i * size : i * size + i + 1], -change[i], above)
            add(matrix[i * size : i * size + i + 1], -above[i], change)
        diagonal[i] = matrix[i * size + i]
        lengths[i] = 0.0
        if i == 0:
            break
        beside[i] = row[i - 1]
        rest = dot(row[: i - 1], row[: i - 1])
        if rest > 0.0:
            whole = rest + row[i - 1] * row[i - 1]
            root = -np.copysign(np.sqrt(whole), row[i - 1])
            lengths[i] = whole - row[i - 1] * root
            beside[i] = root
            row[i - 1] -= root
        for j in range(i):
            next_change[j] = 0.0
        for j in range(i):
            own = matrix[j * size : j * size + j + 1]
            if pending:
                above = matrix[pending * size : pending * size + pending]
                add(own, -change[j], above)
                add(own, -above[j], change)
            if lengths[i] > 0.0:
                next_change[j] += dot(own, row[: j + 1])
                add(next_change[:j], row[j], own)
        pending = 0
        if lengths[i] > 0.0:
            for j in range(i):
                next_change[j] /= lengths[i]
            add(next_change[:i], -0.5 * dot(row, next_change) / lengths[i], row)
            change, next_change = next_change, change
            pending = i


@compiled
def _smaller(diagonal: Array, beside: Array, size: int, bound: float) -> int:
    """Number of eigenvalues of a tridiagonal matrix that are smaller than ``bound``."""
    count, pivot = 0, 1.0
    for i in range(size):
        square = beside[i] * beside[i] if i else 0.0
        pivot = diagonal[i] - bound - square / pivot
        if pivot == 0.0:
            pivot = -EPSILON * EPSILON
        count += pivot < 0.0
    return count


@compiled
def eigenvalue(diagonal: Array, beside: Array, size: int, number: int, most: float) -> float:
    """The eigenvalue above ``number`` others; none is larger than ``most`` in magnitude."""
    low, high = -most, most
    while high - low > 2.0 * EPSILON * max(abs(low), abs(high)) + EPSILON * EPSILON:
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        if _smaller(diagonal, beside, size, middle) > number:
            high = middle
        else:
            low = middle
    return 0.5 * (low + high)


@compiled
def _factorise(
    diagonal: Array, beside: Array, size: int, shift: float, work: Array, swapped: Array
) -> None:
    """The triangular factors of a tridiagonal matrix minus ``shift``, with pivots.

    ``work`` gets the three diagonals of the upper one and the multipliers.
    """
    first, second, third = work[:size], work[size : 2 * size], work[2 * size : 3 * size]
    factors = work[3 * size : 4 * size]
    here, after = diagonal[0] - shift, beside[1] if size > 1 else 0.0
    for i in range(size - 1):
        below, middle = beside[i + 1], diagonal[i + 1] - shift
        beyond = beside[i + 2] if i + 2 < size else 0.0
        if abs(below) > abs(here):
            swapped[i] = 1
            factors[i] = here / below
            first[i], second[i], third[i] = below, middle, beyond
            here, after = after - factors[i] * middle, -factors[i] * beyond
        else:
            swapped[i] = 0
            if abs(here) < EPSILON:
                here = EPSILON
            factors[i] = below / here
            first[i], second[i], third[i] = here, after, 0.0
            here, after = middle - factors[i] * after, beyond
    first[size - 1] = here if abs(here) >= EPSILON else EPSILON
    second[size - 1] = third[size - 1] = 0.0


@compiled
def _solve(vector: Array, size: int, work: Array, swapped: Array) -> None:
    """Solve the equations that `_factorise` prepared, in place."""
    first, second, third = work[:size], work[size : 2 * size], work[2 * size : 3 * size]
    factors = work[3 * size : 4 * size]
    for i in range(size - 1):
        if swapped[i]:
            vector[i], vector[i + 1] = vector[i + 1], vector[i]
        vector[i + 1] -= factors[i] * vector[i]
    for i in range(size - 1, -1, -1):
        value = vector[i]
        if i + 1 < size:
            value -= second[i] * vector[i + 1]
        if i + 2 < size:
            value -= third[i] * vector[i + 2]
        vector[i] = value / first[i]


@compiled
def tridiagonal_pairs(
    diagonal: Array,
    beside: Array,
    size: int,
    count: int,
    values: Array,
    vectors: Array,
    work: Array,
    marks: Array,
) -> int:
    """The same of a tridiagonal matrix, which is divided by a number; ``work`` has ``4 * size``."""
    most = 0.0
    for i in range(size):
        after = abs(beside[i + 1]) if i + 1 < size else 0.0
        most = max(most, abs(diagonal[i]) + abs(beside[i]) + after)
    if most == 0.0:
        return 0
    for i in range(size):  # so that the shifts and the least pivot are shares of 1
        diagonal[i] /= most
        beside[i] /= most
    state, found = np.uint32(1), 0
    for number in range(count):
        value = eigenvalue(diagonal, beside, size, size - 1 - number, 1.0 + 8.0 * EPSILON)
        if value <= NOTHING or (number and value <= NOTHING * values[0] / most):
            break
        shift = value
        if number:
            shift = min(shift, values[number - 1] / most - 4.0 * EPSILON)
        values[number] = value * most
        vector = vectors[number * size : (number + 1) * size]
        state = draw(vector, state)
        _factorise(diagonal, beside, size, shift, work, marks)
        for _ in range(_SOLVES):
            _solve(vector, size, work, marks)
            normalise(vector)
            remove(vector, vectors, size, number)
            normalise(vector)
        found = number + 1
    return found


@compiled
def draw(vector: Array, state: int) -> int:
    """Fill a vector with numbers from 0.5 to 1 that follow from ``state``; returns the next one."""
    for i in range(vector.size):
        state = np.uint32(state * np.uint32(1664525) + np.uint32(1013904223))
        vector[i] = 0.5 + state / 8589934592.0
    return state


@compiled
def remove(vector: Array, others: Array, size: int, count: int) -> None:
    """Subtract from a vector what lies along the first ``count`` of others, of length 1."""
    for number in range(count):
        before = others[number * size : (number + 1) * size]
        add(vector, -dot(vector, before), before)


@compiled
def eigenpairs(
    matrix: Array, size: int, count: int, values: Array, vectors: Array, work: Array, marks: Array
) -> Any:
    """The ``count`` largest eigenvalues of a symmetric matrix with no negative ones, falling.

    The lower half of ``matrix`` is given, and overwritten. Row i of ``vectors`` belongs to
    ``values[i]``. Returns how many are more than rounding; the others are not written. ``work`` has
    ``9 * size`` elements, ``marks`` ``size``.
    """
    largest = 0.0
    for i in range(size):
        largest = max(largest, abs(matrix[i * size + i]))
    if largest == 0.0:
        return 0
    for i in range(size * size):
        matrix[i] /= largest
    diagonal, beside, lengths = work[:size], work[size : 2 * size], work[2 * size : 3 * size]
    beside[0] = 0.0
    rest = work[3 * size : 9 * size]
    _tridiagonalise(matrix, size, diagonal, beside, lengths, rest)
    found = tridiagonal_pairs(diagonal, beside, size, count, values, vectors, rest, marks)
    for number in range(found):
        values[number] *= largest
        vector = vectors[number * size : (number + 1) * size]
        for i in range(2, size):
            if lengths[i] > 0.0:
                row = matrix[i * size : i * size + i]
                add(vector[:i], -dot(row, vector) / lengths[i], row)
    return found


@compiled
def normalise(vector: Array) -> None:
    largest = 0.0
    for i in range(vector.size):
        largest = max(largest, abs(vector[i]))
    if largest > 0.0:
        for i in range(vector.size):
            vector[i] /= largest
        length = np.sqrt(dot(vector, vector))
        for i in range(vector.size):
            vector[i] /= length
