"""SCE: select elements of high variance, calculate weights, erase minority signs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mergeloom.engine.base.grains import Grains
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.kernel import Array, GrainSum, GrainView, Kernel, Statistic, Use
from mergeloom.engine.graph.sums import GrainSums
from mergeloom.methods.declare import Base, Method, Parameter, TensorMerge
from mergeloom.methods.kernels.keep_by_magnitude import Threshold, TieLocation
from mergeloom.methods.kernels.linear_combination import LinearCombination
from mergeloom.methods.ops.interface import KEEP_ALL, Bound, KeepRule, Vector
from mergeloom.methods.ops.vectors import Differences, VectorExpr
from mergeloom.methods.shared_parameters import INT8_MASK, base_of
from mergeloom.methods.statistics.selection import CoarseHistogram, FineHistogram, Ranks


@dataclass(frozen=True)
class Variance(VectorExpr):
    """The sum of squared deviations of task vectors from their mean, element by element."""

    taus: Differences
    count = 1
    scratch = 1

    @property
    def uses(self) -> tuple[Use, ...]:
        return (Use("variance", self.taus.count),)

    def read(self, number: int, grain: GrainView) -> Vector:
        out = grain.take()
        grain.ops.variance(self.taus.read_all(grain), out)
        return Vector(out)


@dataclass(frozen=True)
class Selection:
    """The positions that are kept: all, or those with the highest variance."""

    taus: Differences
    share: float

    @property
    def keeps_all(self) -> bool:
        return self.share >= 1

    @property
    def passes(self) -> tuple[Statistic[Any, Any], ...]:
        if self.keeps_all:
            return ()
        variance = Variance(self.taus)
        return (
            CoarseHistogram(variance, ((),), self.share),
            FineHistogram(variance, ranks=1),
            TieLocation(variance),
        )

    @property
    def uses(self) -> tuple[Use, ...]:
        """The operations of ``grain.ops`` that `rule` uses."""
        if self.keeps_all:
            return ()
        return (Use("mark"), Use("end_of_equal"), *Variance(self.taus).uses)

    @property
    def scratch(self) -> int:
        """Scratch arrays that `rule` takes."""
        return 0 if self.keeps_all else 1

    def rule(self, grain: GrainView, statistics: Sequence[Any]) -> KeepRule:
        """The rule for all task vectors on a grain."""
        if self.keeps_all:
            return KEEP_ALL
        found: Ranks = statistics[1]
        if not found.by_vector[0]:
            return _KEEP_NOTHING
        variance = Variance(self.taus).read(0, grain)
        threshold = replace(Threshold.of(found.by_vector[0][0]), tie_counts=statistics[2][0])
        bound = threshold.bound(variance, grain, 0)
        marks = grain.ops.new_marks(grain, 0, 1)
        return KeepRule(marks=grain.ops.mark(variance, KeepRule(above=bound), marks))


_KEEP_NOTHING = KeepRule(upto=Bound(-1.0, -1.0, 0))


@dataclass(frozen=True)
class SelectedSquares(GrainSum["tuple[float, ...]"]):
    """Weights proportional to Σ τᵢ² over the kept positions, scaled so that the least is 1."""

    selection: Selection

    @property
    def uses(self) -> tuple[Use, ...]:
        return (Use("magnitudes", self.selection.taus.count), *self.selection.uses)

    @property
    def scratch(self) -> int:
        return self.selection.scratch

    def accumulator_bytes(self, grains: Grains) -> int:
        return 64 * (200 + 8 * self.selection.taus.count)

    def update(self, into: GrainSums, grain: GrainView, earlier: Sequence[Any]) -> None:
        kept, ops = self.selection.rule(grain, earlier), grain.ops
        sums = [ops.squares(tau, kept) for tau in self.selection.taus.read_all(grain)]
        into.add(grain.index, ops.sums(sums))

    def finalize(self, total: GrainSums, earlier: Sequence[Any]) -> tuple[float, ...]:
        sums = total.total
        if sums is None or not all(map(math.isfinite, sums)):
            return (1.0,) * self.selection.taus.count
        # Only ratios matter; with a least weight of 1, no divisor is too small.
        least = max(min((s for s in sums if s), default=1.0), max(sums) * _MIN_RATIO)
        return tuple(s / least for s in sums)


_MIN_RATIO = 1e-20
"""Smallest ratio of two weights; with smaller ones, the quotient might overflow float32."""


@dataclass(frozen=True)
class SelectCalculateErase(Kernel):
    """θ₀ + Σ wᵢτ̂ᵢ / Σ wᵢ over the elements with the elected sign."""

    base: int
    selection: Selection
    version = 4

    @property
    def passes(self) -> tuple[Statistic[Any, Any], ...]:
        return (*self.selection.passes, SelectedSquares(self.selection))

    @property
    def uses(self) -> tuple[Use, ...]:
        return (Use("combine", self.selection.taus.count, elects_signs=True), *self.selection.uses)

    @property
    def scratch(self) -> int:
        return self.selection.scratch

    def apply(
        self, grain: GrainView, out: Array, statistics: Sequence[Any], prefix: tuple[int, ...]
    ) -> None:
        weights: tuple[float, ...] = statistics[-1]
        count = len(weights)
        kept = self.selection.rule(grain, statistics)
        grain.ops.combine(
            self.selection.taus.read_all(grain),
            weights,
            out,
            kept=[kept] * count,
            votes=[1.0] * count,
            shares=weights,
            base=grain.inputs[self.base],
        )


class Sce(Method):
    name = "sce"
    summary = (
        "Keeps the positions where the fine-tunes differ most from each other, lets the models "
        "elect one sign for each parameter, and averages the changes that agree with it, weighting "
        "each model by how much it changed. Needs no weights."
    )
    formula = (
        "τ̂ᵢ = τᵢ at the k = int(select_topk · nonzero) positions of highest variance over i;  "
        "wᵢ = Σ τ̂ᵢ² (over the tensor);  s = sign(Σ τ̂ᵢ), + at 0;  "
        "θ = θ₀ + Σ wᵢτ̂ᵢ / Σ wᵢ, both sums over i with sign(τ̂ᵢ) = s"
    )
    reference = "Wan et al. 2024, FuseChat, arXiv:2408.07990"
    works = (
        "element by element, one pass of statistics (squares); with select_topk below 1 four "
        "(order statistics of the variance, positions of ties, squares)"
    )
    by_name = False
    settings = (
        Parameter(
            "select_topk",
            float,
            "share of the positions at which the models differ that is kept; 0 gives the base, "
            "1 or more keeps all",
            default=1.0,
            minimum=0.0,
            usual=(0.0, 1.0),
        ),
        INT8_MASK,
    )
    base = Base.REQUIRED
    minimum = 1

    def kernel(self, merge: TensorMerge) -> Kernel:
        base = base_of(merge)
        if not merge.settings["select_topk"]:
            return LinearCombination(tuple(float(i == base) for i in range(len(merge.models))))
        selection = Selection(Differences(base, merge.others), merge.settings["select_topk"])
        return SelectCalculateErase(base, selection)
