"""Arcee Fusion: take from another model the elements whose change matters most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.grains import Access
from engine.kernel import Copy, GrainView, Kernel, Statistic
from methods.method import Base, Method, TensorMerge
from methods.parameters import base_of
from methods.row_combination import chunk_bytes, chunk_rows
from methods.statistics import CoarseHistogram, FineHistogram, RankedMagnitude, Ranks, Source

if TYPE_CHECKING:
    from torch import Tensor

_QUANTILES = (0.25, 0.5, 0.75)
_DOUBLES = 6
"""Tensors in float64 that `importance` holds at once, if rows are short and their sums many."""


def importance(base: Tensor, other: Tensor, out: Tensor) -> None:
    """Write |τ| p₁ (log p₁ - log p₀), p = softmax of each row, to ``out``, rounded to float32.

    All are matrices. The arithmetic is float64: the two logarithms all but cancel.
    """
    for start in range(0, base.shape[0], chunk_rows(base.shape[1])):
        rows = slice(start, start + chunk_rows(base.shape[1]))
        new = other[rows].double()
        new.sub_(new.amax(1, keepdim=True))
        share = new.exp()
        total = share.sum(1, keepdim=True)
        share.div_(total)
        new.sub_(total.log_())
        old = base[rows].double()
        old.sub_(old.amax(1, keepdim=True))
        new.sub_(old)
        new.add_(old.exp_().sum(1, keepdim=True).log_())
        new.mul_(share)
        share.copy_(other[rows])
        new.mul_(share.sub_(base[rows]).abs_())
        out[rows] = new


@dataclass(frozen=True)
class Importance(Source):
    """The importance of every element: where it is positive, and with its sign turned.

    Histograms order magnitudes, and importance has a sign; each half has an order of its own.
    """

    base: int
    other: int
    count = 2

    def write(self, number: int, grain: GrainView, out: Tensor) -> None:
        importance(grain.inputs[self.base], grain.inputs[self.other], out)
        if number:
            out.neg_()
        out.clamp_min_(0.0)


@dataclass(frozen=True)
class TakeOutliers(Kernel):
    """θ₁ where the importance reaches median + 1.5 · interquartile range, else θ₀."""

    base: int
    other: int
    total: int
    access = Access.ROWWISE
    scratch = 1
    cost = 40.0

    @property
    def passes(self) -> tuple[Statistic[Any, Any], ...]:
        # Element k of the scores from the least up is the (n - k)-th largest of all, and would be
        # the (k + 1)-th largest if their signs were turned: zero on the side where it is not.
        places = [int(share * (self.total - 1)) for share in _QUANTILES]
        ranks = (tuple(self.total - k for k in places), tuple(k + 1 for k in places))
        source = Importance(self.base, self.other)
        return (CoarseHistogram(source, ranks), FineHistogram(source))

    def workspace_bytes(self, shape: tuple[int, ...], inputs: int) -> int:
        return chunk_bytes(_DOUBLES, shape[-1] if shape else 1)

    def combine(
        self, grain: GrainView, out: Tensor, statistics: Sequence[Any], before: tuple[int, ...]
    ) -> None:
        import torch

        base, other = grain.inputs[self.base], grain.inputs[self.other]
        score = grain.take()
        importance(base, other, score)
        # Chosen bit by bit: what is taken is the other model's value and no sum of anything.
        taken = score.ge_(threshold(statistics[1])).view(torch.int32).clamp_max_(1).neg_()
        bits = out.view(torch.int32)
        torch.bitwise_xor(base.view(torch.int32), other.view(torch.int32), out=bits)
        bits.bitwise_and_(taken).bitwise_xor_(base.view(torch.int32))


def threshold(found: Ranks) -> float:
    """Median + 1.5 · interquartile range, from the quantiles of both halves; up to NaN."""

    def signed(positive: RankedMagnitude, negative: RankedMagnitude) -> float:
        return positive.value - negative.value

    low, middle, high = map(signed, *found.of)
    limit = middle + 1.5 * (high - low)
    return limit if math.isfinite(limit) else math.inf


class ArceeFusion(Method):
    name = "arcee_fusion"
    summary = (
        "Takes from the other model those elements whose change matters most, measured by how far "
        "they move and how much they shift the softmax of their row, and leaves the rest of the "
        "base as it is."
    )
    formula = (
        "I = |τ| · p₁ (log p₁ - log p₀), p = softmax along the last dimension;  "
        "θ = θ₁ where I ≥ median(I) + 1.5 (Q₃ - Q₁), else θ₀;  quantile q of n sorted scores is "
        "element int(q · (n-1))"
    )
    reference = "Goddard et al. 2024, MergeKit, arXiv:2403.13257; named by Arcee AI, 2025"
    base = Base.REQUIRED
    minimum = 1
    maximum = 1

    def kernel(self, merge: TensorMerge) -> Kernel:
        if len(merge.models) == 1:
            return Copy()
        base = base_of(merge)
        (other,) = merge.others
        return TakeOutliers(base, other, math.prod(merge.shape))
