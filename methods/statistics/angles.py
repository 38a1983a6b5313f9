"""Angles between vectors, from their dot products.

Entries of matrices may be single numbers or arrays, which ``maths`` are of: `methods.ops.maths`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mergeloom.methods.ops.maths import Maths

Matrix = Sequence[Sequence[Any]]

NO_DIRECTION = 1e-8
"""Norm up to which a vector counts as without direction, orthogonal to everything."""

UNRESOLVED = 1e-7
"""Length of a sum of unit vectors that cannot be told from zero: it is the root of a difference
of numbers near 1, so that float64 resolves it to 1e-8 only."""


def norms(gram: Matrix, maths: Maths) -> list[Any]:
    """‖vᵢ‖ from dot products."""
    return [maths.sqrt(gram[i][i]) for i in range(len(gram))]


def cosines(gram: Matrix, maths: Maths) -> list[list[Any]]:
    """cos(vᵢ, vⱼ) in [-1, 1] from dot products; 0 where a vector has no direction."""
    length = norms(gram, maths)
    directed = [each > NO_DIRECTION for each in length]
    safe = [maths.where(own, each, 1.0) for own, each in zip(directed, length, strict=True)]

    def cosine(i: int, j: int) -> Any:
        # Dividing one after the other: the product of two norms might underflow.
        value = maths.clip(gram[i][j] / safe[i] / safe[j], -1.0, 1.0)
        return maths.where(directed[i] & directed[j], value, 0.0)

    return [[cosine(i, j) for j in range(len(gram))] for i in range(len(gram))]
