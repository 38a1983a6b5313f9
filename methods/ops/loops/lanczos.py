"""The largest eigenvalues of the Gram matrix of a large matrix, which is only multiplied by.

Lanczos 1950, with full orthogonalisation: the products span a space in which the Gram matrix is
tridiagonal, and whose largest eigenvalues are soon those of the whole.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mergeloom.methods.ops.loops.blocks import Array, compiled
from mergeloom.methods.ops.loops.eigen import (
    EPSILON,
    NOTHING,
    add,
    dot,
    draw,
    eigenvalue,
    normalise,
    remove,
    tridiagonal_pairs,
)

_LEFT = 1e-10
"""Share of an eigenvalue that may be left over."""
_LOOKS, _CLOSE = 24, 1e-3
"""Steps in which a missed eigenvalue shows; how much larger than the least found it has to be."""
_WIDTH = 128
"""Columns of which all rows are gone through at once: they fit a cache."""


@compiled
def _times_gram(
    matrix: Array, rows: int, columns: int, by_row: bool, x: Array, out: Array, work: Array
) -> None:
    """Write the Gram matrix of `_gram`, which is not made, times a vector."""
    for i in range(out.size):
        out[i] = 0.0
    if not by_row:
        for r in range(rows):
            row = matrix[r * columns : (r + 1) * columns]
            add(out, dot(row, x), row)
        return
    for first in range(0, columns, _WIDTH):  # of as many columns, all rows fit a cache
        part = work[: min(_WIDTH, columns - first)]
        for c in range(part.size):
            part[c] = 0.0
        for r in range(rows):
            start = r * columns + first
            add(part, x[r], matrix[start : start + part.size])
        for r in range(rows):
            start = r * columns + first
            out[r] += dot(matrix[start : start + part.size], part)


@compiled
def _step(
    matrix: Array,
    rows: int,
    columns: int,
    by_row: bool,
    basis: Array,
    number: int,
    beside: Array,
    work: Array,
) -> Any:
    """One step of Lanczos from vector ``number`` of a basis to the next, which is not of length 1.

    Returns the diagonal element. The next vector is made orthogonal to all before, twice.
    """
    size = rows if by_row else columns
    own = basis[number * size : (number + 1) * size]
    following = basis[(number + 1) * size : (number + 2) * size]
    _times_gram(matrix, rows, columns, by_row, own, following, work)
    if number:
        add(following, -beside[number], basis[(number - 1) * size : number * size])
    product = dot(own, following)
    add(following, -product, own)
    for _ in range(2):
        remove(following, basis, size, number + 1)
    return product


@compiled
def leading_pairs(
    matrix: Array,
    rows: int,
    columns: int,
    by_row: bool,
    count: int,
    values: Array,
    vectors: Array,
    basis: Array,
    work: Array,
    marks: Array,
    panel: Array,
) -> int:
    """The largest eigenvalues of the Gram matrix and their vectors, as `eigenpairs` gives them.

    By Lanczos' method with full orthogonalisation, which only multiplies by it: the eigenpairs of
    the tridiagonal matrix in the basis that these products span are the largest ones as soon as
    what is left over is small. Returns -1 where that takes most of the space, or where eigenvalues
    that are equal have been missed. ``basis`` has as many elements as the Gram matrix.
    """
    size = rows if by_row else columns
    diagonal, beside = work[:size], work[size : 2 * size]
    copies, rest = work[2 * size : 4 * size], work[4 * size : 9 * size]
    state = draw(basis[:size], np.uint32(7))
    normalise(basis[:size])
    beside[0] = 0.0
    check = 2 * count + 32
    for number in range(size // 2):
        diagonal[number] = _step(matrix, rows, columns, by_row, basis, number, beside, panel)
        done = number + 1
        following = basis[done * size : (done + 1) * size]
        left = np.sqrt(dot(following, following))
        ended = left <= NOTHING * (diagonal[0] + beside[1] if number else diagonal[0])
        if ended:  # all that the first vector leads to: another one leads to the rest
            state = draw(following, state)
            for _ in range(2):
                remove(following, basis, size, done)
            left = 0.0
        beside[done] = left
        normalise(following)
        if done < check:
            continue
        check = done + done // 3
        for i in range(done):
            copies[i], copies[size + i] = diagonal[i], beside[i]
        found = tridiagonal_pairs(
            copies[:done], copies[size : size + done], done, count, values, vectors, rest, marks
        )
        if found == 0:
            return 0
        least = max(_LEFT * values[found - 1], 16.0 * EPSILON * values[0])
        if left * _last(vectors, done, found) > least:  # what these pairs leave over
            continue
        for i in range(found - 1, -1, -1):
            for j in range(done):
                panel[j] = vectors[i * done + j]
            own = vectors[i * size : (i + 1) * size]
            for j in range(size):
                own[j] = 0.0
            for j in range(done):
                add(own, panel[j], basis[j * size : (j + 1) * size])
            normalise(own)
        least = values[found - 1] if found == count else NOTHING * values[0]
        missed = _largest_beside(
            matrix, rows, columns, by_row, vectors, found, basis, state, work, panel
        )
        return found if missed <= least * (1.0 + _CLOSE) + 64.0 * EPSILON * values[0] else -1
    return -1


@compiled
def _last(vectors: Array, size: int, count: int) -> float:
    """The largest magnitude of the vectors' last elements."""
    most = 0.0
    for number in range(count):
        most = max(most, abs(vectors[(number + 1) * size - 1]))
    return most


@compiled
def _largest_beside(
    matrix: Array,
    rows: int,
    columns: int,
    by_row: bool,
    vectors: Array,
    count: int,
    basis: Array,
    state: int,
    work: Array,
    panel: Array,
) -> Any:
    """The largest eigenvalue, or nearly, of the Gram matrix on what is orthogonal to vectors."""
    size = rows if by_row else columns
    diagonal, beside = work[:size], work[size : 2 * size]
    draw(basis[:size], state)
    beside[0] = 0.0
    most, done = 0.0, 0
    for number in range(_LOOKS):
        own = basis[number * size : (number + 1) * size]
        for _ in range(2):
            remove(own, vectors, size, count)
            remove(own, basis, size, number)
        length = np.sqrt(dot(own, own))
        if number:
            beside[number] = length
        if length <= EPSILON * most:
            break
        for i in range(size):
            own[i] /= length
        diagonal[number] = _step(matrix, rows, columns, by_row, basis, number, beside, panel)
        most = max(most, diagonal[number] + 2.0 * length) if number else diagonal[0]
        done = number + 1
    for i in range(done):
        after = beside[i + 1] if i + 1 < done else 0.0
        most = max(most, abs(diagonal[i]) + beside[i] + after)
    if done == 0 or most == 0.0:
        return 0.0
    for i in range(done):
        diagonal[i] /= most
        beside[i] /= most
    return most * eigenvalue(diagonal, beside, done, done - 1, 1.0 + 8.0 * EPSILON)
