"""e**x in float64 that is the same with compiled loops, on every processor."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from mergeloom.methods.ops.loops.exp_series import (
    EXPONENT_BIAS,
    LEAST,
    LN2_HIGH,
    LN2_LOW,
    LOG2_E,
    MANTISSA_BITS,
    TERMS,
    TO_INTEGER,
)

if TYPE_CHECKING:
    from torch import Tensor


def exponential_(values: Tensor, powers: Tensor, rests: Tensor) -> Tensor:
    """e**x of float64 ``values``, none of them positive; all three tensors are overwritten.

    They are of one shape; the result, to 4e-16 of itself, is in ``values``. Every operation rounds
    once, so that whoever does the same ones gets the same bits. See `methods.ops.loops.exp_series`.
    """
    import torch

    rounding, terms = _constants()
    values.clamp_min_(LEAST)
    torch.add(rounding, values, alpha=LOG2_E, out=powers)
    torch.sub(powers, TO_INTEGER, out=rests)
    bits = powers.view(torch.int64)
    bits.add_(EXPONENT_BIAS).bitwise_left_shift_(MANTISSA_BITS)
    values.sub_(rests, alpha=LN2_HIGH).sub_(rests, alpha=LN2_LOW)
    torch.add(terms[-2], values, alpha=TERMS[-1], out=rests)
    for term in terms[-3::-1]:
        torch.addcmul(term, rests, values, out=rests)
    return torch.mul(rests, powers, out=values)


@cache
def _constants() -> tuple[Tensor, list[Tensor]]:
    """What multiples are added to: `TO_INTEGER` and `TERMS`, as 0-d tensors."""
    import torch

    return torch.tensor(TO_INTEGER, dtype=torch.float64), [
        torch.tensor(term, dtype=torch.float64) for term in TERMS
    ]
