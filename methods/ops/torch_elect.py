"""Electing a sign for each parameter, and combining only what agrees with it.

Yadav et al. 2023, TIES-Merging, arXiv:2306.01708, steps 2 (elect) and 3 (disjoint merge).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

CANCELLED = 1e-8
"""Agreeing weights that add up to no more than this are not divided by."""


def elected_sum(
    vectors: Sequence[Tensor],
    votes: Sequence[float],
    coefficients: Sequence[float],
    shares: Sequence[float] | None,
    out: Tensor,
    work: tuple[Tensor, ...],
) -> None:
    """Write Σ cᵢ vᵢ over the vectors that agree with the elected sign, per element, to ``out``.

    The sign s is that of Σ bᵢ vᵢ over the votes bᵢ, positive at zero; vᵢ agrees where bᵢ vᵢ has
    sign s and is not zero. With ``shares`` the sum is divided by Σ of the agreeing shares, where
    that is not zero. All tensors are float32 of one shape; ``vectors`` and the three of ``work``
    are overwritten. A NaN makes its own element NaN.
    """
    import torch

    sign, agrees, divisor = work
    out.zero_()
    for vector, vote in zip(vectors, votes, strict=True):
        out.add_(vector, alpha=vote)
    torch.ge(out, 0.0, out=sign)
    sign.mul_(2.0).sub_(1.0)
    out.zero_()
    divisor.zero_()
    # After multiplication with the elected sign, agreeing is being positive (negative for a
    # negative vote): clamping then drops what disagrees, cheaper than any mask.
    for number, vector in enumerate(vectors):
        vector.mul_(sign)
        if votes[number] < 0:
            vector.neg_()
        vector.clamp_min_(0.0)
        flip = -1.0 if votes[number] < 0 else 1.0
        out.add_(vector, alpha=flip * coefficients[number])
        if shares is not None:
            torch.gt(vector, 0.0, out=agrees)
            divisor.add_(agrees, alpha=shares[number])
    out.mul_(sign)
    if shares is not None:
        divide(out, divisor, agrees)


def divide(out: Tensor, divisor: Tensor, work: Tensor) -> None:
    """Divide ``out`` by ``divisor``, but by 1 where that is zero; overwrites both others."""
    import torch

    torch.abs(divisor, out=work)
    torch.le(work, CANCELLED, out=work)
    divisor.add_(work)
    out.div_(divisor)
