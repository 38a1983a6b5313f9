"""The best approximation of a matrix by one of lower rank, as two factors.

It consists of the largest singular values (Eckart and Young 1936). Their vectors are eigenvectors
of the Gram matrix of the shorter side, in float64: the precision lost by squaring is below the
rounding of float32 inputs. If few of many singular values are wanted, the Gram matrix is not
computed (`methods.ops.loops.lanczos`).
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
    int64s,
)
from mergeloom.methods.ops.loops.eigen import add, dot, eigenpairs
from mergeloom.methods.ops.loops.lanczos import leading_pairs
from mergeloom.methods.ops.loops.sizes import GRAM_PANEL, GRAM_TILE, LANCZOS_MIN_SIZE, LANCZOS_RATIO


@compiled
def _gram(matrix: Array, rows: int, columns: int, by_row: bool, gram: Array, panel: Array) -> None:
    """Write the lower half of the Gram matrix of the rows or columns of a matrix."""
    size, length = (rows, columns) if by_row else (columns, rows)
    for i in range(size * size):
        gram[i] = 0.0
    for first in range(0, length, GRAM_PANEL):
        count = min(GRAM_PANEL, length - first)
        for r in range(count):
            own = panel[r * size : (r + 1) * size]
            if by_row:
                for c in range(size):
                    own[c] = matrix[c * columns + first + r]
            else:
                for c in range(size):
                    own[c] = matrix[(first + r) * columns + c]
        for top in range(0, size, GRAM_TILE):
            bottom = min(top + GRAM_TILE, size)
            for left in range(0, bottom, GRAM_TILE):
                right = min(left + GRAM_TILE, bottom)
                for r in range(count):
                    own = panel[r * size + left : r * size + right]
                    for i in range(top, bottom):
                        add(gram[i * size + left : i * size + right], panel[r * size + i], own)


@compiled
def _finite(numbers: Array) -> bool:
    """Whether all numbers are finite."""
    total = np.float32(0.0)
    for i in range(numbers.size):
        total += numbers[i] * np.float32(0.0)
    return bool(total == np.float32(0.0))


@compiled
def _fill(numbers: Array, value: float) -> None:
    for i in range(numbers.size):
        numbers[i] = np.float32(value)


@compiled
def _combined_rows(
    matrix: Array, factors: Array, columns: int, scale: float, out: Array, work: Array
) -> None:
    """Write ``scale`` · Σ factorᵢ · rowᵢ of a matrix, summed in float64."""
    length = GRAM_PANEL * factors.size
    for first in range(0, columns, length):
        stop = min(first + length, columns)
        sums = work[: stop - first]
        for c in range(sums.size):
            sums[c] = 0.0
        for r in range(factors.size):
            add(sums, factors[r], matrix[r * columns + first : r * columns + stop])
        for c in range(sums.size):
            out[first + c] = np.float32(scale * sums[c])


@compiled
def _join(ups: Array, rows: int, widths: Array, factors: Array, out: Array) -> None:
    """Write matrices of ``rows`` rows, each multiplied by its factor, side by side."""
    inner, place, first = widths.sum(), 0, 0
    for number in range(widths.size):
        width, factor = widths[number], factors[number]
        for r in range(rows):
            for c in range(width):
                out[r * inner + first + c] = np.float32(factor * ups[place + r * width + c])
        place, first = place + rows * width, first + width


@Loop
def leading_of_matrix(
    matrix: Address, rows: int, columns: int, rank: int, down: Address, up: Address, room: Address
) -> None:
    """Write the factors of the best approximation: `methods.ops.interface.Ops.leading_of_matrix`.

    ``room`` is working memory of `sizes.leading_bytes`. Factors of a matrix with NaN or infinity
    are NaN.
    """
    given, by_row = floats(matrix, rows * columns), rows < columns
    below, above = floats(down, rank * columns), floats(up, rows * rank)
    finite = _finite(given)
    _fill(below, 0.0 if finite else np.nan)
    _fill(above, 0.0 if finite else np.nan)
    if not finite:
        return
    size = rows if by_row else columns
    count = min(rank, size)
    numbers = doubles(room, size * size + (GRAM_PANEL + 11 + count) * size)
    gram, rest = numbers[: size * size], numbers[size * size :]
    values, work = rest[:size], rest[size : 10 * size]
    marks = int64s(room + 8 * (size * size + 10 * size), size)
    vectors, panel = rest[11 * size : (11 + count) * size], rest[(11 + count) * size :]
    found = -1
    if size >= LANCZOS_MIN_SIZE and LANCZOS_RATIO * count <= size:
        found = leading_pairs(
            given, rows, columns, by_row, count, values, vectors, gram, work, marks, panel
        )
    if found < 0:
        _gram(given, rows, columns, by_row, gram, panel)
        found = eigenpairs(gram, size, count, values, vectors, work, marks)
    for number in range(found):
        vector = vectors[number * size : (number + 1) * size]
        root = np.sqrt(np.sqrt(values[number]))
        own = below[number * columns : (number + 1) * columns]
        if by_row:
            for r in range(rows):
                above[r * rank + number] = np.float32(root * vector[r])
            _combined_rows(given, vector, columns, 1.0 / root, own, panel)
        else:
            for c in range(columns):
                own[c] = np.float32(root * vector[c])
            for r in range(rows):
                total = dot(given[r * columns : (r + 1) * columns], vector)
                above[r * rank + number] = np.float32(total / root)


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
    down: Address,
    up: Address,
    room: Address,
) -> None:
    """Write the factors for a sum of products: `methods.ops.interface.Ops.leading_of_product`.

    There are ``count`` products, with ``widths`` (int64) and ``coefficients`` (float64); their
    matrices are contiguous. ``downs`` stacked are D (inner, columns), ``ups`` side by side U
    (rows, inner). With D·Dᵀ = PΛPᵀ, after scaling the rows of D to length 1, the rows of
    V = Λ^-½·Pᵀ·D are orthonormal, and U·D = C·V with C = U·P·Λ^½. So the singular vectors of the
    product follow from those of C, whose Gram matrix is only (inner, inner). ``room`` is working
    memory of `sizes.factors_bytes`.
    """
    wide = int64s(widths, count)
    inner = wide.sum()
    lower, given = floats(downs, inner * columns), floats(room, rows * inner)
    _join(floats(ups, rows * inner), rows, wide, doubles(coefficients, count), given)
    below, above = floats(down, rank * columns), floats(up, rows * rank)
    finite = _finite(lower) and _finite(given)
    _fill(below, 0.0 if finite else np.nan)
    _fill(above, 0.0 if finite else np.nan)
    if not finite:
        return
    square = inner * inner
    place = room + (rows * inner + 1) // 2 * 8
    numbers = doubles(place, 5 * square + (GRAM_PANEL + 15) * inner)
    first, second, basis = numbers[:square], numbers[square:], numbers[2 * square :]
    turned, vectors = numbers[3 * square :], numbers[4 * square :]
    rest = numbers[5 * square :]
    lengths, values, roots = rest[:inner], rest[inner : 2 * inner], rest[2 * inner : 3 * inner]
    inside, work = rest[3 * inner : 4 * inner], rest[4 * inner : 14 * inner]
    marks = int64s(place + 8 * (5 * square + 14 * inner), inner)
    panel = rest[15 * inner :]
    _gram(lower, inner, columns, True, first, panel)
    _gram(given, rows, inner, False, second, panel)
    for i in range(inner):
        lengths[i] = np.sqrt(first[i * inner + i])
    for i in range(inner):
        for j in range(i + 1):
            product = lengths[i] * lengths[j]
            first[i * inner + j] = first[i * inner + j] / product if product > 0.0 else 0.0
            second[i * inner + j] *= product
            second[j * inner + i] = second[i * inner + j]
    known = eigenpairs(first, inner, inner, values, basis, work, marks)
    for number in range(known):
        roots[number] = np.sqrt(values[number])
        for i in range(inner):
            own = second[i * inner : (i + 1) * inner]
            turned[number * inner + i] = dot(own, basis[number * inner : (number + 1) * inner])
    for i in range(known):
        own = basis[i * inner : (i + 1) * inner]
        for j in range(i + 1):
            product = dot(own, turned[j * inner : (j + 1) * inner])
            first[i * known + j] = product * roots[i] * roots[j]
    most = min(rank, known)
    found = eigenpairs(first, known, most, values, vectors, work, marks) if known else 0
    for number in range(found):
        vector = vectors[number * known : (number + 1) * known]
        root = np.sqrt(np.sqrt(values[number]))
        for i in range(inner):
            total = 0.0
            for j in range(known):
                total += vector[j] * roots[j] * basis[j * inner + i]
            inside[i] = total * lengths[i] / root
        for r in range(rows):
            above[r * rank + number] = np.float32(dot(given[r * inner : (r + 1) * inner], inside))
        for i in range(inner):
            total = 0.0
            for j in range(known):
                total += vector[j] / roots[j] * basis[j * inner + i]
            inside[i] = total / lengths[i] if lengths[i] > 0.0 else 0.0
        own = below[number * columns : (number + 1) * columns]
        _combined_rows(lower, inside, columns, root, own, panel)
