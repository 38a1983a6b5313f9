"""Arcee Fusion: take from another model the elements whose change matters most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.grains import GRAIN_ELEMENTS, Access
from engine.kernel import Copy, GrainView, Kernel, Statistic
from methods.method import Base, Method, TensorMerge
from methods.parameters import base_of
from methods.row_combination import CHUNK, chunk_bytes, chunk_rows
from methods.statistics import CoarseHistogram, FineHistogram, Ranks, Source

if TYPE_CHECKING:
    from torch import Tensor

_QUANTILES = (0.25, 0.5, 0.75)
_DOUBLES = 4
"""Tensors in float64 that `importance` holds at once, numbers for each row included."""


def importance(base: Tensor, other: Tensor, out: Tensor, at_once: int) -> None:
    """Write |τ| KL(p₁‖p₀), p = softmax of each row, to ``out``, rounded to float32.

    All are matrices, of which rows of ``at_once`` elements in all are worked on at a time. The
    arithmetic is float64, as the divergence is a difference of numbers that are much larger:
    Σ p₁ log(p₁/p₀) = Σ p₁τ - log Σ exp θ₁ + log Σ exp θ₀.
    """
    many = chunk_rows(base.shape[1], at_once)
    for start in range(0, base.shape[0], many):
        rows = slice(start, start + many)
        work = base[rows].double()
        divergence = _log_of_sum(work)
        work.copy_(other[rows])
        divergence.sub_(_log_of_sum(work))
        step = other[rows].double().sub_(base[rows])
        divergence.add_(work.mul_(step).sum(1, keepdim=True)).clamp_min_(0.0)
        out[rows] = step.abs_().mul_(divergence)


def _log_of_sum(rows: Tensor) -> Tensor:
    """log Σ exp of each row, which becomes its softmax."""
    highest = rows.amax(1, keepdim=True)
    total = rows.sub_(highest).exp_().sum(1, keepdim=True)
    rows.div_(total)
    return total.log_().add_(highest)


@dataclass(frozen=True)
class Importance(Source):
    """The importance of every element, which is never negative."""

    base: int
    other: int
    count = 1
    double = True

    def write(self, number: int, grain: GrainView, out: Tensor) -> None:
        importance(grain.inputs[self.base], grain.inputs[self.other], out, _at_once(grain))


@dataclass(frozen=True)
class TakeOutliers(Kernel):
    """θ₁ where the importance reaches median + 1.5 · interquartile range, else θ₀."""

    base: int
    other: int
    total: int
    access = Access.ROWWISE
    scratch = 1
    cost = 14.0

    @property
    def passes(self) -> tuple[Statistic[Any, Any], ...]:
        # Element k of the scores from the least up is the (n - k)-th largest.
        ranks = tuple(self.total - int(share * (self.total - 1)) for share in _QUANTILES)
        source = Importance(self.base, self.other)
        return (CoarseHistogram(source, (ranks,)), FineHistogram(source))

    def workspace_bytes(self, shape: tuple[int, ...], inputs: int) -> int:
        return chunk_bytes(_DOUBLES, shape[-1] if shape else 1)

    def combine(
        self, grain: GrainView, out: Tensor, statistics: Sequence[Any], before: tuple[int, ...]
    ) -> None:
        import torch

        base, other = grain.inputs[self.base], grain.inputs[self.other]
        score = grain.take()
        importance(base, other, score, _at_once(grain))
        # Chosen bit by bit: what is taken is the other model's value and no sum of anything.
        taken = score.ge_(threshold(statistics[1])).view(torch.int32).clamp_max_(1).neg_()
        bits = out.view(torch.int32)
        torch.bitwise_xor(base.view(torch.int32), other.view(torch.int32), out=bits)
        bits.bitwise_and_(taken).bitwise_xor_(base.view(torch.int32))


def _at_once(grain: GrainView) -> int:
    return GRAIN_ELEMENTS if grain.on_device else CHUNK


def threshold(found: Ranks) -> float:
    """Median + 1.5 · interquartile range; infinite where one of them is not finite."""
    low, middle, high = (ranked.value for ranked in found.of[0])
    limit = middle + 1.5 * (high - low)
    return limit if math.isfinite(limit) else math.inf


class ArceeFusion(Method):
    name = "arcee_fusion"
    summary = (
        "Takes from the other model those elements whose change matters most, measured by how far "
        "they move and how much the softmax of their row shifts, and leaves the rest of the "
        "base as it is."
    )
    formula = (
        "I = |τ| · Σ p₁ log(p₁/p₀), p = softmax along the last dimension, the sum over its row;  "
        "θ = θ₁ where I ≥ median(I) + 1.5 (Q₃ - Q₁), else θ₀;  quantile q of n sorted scores is "
        "element int(q · (n-1))"
    )
    reference = "Goddard et al. 2024, MergeKit, arXiv:2403.13257; named by Arcee AI, 2025"
    works = "row by row, two passes of statistics (order statistics)"
    base = Base.REQUIRED
    minimum = 1
    maximum = 1

    def kernel(self, merge: TensorMerge) -> Kernel:
        if len(merge.models) == 1:
            return Copy()
        base = base_of(merge)
        (other,) = merge.others
        return TakeOutliers(base, other, math.prod(merge.shape))
