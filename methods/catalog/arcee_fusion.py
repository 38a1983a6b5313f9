"""Arcee Fusion: take the most important changed elements from another model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mergeloom.engine.base.grains import Access, Grains
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.kernel import Array, GrainView, Kernel, Statistic, Use
from mergeloom.methods.declare import Base, Method, TensorMerge
from mergeloom.methods.ops.interface import Factors, Vector, to_numpy
from mergeloom.methods.ops.vectors import VectorExpr
from mergeloom.methods.shared_parameters import base_of
from mergeloom.methods.statistics.selection import CoarseHistogram, FineHistogram, Ranks

_QUANTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Divergences(Statistic["dict[int, Any]", "dict[int, Any]"]):
    """The divergence of each row of ``row`` elements (`Ops.divergences`), by grain."""

    base: int
    other: int
    row: int
    uses = (Use("divergences"),)

    def accumulator_bytes(self, grains: Grains) -> int:
        return 2 * (8 * grains.total // max(grains.row, 1) + 512 * grains.count)

    def init(self) -> dict[int, Any]:
        return {}

    def update(self, into: dict[int, Any], grain: GrainView, earlier: Sequence[Any]) -> None:
        base, other = grain.inputs[self.base], grain.inputs[self.other]
        into[grain.index] = grain.ops.divergences(base, other, self.row)

    def fetch(self, into: dict[int, Any]) -> None:
        for index, found in into.items():
            into[index] = to_numpy(found)

    def combine(self, into: dict[int, Any], other: dict[int, Any]) -> None:
        into.update(other)

    def finalize(self, total: dict[int, Any], earlier: Sequence[Any]) -> dict[int, Any]:
        return total


@dataclass(frozen=True)
class Importance(VectorExpr):
    """τ KL(p₁‖p₀) of every element; its magnitude is the importance. Follows `Divergences`."""

    base: int
    other: int
    divergences: Any = None
    count = 1

    def with_results(self, earlier: Sequence[Any]) -> Importance:
        return replace(self, divergences=earlier[0])

    def read(self, number: int, grain: GrainView) -> Vector:
        factors = Factors(grain.ops.from_numpy(self.divergences[grain.index]))
        return Vector(grain.inputs[self.other], grain.inputs[self.base], factors)


@dataclass(frozen=True)
class TakeOutliers(Kernel):
    """θ₁ where the importance reaches median + 1.5 · interquartile range, else θ₀."""

    base: int
    other: int
    total: int
    row: int
    access = Access.ROWWISE
    uses = (Use("choose"),)
    version = 4

    @property
    def source(self) -> Importance:
        return Importance(self.base, self.other)

    @property
    def passes(self) -> tuple[Statistic[Any, Any], ...]:
        # Element k of the ascending scores is the (n - k)-th largest.
        ranks = tuple(self.total - int(share * (self.total - 1)) for share in _QUANTILES)
        return (
            Divergences(self.base, self.other, self.row),
            CoarseHistogram(self.source, (ranks,)),
            FineHistogram(self.source),
        )

    def apply(
        self, grain: GrainView, out: Array, statistics: Sequence[Any], prefix: tuple[int, ...]
    ) -> None:
        source, least = self.source.with_results(statistics), threshold(statistics[2])
        grain.ops.choose(source.read(0, grain), least, out)


def threshold(found: Ranks) -> float:
    """Median + 1.5 · interquartile range; infinite if a quantile is not finite."""
    low, middle, high = (ranked.value for ranked in found.by_vector[0])
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
    by_name = False
    base = Base.REQUIRED
    minimum = 1
    maximum = 1

    def kernel(self, merge: TensorMerge) -> Kernel:
        base = base_of(merge)
        (other,) = merge.others
        row = merge.shape[-1] if merge.shape else 1
        return TakeOutliers(base, other, math.prod(merge.shape), row)
