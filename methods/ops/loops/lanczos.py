"""The largest eigenpairs of a Gram matrix by Lanczos' method, without computing the Gram matrix.

Lanczos 1950, with full reorthogonalisation: in the Krylov basis the Gram matrix is tridiagonal, and
its largest eigenvalues converge first.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mergeloom.methods.ops.loops.blocks import Array, compiled
from mergeloom.methods.ops.loops.eigen import (
    EPSILON,
    NEGLIGIBLE,
    add,
    dot,
    draw,
    eigenvalue,
    normalise,
    remove,
    tridiagonal_pairs,
)

_RESIDUAL = 1e-10
"""Relative residual at which an eigenpair has converged."""
_SEARCH_STEPS, _MARGIN = 24, 1e-3
"""Lanczos steps of the search for missed eigenvalues, and by which fraction a missed one must
exceed the smallest eigenvalue found."""
_WIDTH = 128
"""Columns processed at once, so that all rows of them fit the cache."""


@compiled
def _times_gram(
    matrix: Array, rows: int, columns: int, by_row: bool, x: Array, out: Array, work: Array
) -> None:
    """Write the Gram matrix (`leading._gram`) times ``x``, without computing the Gram matrix."""
    for i in range(out.size):
        out[i] = 0.0
    if not by_row:
        for r in range(rows):
            row = matrix[r * columns : (r + 1) * columns]
            add(out, dot(row, x), row)
        return
    for first in range(0, columns, _WIDTH):
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
    off_diagonal: Array,
    work: Array,
) -> Any:
    """One Lanczos step: write the basis vector after ``number``, not normalised.

    The vector is orthogonalised twice against all previous ones. Returns the diagonal element.
    """
    size = rows if by_row else columns
    own = basis[number * size : (number + 1) * size]
    following = basis[(number + 1) * size : (number + 2) * size]
    _times_gram(matrix, rows, columns, by_row, own, following, work)
    if number:
        add(following, -off_diagonal[number], basis[(number - 1) * size : number * size])
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
    """The ``count`` largest eigenpairs of the Gram matrix, like `eigen.eigenpairs`.

    Returns the number found, or -1 if half of the space does not suffice for convergence or if
    eigenvalues were missed, which happens with equal ones. ``basis`` has as many elements as the
    Gram matrix.
    """
    size = rows if by_row else columns
    diagonal, off_diagonal = work[:size], work[size : 2 * size]
    copies, rest = work[2 * size : 4 * size], work[4 * size : 9 * size]
    state = draw(basis[:size], np.uint32(7))
    normalise(basis[:size])
    off_diagonal[0] = 0.0
    check = 2 * count + 32
    for number in range(size // 2):
        diagonal[number] = _step(matrix, rows, columns, by_row, basis, number, off_diagonal, panel)
        done = number + 1
        following = basis[done * size : (done + 1) * size]
        left = np.sqrt(dot(following, following))
        ended = left <= NEGLIGIBLE * (diagonal[0] + off_diagonal[1] if number else diagonal[0])
        if ended:  # the Krylov space is exhausted: continue with a new random vector
            state = draw(following, state)
            for _ in range(2):
                remove(following, basis, size, done)
            left = 0.0
        off_diagonal[done] = left
        normalise(following)
        if done < check:
            continue
        check = done + done // 3
        for i in range(done):
            copies[i], copies[size + i] = diagonal[i], off_diagonal[i]
        found = tridiagonal_pairs(
            copies[:done], copies[size : size + done], done, count, values, vectors, rest, marks
        )
        if found == 0:
            return 0
        least = max(_RESIDUAL * values[found - 1], 16.0 * EPSILON * values[0])
        if left * _last(vectors, done, found) > least:  # the residual of these pairs
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
        least = values[found - 1] if found == count else NEGLIGIBLE * values[0]
        missed = _largest_orthogonal(
            matrix, rows, columns, by_row, vectors, found, basis, state, work, panel
        )
        return found if missed <= least * (1.0 + _MARGIN) + 64.0 * EPSILON * values[0] else -1
    return -1


@compiled
def _last(vectors: Array, size: int, count: int) -> float:
    """The largest magnitude among the last elements of vectors."""
    most = 0.0
    for number in range(count):
        most = max(most, abs(vectors[(number + 1) * size - 1]))
    return most


@compiled
def _largest_orthogonal(
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
    """Approximately the largest eigenvalue of the Gram matrix on the space orthogonal to
    ``vectors``."""
    size = rows if by_row else columns
    diagonal, off_diagonal = work[:size], work[size : 2 * size]
    draw(basis[:size], state)
    off_diagonal[0] = 0.0
    most, done = 0.0, 0
    for number in range(_SEARCH_STEPS):
        own = basis[number * size : (number + 1) * size]
        for _ in range(2):
            remove(own, vectors, size, count)
            remove(own, basis, size, number)
        length = np.sqrt(dot(own, own))
        if number:
            off_diagonal[number] = length
        if length <= EPSILON * most:
            break
        for i in range(size):
            own[i] /= length
        diagonal[number] = _step(matrix, rows, columns, by_row, basis, number, off_diagonal, panel)
        most = max(most, diagonal[number] + 2.0 * length) if number else diagonal[0]
        done = number + 1
    for i in range(done):
        after = off_diagonal[i + 1] if i + 1 < done else 0.0
        most = max(most, abs(diagonal[i]) + off_diagonal[i] + after)
    if done == 0 or most == 0.0:
        return 0.0
    for i in range(done):
        diagonal[i] /= most
        off_diagonal[i] /= most
    return most * eigenvalue(diagonal, off_diagonal, done, done - 1, 1.0 + 8.0 * EPSILON)
