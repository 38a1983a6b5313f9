"""Angles between vectors, from their dot products."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

NO_DIRECTION = 1e-8
"""Norm up to which a vector counts as without direction, orthogonal to everything."""

UNRESOLVED = 1e-7
"""Length of a sum of unit vectors that cannot be told from zero: it is the root of a difference
of numbers near 1, so that float64 resolves it to 1e-8 only."""


def norms(gram: Tensor) -> Tensor:
    """‖vᵢ‖ (m, k) from dot products (m, m, k)."""
    import torch

    return torch.diagonal(gram, dim1=0, dim2=1).T.sqrt()


def cosines(gram: Tensor) -> Tensor:
    """cos(vᵢ, vⱼ) (m, m, k) in [-1, 1] from dot products; 0 where a vector has no direction."""
    length = norms(gram)
    directed = length > NO_DIRECTION
    # Dividing one after the other: the product of two norms might underflow.
    safe = length.masked_fill(~directed, 1.0)
    cosine = (gram / safe.unsqueeze(0) / safe.unsqueeze(1)).clamp(-1.0, 1.0)
    return cosine.masked_fill(~(directed.unsqueeze(0) & directed.unsqueeze(1)), 0.0)
