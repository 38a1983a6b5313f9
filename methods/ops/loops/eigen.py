"""Eigenvalues and eigenvectors of symmetric matrices, in float64.

Householder reflections (1958) make a matrix tridiagonal, bisection (Barth, Martin, Wilkinson 1967)
finds its largest eigenvalues and inverse iteration (Peters, Wilkinson 1971) their eigenvectors,
each orthogonalised against the previous ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mergeloom.methods.ops.loops.blocks import Array, compiled

NEGLIGIBLE = 1e-14
"""Eigenvalues of a Gram matrix below this fraction of the largest are rounding errors."""
EPSILON = 2.0**-52
_SOLVES = 4
"""Steps of inverse iteration; two suffice unless another eigenvalue is near."""


@compiled
def dot(x: Array, y: Array) -> float:
    """The dot product; eight partial sums let the compiler use vector instructions."""
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
    """Add ``factor`` · ``x`` to ``out``, over the shorter length."""
    for i in range(min(out.size, x.size)):
        out[i] += factor * x[i]


@compiled
def _tridiagonalise(
    matrix: Array, size: int, diagonal: Array, off_diagonal: Array, lengths: Array, work: Array
) -> None:
    """Reduce a symmetric matrix, given by its lower half, to tridiagonal form.

    Writes ``diagonal`` and, from index 1 on, ``off_diagonal``. The reflection vectors are left in
    the rows of ``matrix``; ``lengths`` has half of their squared lengths, 0 for no reflection.
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
        off_diagonal[i] = row[i - 1]
        rest = dot(row[: i - 1], row[: i - 1])
        if rest > 0.0:
            whole = rest + row[i - 1] * row[i - 1]
            root = -np.copysign(np.sqrt(whole), row[i - 1])
            lengths[i] = whole - row[i - 1] * root
            off_diagonal[i] = root
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
def _smaller(diagonal: Array, off_diagonal: Array, size: int, bound: float) -> int:
    """Number of eigenvalues of a tridiagonal matrix below ``bound`` (its Sturm count)."""
    count, pivot = 0, 1.0
    for i in range(size):
        square = off_diagonal[i] * off_diagonal[i] if i else 0.0
        pivot = diagonal[i] - bound - square / pivot
        if pivot == 0.0:
            pivot = -EPSILON * EPSILON
        count += pivot < 0.0
    return count


@compiled
def eigenvalue(diagonal: Array, off_diagonal: Array, size: int, number: int, most: float) -> float:
    """Eigenvalue ``number``, counted from 0 in ascending order, by bisection.

    No eigenvalue exceeds ``most`` in magnitude.
    """
    low, high = -most, most
    while high - low > 2.0 * EPSILON * max(abs(low), abs(high)) + EPSILON * EPSILON:
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        if _smaller(diagonal, off_diagonal, size, middle) > number:
            high = middle
        else:
            low = middle
    return 0.5 * (low + high)


@compiled
def _factorise(
    diagonal: Array, off_diagonal: Array, size: int, shift: float, work: Array, swapped: Array
) -> None:
    """LU factorisation with pivoting of a tridiagonal matrix minus ``shift`` · I.

    ``work`` receives the three diagonals of U and the multipliers, ``swapped`` the pivoting.
    """
    first, second, third = work[:size], work[size : 2 * size], work[2 * size : 3 * size]
    factors = work[3 * size : 4 * size]
    here, after = diagonal[0] - shift, off_diagonal[1] if size > 1 else 0.0
    for i in range(size - 1):
        below, middle = off_diagonal[i + 1], diagonal[i + 1] - shift
        beyond = off_diagonal[i + 2] if i + 2 < size else 0.0
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
    """Solve the system factorised by `_factorise`, in place."""
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
    off_diagonal: Array,
    size: int,
    count: int,
    values: Array,
    vectors: Array,
    work: Array,
    marks: Array,
) -> int:
    """The largest eigenpairs of a tridiagonal matrix, like `eigenpairs`.

    The matrix is scaled in place. ``work`` has ``4 * size`` elements.
    """
    most = 0.0
    for i in range(size):
        after = abs(off_diagonal[i + 1]) if i + 1 < size else 0.0
        most = max(most, abs(diagonal[i]) + abs(off_diagonal[i]) + after)
    if most == 0.0:
        return 0
    for i in range(size):  # the tolerances are relative to 1
        diagonal[i] /= most
        off_diagonal[i] /= most
    state, found = np.uint32(1), 0
    for number in range(count):
        value = eigenvalue(diagonal, off_diagonal, size, size - 1 - number, 1.0 + 8.0 * EPSILON)
        if value <= NEGLIGIBLE or (number and value <= NEGLIGIBLE * values[0] / most):
            break
        shift = value
        if number:
            shift = min(shift, values[number - 1] / most - 4.0 * EPSILON)
        values[number] = value * most
        vector = vectors[number * size : (number + 1) * size]
        state = draw(vector, state)
        _factorise(diagonal, off_diagonal, size, shift, work, marks)
        for _ in range(_SOLVES):
            _solve(vector, size, work, marks)
            normalise(vector)
            remove(vector, vectors, size, number)
            normalise(vector)
        found = number + 1
    return found


@compiled
def draw(vector: Array, state: int) -> int:
    """Fill a vector with pseudorandom numbers from 0.5 to 1; returns the next ``state``.

    A linear congruential generator (Knuth; Press et al., Numerical Recipes).
    """
    for i in range(vector.size):
        state = np.uint32(state * np.uint32(1664525) + np.uint32(1013904223))
        vector[i] = 0.5 + state / 8589934592.0
    return state


@compiled
def remove(vector: Array, others: Array, size: int, count: int) -> None:
    """Orthogonalise a vector against the first ``count`` of ``others``, which have length 1."""
    for number in range(count):
        before = others[number * size : (number + 1) * size]
        add(vector, -dot(vector, before), before)


@compiled
def eigenpairs(
    matrix: Array, size: int, count: int, values: Array, vectors: Array, work: Array, marks: Array
) -> Any:
    """The ``count`` largest eigenpairs of a positive semidefinite matrix, in descending order.

    The matrix is given by its lower half and overwritten. Row i of ``vectors`` belongs to
    ``values[i]``. Returns the number of eigenvalues above rounding error; further ones are not
    written. ``work`` has ``9 * size`` elements, ``marks`` ``size``.
    """
    largest = 0.0
    for i in range(size):
        largest = max(largest, abs(matrix[i * size + i]))
    if largest == 0.0:
        return 0
    for i in range(size * size):
        matrix[i] /= largest
    diagonal, off_diagonal, lengths = work[:size], work[size : 2 * size], work[2 * size : 3 * size]
    off_diagonal[0] = 0.0
    rest = work[3 * size : 9 * size]
    _tridiagonalise(matrix, size, diagonal, off_diagonal, lengths, rest)
    found = tridiagonal_pairs(diagonal, off_diagonal, size, count, values, vectors, rest, marks)
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
    """Scale a vector to length 1, without overflow; zero stays zero."""
    largest = 0.0
    for i in range(vector.size):
        largest = max(largest, abs(vector[i]))
    if largest > 0.0:
        for i in range(vector.size):
            vector[i] /= largest
        length = np.sqrt(dot(vector, vector))
        for i in range(vector.size):
            vector[i] /= length
