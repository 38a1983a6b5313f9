"""Arcee Fusion: take from another model the elements whose change matters most."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mergeloom.engine.base.grains import Access, Grains
from mergeloom.engine.graph.kernel import Copy, GrainView, Kernel, Statistic
from mergeloom.methods.declare import Base, Method, TensorMerge
from mergeloom.methods.ops.descriptions import Operands
from mergeloom.methods.ops.torch_softmax import divergences, workspace_bytes
from mergeloom.methods.ops.torch_transfer import beside
from mergeloom.methods.ops.vectors import Source, operand
from mergeloom.methods.shared_parameters import base_of
from mergeloom.methods.statistics.selection import CoarseHistogram, FineHistogram, Ranks

if TYPE_CHECKING:
    from torch import Tensor

_QUANTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Divergences(Statistic["dict[int, Tensor]", "dict[int, Tensor]"]):
    """`divergences` of the rows of each grain, each of ``row`` elements."""

    base: int
    other: int
    row: int
    loops = frozenset({"softmax_sums"})
    looped_scratch = 0

    def accumulator_bytes(self, grains: Grains, looped: bool) -> int:
        return 2 * (8 * grains.total // max(grains.row, 1) + 512 * grains.count)

    def start(self) -> dict[int, Tensor]:
        return {}

    def update(self, into: dict[int, Tensor], grain: GrainView, earlier: Sequence[Any]) -> None:
        loops = grain.loops
        base, other = (
            operand(grain, position).view(-1, self.row)
            if loops is not None
            else grain.inputs[position]
            for position in (self.base, self.other)
        )
        into[grain.index] = divergences(base, other, loops)

    def fetch(self, into: dict[int, Tensor]) -> None:
        for index, found in into.items():
            into[index] = found.cpu()

    def merge(self, into: dict[int, Tensor], other: dict[int, Tensor]) -> None:
        into.update(other)

    def finish(self, total: dict[int, Tensor], earlier: Sequence[Any]) -> dict[int, Tensor]:
        return {index: found.float() for index, found in total.items()}


@dataclass(frozen=True)
class Importance(Source):
    """|τ| KL(p₁‖p₀) of every element, which is never negative; follows `Divergences`."""

    base: int
    other: int
    divergences: Any = None
    count = 1
    computed = False

    def given(self, earlier: Sequence[Any]) -> Importance:
        return replace(self, divergences=earlier[0])

    def write(self, number: int, grain: GrainView, out: Tensor) -> None:
        import torch

        divergence = beside(self.divergences[grain.index], out)
        torch.sub(grain.inputs[self.other], grain.inputs[self.base], out=out)
        out.abs_().mul_(divergence)

    def operands(self, number: int, grain: GrainView, take: Callable[[], Tensor]) -> Operands:
        """Compiled loops look at magnitudes, so the sign may stay."""
        vector, minus = operand(grain, self.other), operand(grain, self.base)
        return vector, minus, self.divergences[grain.index]


@dataclass(frozen=True)
class TakeOutliers(Kernel):
    """θ₁ where the importance reaches median + 1.5 · interquartile range, else θ₀."""

    base: int
    other: int
    total: int
    row: int
    access = Access.ROWWISE
    scratch = 1
    looped_scratch = 0
    cost = 9.0
    compiled_cost = 1.7
    version = 3

    @property
    def source(self) -> Importance:
        return Importance(self.base, self.other)

    @property
    def passes(self) -> tuple[Statistic[Any, Any], ...]:
        # Element k of the scores from the least up is the (n - k)-th largest.
        ranks = tuple(self.total - int(share * (self.total - 1)) for share in _QUANTILES)
        return (
            Divergences(self.base, self.other, self.row),
            CoarseHistogram(self.source, (ranks,)),
            FineHistogram(self.source),
        )

    @property
    def loops(self) -> frozenset[str]:
        return super().loops | {"choose"}

    def workspace_bytes(self, grains: Grains, looped: bool) -> int:
        rows = grains.size // max(grains.row, 1)
        return workspace_bytes(rows, grains.row, looped) + grains.size

    def combine(
        self, grain: GrainView, out: Tensor, statistics: Sequence[Any], before: tuple[int, ...]
    ) -> None:
        import torch

        source, least = self.source.given(statistics), threshold(statistics[2])
        loops = grain.loops
        if loops is not None:
            loops.choose(source.operands(0, grain, grain.take), least, out)
            return
        score = grain.take()
        source.write(0, grain, score)
        torch.where(score.ge(least), grain.inputs[self.other], grain.inputs[self.base], out=out)


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
    works = "row by row, three passes of statistics (divergences of rows, order statistics)"
    base = Base.REQUIRED
    minimum = 1
    maximum = 1

    def kernel(self, merge: TensorMerge) -> Kernel:
        if len(merge.models) == 1:
            return Copy()
        base = base_of(merge)
        (other,) = merge.others
        row = merge.shape[-1] if merge.shape else 1
        return TakeOutliers(base, other, math.prod(merge.shape), row)
