"""The best approximation of a matrix by one of lower rank, as a product of two factors.

By Eckart and Young 1936 it is made of the largest singular values. Their vectors are those of the
Gram matrix of the shorter side, in float64: what is lost by squaring lies below the rounding of
float32 inputs. The Gram matrix is made tridiagonal by reflections (Householder 1958), its largest
eigenvalues are found by bisection (Barth, Martin, Wilkinson 1967) and their vectors by inverse
iteration (Peters, Wilkinson 1971), each kept orthogonal to those before.
"""

from __future__ import annotations

import numpy as np

from mergeloom.methods.ops.loops.blocks import (
    Address,
    Array,
    Loop,
    compiled,
    doubles,
    floats,
    longs,
)
from mergeloom.methods.ops.loops.sizes import PANEL, TILE

_NOTHING = 1e-14
"""Eigenvalues of a Gram matrix below this share of the largest are rounding."""
_EPSILON = 2.0**-52
_SOLVES = 4
"""Steps of inverse iteration: two are enough where no other eigenvalue is near."""


@compiled
def _dot(x: Array, y: Array) -> float:
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
def _add(out: Array, factor: float, x: Array) -> None:
    for i in range(min(out.size, x.size)):
        out[i] += factor * x[i]


@compiled
def _gram(matrix: Array, rows: int, columns: int, by_row: bool, gram: Array, panel: Array) -> None:
    """Write the lower half of the dot products of all pairs of rows, or columns, of a matrix."""
    size, length = (rows, columns) if by_row else (columns, rows)
    for i in range(size * size):
        gram[i] = 0.0
    for first in range(0, length, PANEL):
        count = min(PANEL, length - first)
        for r in range(count):
            own = panel[r * size : (r + 1) * size]
            if by_row:
                for c in range(size):
                    own[c] = matrix[c * columns + first + r]
            else:
                for c in range(size):
                    own[c] = matrix[(first + r) * columns + c]
        for top in range(0, size, TILE):
            bottom = min(top + TILE, size)
            for left in range(0, bottom, TILE):
                right = min(left + TILE, bottom)
                for r in range(count):
                    own = panel[r * size + left : r * size + right]
                    for i in range(top, bottom):
                        _add(gram[i * size + left : i * size + right], panel[r * size + i], own)


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
            _add(matrix[i * size : i * size + i + 1], -change[i], above)
            _add(matrix[i * size : i * size + i + 1], -above[i], change)
        diagonal[i] = matrix[i * size + i]
        lengths[i] = 0.0
        if i == 0:
            break
        beside[i] = row[i - 1]
        rest = _dot(row[: i - 1], row[: i - 1])
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
                _add(own, -change[j], above)
                _add(own, -above[j], change)
            if lengths[i] > 0.0:
                next_change[j] += _dot(own, row[: j + 1])
                _add(next_change[:j], row[j], own)
        pending = 0
        if lengths[i] > 0.0:
            for j in range(i):
                next_change[j] /= lengths[i]
            _add(next_change[:i], -0.5 * _dot(row, next_change) / lengths[i], row)
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
            pivot = -_EPSILON * _EPSILON
        count += pivot < 0.0
    return count


@compiled
def _eigenvalue(diagonal: Array, beside: Array, size: int, number: int, most: float) -> float:
    """The eigenvalue above ``number`` others; none is larger than ``most`` in magnitude."""
    low, high = -most, most
    while high - low > 2.0 * _EPSILON * max(abs(low), abs(high)) + _EPSILON * _EPSILON:
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
            if abs(here) < _EPSILON:
                here = _EPSILON
            factors[i] = below / here
            first[i], second[i], third[i] = here, after, 0.0
            here, after = middle - factors[i] * after, beyond
    first[size - 1] = here if abs(here) >= _EPSILON else _EPSILON
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
def _eigenpairs(
    matrix: Array, size: int, count: int, values: Array, vectors: Array, work: Array, marks: Array
) -> int:
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
    most = 0.0
    for i in range(size):
        after = abs(beside[i + 1]) if i + 1 < size else 0.0
        most = max(most, abs(diagonal[i]) + abs(beside[i]) + after)
    for i in range(size):  # so that the shifts and the least pivot are shares of 1
        diagonal[i] /= most
        beside[i] /= most
    state, found = np.uint32(1), 0
    for number in range(count):
        value = _eigenvalue(diagonal, beside, size, size - 1 - number, 1.0 + 8.0 * _EPSILON)
        if value <= _NOTHING or (number and value <= _NOTHING * values[0] / (largest * most)):
            break
        shift = value
        if number:
            last = values[number - 1] / (largest * most)
            shift = min(shift, last - 4.0 * _EPSILON)
        values[number] = value * largest * most
        vector = vectors[number * size : (number + 1) * size]
        for i in range(size):
            state = np.uint32(state * np.uint32(1664525) + np.uint32(1013904223))
            vector[i] = 0.5 + state / 8589934592.0
        _factorise(diagonal, beside, size, shift, rest, marks)
        for _ in range(_SOLVES):
            _solve(vector, size, rest, marks)
            _normalise(vector)
            for other in range(number):
                before = vectors[other * size : (other + 1) * size]
                _add(vector, -_dot(vector, before), before)
            _normalise(vector)
        found = number + 1
    for number in range(found):
        vector = vectors[number * size : (number + 1) * size]
        for i in range(2, size):
            if lengths[i] > 0.0:
                row = matrix[i * size : i * size + i]
                _add(vector[:i], -_dot(row, vector) / lengths[i], row)
    return found


@compiled
def _normalise(vector: Array) -> None:
    largest = 0.0
    for i in range(vector.size):
        largest = max(largest, abs(vector[i]))
    if largest > 0.0:
        for i in range(vector.size):
            vector[i] /= largest
        length = np.sqrt(_dot(vector, vector))
        for i in range(vector.size):
            vector[i] /= length


@compiled
def _finite(numbers: Array) -> bool:
    total = np.float32(0.0)
    for i in range(numbers.size):
        total += numbers[i] * np.float32(0.0)
    return bool(total == np.float32(0.0))


@compiled
def _combined_rows(
    matrix: Array, factors: Array, columns: int, scale: float, out: Array, work: Array
) -> None:
    """Write ``scale`` times the sum of the rows of a matrix times their factors.

    It is added up in float64.
    """
    length = PANEL * factors.size
    for first in range(0, columns, length):
        stop = min(first + length, columns)
        sums = work[: stop - first]
        for c in range(sums.size):
            sums[c] = 0.0
        for r in range(factors.size):
            _add(sums, factors[r], matrix[r * columns + first : r * columns + stop])
        for c in range(sums.size):
            out[first + c] = np.float32(scale * sums[c])


@compiled
def _join(ups: Array, rows: int, widths: Array, factors: Array, out: Array) -> None:
    """Write matrices of ``rows`` rows, times factors, beside each other."""
    inner, place, first = widths.sum(), 0, 0
    for number in range(widths.size):
        width, factor = widths[number], factors[number]
        for r in range(rows):
            for c in range(width):
                out[r * inner + first + c] = np.float32(factor * ups[place + r * width + c])
        place, first = place + rows * width, first + width


@Loop
def leading_of_matrix(
    matrix: Address, rows: int, columns: int, rank: int, up: int, out: Address, room: Address
) -> None:
    """See `methods.ops.words.Ops.leading_of_matrix`; ``room`` has `leading_bytes`."""
    given, by_row = floats(matrix, rows * columns), rows < columns
    result = floats(out, rank * (rows if up else columns))
    if not _finite(given):
        for i in range(result.size):
            result[i] = np.float32(np.nan)
        return
    size = rows if by_row else columns
    count = min(rank, size)
    numbers = doubles(room, size * size + (PANEL + 11 + count) * size)
    gram, rest = numbers[: size * size], numbers[size * size :]
    values, work = rest[:size], rest[size : 10 * size]
    marks = longs(room + 8 * (size * size + 10 * size), size)
    vectors, panel = rest[11 * size : (11 + count) * size], rest[(11 + count) * size :]
    _gram(given, rows, columns, by_row, gram, panel)
    found = _eigenpairs(gram, size, count, values, vectors, work, marks)
    for i in range(result.size):
        result[i] = np.float32(0.0)
    for number in range(found):
        vector, root = vectors[number * size : (number + 1) * size], np.sqrt(values[number])
        if by_row == bool(up):
            factor = root if by_row else 1.0
            for i in range(size):
                place = i * rank + number if by_row else number * size + i
                result[place] = np.float32(factor * vector[i])
        elif up:
            for r in range(rows):
                total = _dot(given[r * columns : (r + 1) * columns], vector)
                result[r * rank + number] = np.float32(total)
        else:
            own = result[number * columns : (number + 1) * columns]
            _combined_rows(given, vector, columns, 1.0 / root, own, panel)


@Loop
def leading_of_product(
    downs: Address,
    ups: Address,
    widths: Address,
    coefficients: Address,
    count: int,
    rows: int,
    columns: int,
    rank: int,
    up: int,
    out: Address,
    room: Address,
) -> None:
    """See `methods.ops.words.Ops.leading_of_product`; matrices follow each other.

    There are ``count`` of them, of ``widths`` (int64) columns and rows, with ``coefficients``
    (float64). ``downs`` below each other are D (inner, columns), ``ups`` beside each other U
    (rows, inner). With D·Dᵀ = PΛPᵀ, where rows of D are made of length 1 first, the rows of
    V = Λ^-½·Pᵀ·D are orthonormal, and U·D = C·V with C = U·P·Λ^½. So the singular vectors of the
    product follow from those of C, whose Gram matrix is as small. ``room`` has `factors_bytes`.
    """
    wide = longs(widths, count)
    inner = wide.sum()
    down, given = floats(downs, inner * columns), floats(room, rows * inner)
    _join(floats(ups, rows * inner), rows, wide, doubles(coefficients, count), given)
    result = floats(out, rank * (rows if up else columns))
    if not (_finite(down) and _finite(given)):
        for i in range(result.size):
            result[i] = np.float32(np.nan)
        return
    for i in range(result.size):
        result[i] = np.float32(0.0)
    square = inner * inner
    place = room + (rows * inner + 1) // 2 * 8
    numbers = doubles(place, 5 * square + (PANEL + 15) * inner)
    first, second, basis = numbers[:square], numbers[square:], numbers[2 * square :]
    turned, vectors = numbers[3 * square :], numbers[4 * square :]
    rest = numbers[5 * square :]
    lengths, values, roots = rest[:inner], rest[inner : 2 * inner], rest[2 * inner : 3 * inner]
    inside, work = rest[3 * inner : 4 * inner], rest[4 * inner : 14 * inner]
    marks = longs(place + 8 * (5 * square + 14 * inner), inner)
    panel = rest[15 * inner :]
    _gram(down, inner, columns, True, first, panel)
    _gram(given, rows, inner, False, second, panel)
    for i in range(inner):
        lengths[i] = np.sqrt(first[i * inner + i])
    for i in range(inner):
        for j in range(i + 1):
            product = lengths[i] * lengths[j]
            first[i * inner + j] = first[i * inner + j] / product if product > 0.0 else 0.0
            second[i * inner + j] *= product
            second[j * inner + i] = second[i * inner + j]
    known = _eigenpairs(first, inner, inner, values, basis, work, marks)
    for number in range(known):
        roots[number] = np.sqrt(values[number])
        for i in range(inner):
            own = second[i * inner : (i + 1) * inner]
            turned[number * inner + i] = _dot(own, basis[number * inner : (number + 1) * inner])
    for i in range(known):
        own = basis[i * inner : (i + 1) * inner]
        for j in range(i + 1):
            product = _dot(own, turned[j * inner : (j + 1) * inner])
            first[i * known + j] = product * roots[i] * roots[j]
    most = min(rank, known)
    found = _eigenpairs(first, known, most, values, vectors, work, marks) if known else 0
    for number in range(found):
        vector = vectors[number * known : (number + 1) * known]
        for i in range(inner):
            total = 0.0
            for j in range(known):
                root = roots[j] if up else 1.0 / roots[j]
                total += vector[j] * root * basis[j * inner + i]
            if up:
                inside[i] = total * lengths[i]
            else:
                inside[i] = total / lengths[i] if lengths[i] > 0.0 else 0.0
        if up:
            for r in range(rows):
                result[r * rank + number] = np.float32(
                    _dot(given[r * inner : (r + 1) * inner], inside)
                )
        else:
            own = result[number * columns : (number + 1) * columns]
            _combined_rows(down, inside, columns, 1.0, own, panel)
