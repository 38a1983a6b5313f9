"""Norms and cosines of vectors, from their dot products.

Entries of matrices are single numbers or arrays; ``maths`` (`methods.ops.maths`) matches them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mergeloom.methods.ops.maths import Maths

Matrix = Sequence[Sequence[Any]]

NO_DIRECTION = 1e-8
"""A vector of at most this norm has no direction; it counts as orthogonal to everything."""

UNRESOLVED = 1e-7
"""A sum of unit vectors of at most this length counts as zero: the length is the square root of a
difference of numbers near 1, which float64 resolves only to 1e-8."""


def norms(gram: Matrix, maths: Maths) -> list[Any]:
    """‖vᵢ‖ from dot products."""
    return [maths.sqrt(gram[i][i]) for i in range(len(gram))]


def cosines(gram: Matrix, maths: Maths) -> list[list[Any]]:
    """cos(vᵢ, vⱼ) in [-1, 1] from dot products; 0 where a vector has no direction."""
    length = norms(gram, maths)
    directed = [each > NO_DIRECTION for each in length]
    safe = [maths.where(own, each, 1.0) for own, each in zip(directed, length, strict=True)]

    def cosine(i: int, j: int) -> Any:
        # Divide by one norm after the other: their product might underflow.
        value = maths.clip(gram[i][j] / safe[i] / safe[j], -1.0, 1.0)
        return maths.where(directed[i] & directed[j], value, 0.0)

    return [[cosine(i, j) for j in range(len(gram))] for i in range(len(gram))]
