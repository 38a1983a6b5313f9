"""SCE: select where the fine-tunes differ most, weigh them by how much they changed, erase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mergeloom.engine.base.grains import Grains
from mergeloom.engine.graph.kernel import Copy, GrainSum, GrainView, Kernel, Statistic
from mergeloom.engine.graph.sums import GrainSums
from mergeloom.methods.declare import Base, Method, Parameter, TensorMerge
from mergeloom.methods.kernels.keep_by_magnitude import Edge, TieLocation
from mergeloom.methods.kernels.linear_combination import LinearCombination
from mergeloom.methods.ops.descriptions import Kept
from mergeloom.methods.ops.torch_elect import elected_sum
from mergeloom.methods.ops.torch_sums import magnitude_sum
from mergeloom.methods.ops.vectors import Differences, Source, operand
from mergeloom.methods.shared_parameters import INT8_MASK, base_of
from mergeloom.methods.statistics.selection import CoarseHistogram, FineHistogram, Ranks

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Variance(Source):
    """The sum of squared deviations of task vectors from their mean, element by element."""

    taus: Differences
    count = 1
    scratch = 2

    def write(self, number: int, grain: GrainView, out: Tensor) -> None:
        self.compute(grain, out, grain.take(), grain.take())

    def compute(self, grain: GrainView, out: Tensor, mean: Tensor, tau: Tensor) -> None:
        """Write it to ``out``; ``mean`` and ``tau`` are overwritten."""
        mean.zero_()
        for number in range(self.taus.count):
            self.taus.write(number, grain, tau)
            mean.add_(tau)
        mean.div_(self.taus.count)
        out.zero_()
        for number in range(self.taus.count):
            self.taus.write(number, grain, tau)
            # Two roundings, not one as in a fused operation: the same bits on every device.
            tau.sub_(mean).square_()
            out.add_(tau)


@dataclass(frozen=True)
class Selection:
    """The positions that are kept: all, or those of highest variance."""

    taus: Differences
    share: float

    @property
    def everything(self) -> bool:
        return self.share >= 1

    @property
    def passes(self) -> tuple[Statistic[Any, Any], ...]:
        if self.everything:
            return ()
        variance = Variance(self.taus)
        return (
            CoarseHistogram(variance, ((),), self.share),
            FineHistogram(variance, ranks=1),
            TieLocation(variance),
        )

    def mask(
        self, grain: GrainView, statistics: Sequence[Any], work: tuple[Tensor, Tensor, Tensor]
    ) -> Tensor | None:
        """All bits (int32) at positions that are kept, none elsewhere; ``None`` if all are."""
        import torch

        if self.everything:
            return None
        variance, *rest = work
        found: Ranks = statistics[1]
        if not found.of[0]:
            return variance.zero_().view(torch.int32)
        Variance(self.taus).compute(grain, variance, rest[0], rest[1])
        edge = replace(Edge.of(found.of[0][0]), places=statistics[2][0])
        flat = variance.view(-1)
        edge.shrink(flat, grain.index, 0, flat, rest[0].view(-1))
        return variance.eq_(0.0).view(torch.int32).clamp_max_(1).sub_(1)

    def write(self, number: int, grain: GrainView, mask: Tensor | None, out: Tensor) -> None:
        """Write task vector ``number`` to ``out``, with zero where nothing is kept."""
        import torch

        self.taus.write(number, grain, out)
        if mask is not None:
            out.view(torch.int32).bitwise_and_(mask)


@dataclass(frozen=True)
class SelectedSquares(GrainSum["tuple[float, ...]"]):
    """Weights in proportion to Σ τᵢ² over the positions that are kept; the least is 1."""

    selection: Selection
    scratch = 4

    @property
    def loops(self) -> frozenset[str]:
        return frozenset({"run_sums"} if self.selection.everything else ())

    @property
    def looped_scratch(self) -> int | None:
        return 0 if self.selection.everything else None

    def accumulator_bytes(self, grains: Grains, looped: bool) -> int:
        return 64 * (200 + 8 * self.selection.taus.count)

    def update(self, into: GrainSums, grain: GrainView, earlier: Sequence[Any]) -> None:
        import torch

        loops, taus = grain.loops, self.selection.taus
        if loops is not None and self.selection.everything:
            whole = [taus.operands(number, grain, grain.take) for number in range(taus.count)]
            sums = [loops.magnitude_sums(tau, Kept(), squares=True)[0] for tau in whole]
        else:
            work = (grain.take(), grain.take(), grain.take())
            mask = self.selection.mask(grain, earlier, work)
            vector, sums = grain.take(), []
            for number in range(taus.count):
                self.selection.write(number, grain, mask, vector)
                sums.append(magnitude_sum(vector.square_(), work[2]))
        into.add(grain.index, torch.stack(sums))

    def finish(self, total: GrainSums, earlier: Sequence[Any]) -> tuple[float, ...]:
        import torch

        count = self.selection.taus.count
        if total.total is None or not bool(torch.isfinite(total.total).all()):
            return (1.0,) * count
        sums = total.total.tolist()
        # Only ratios matter. The least being 1, no divisor is ever too small.
        least = max(min((s for s in sums if s), default=1.0), max(sums) * _LEAST)
        return tuple(s / least for s in sums)


_LEAST = 1e-20
"""Ratio of weights beyond which float32 might overflow."""


@dataclass(frozen=True)
class SelectCalculateErase(Kernel):
    """θ₀ + Σ wᵢτ̂ᵢ / Σ wᵢ over what agrees with the elected sign."""

    base: int
    selection: Selection
    version = 2

    @property
    def passes(self) -> tuple[Statistic[Any, Any], ...]:
        return (*self.selection.passes, SelectedSquares(self.selection))

    @property
    def loops(self) -> frozenset[str]:
        return super().loops | {"combine"}

    @property
    def scratch(self) -> int:
        return self.selection.taus.count + 3

    @property
    def looped_scratch(self) -> int | None:
        return 0 if self.selection.everything else None

    @property
    def cost(self) -> float:
        return 5.0 if self.selection.everything else 13.7

    @property
    def compiled_cost(self) -> float:
        return 2.6 if self.selection.everything else 10.8

    def combine(
        self, grain: GrainView, out: Tensor, statistics: Sequence[Any], before: tuple[int, ...]
    ) -> None:
        weights: tuple[float, ...] = statistics[-1]
        votes, loops, every = [1.0] * len(weights), grain.loops, self.selection.taus
        if loops is not None and self.selection.everything:
            taus = [every.operands(number, grain, grain.take) for number in range(len(weights))]
        else:
            work = (grain.take(), grain.take(), grain.take())
            mask = self.selection.mask(grain, statistics, work)
            vectors = [grain.take() for _ in weights]
            for number, vector in enumerate(vectors):
                self.selection.write(number, grain, mask, vector)
            taus = [(vector, None) for vector in vectors]
        if loops is not None:
            base = operand(grain, self.base)
            described = [(tau, Kept()) for tau in taus]
            loops.combine(described, weights, votes, weights, base, 1.0, out)
            return
        elected_sum(vectors, votes, weights, weights, out, work)
        out.add_(grain.inputs[self.base])


class Sce(Method):
    name = "sce"
    summary = (
        "Keeps the positions where the fine-tunes differ most from each other, lets the models "
        "elect one sign for each parameter, and averages what agrees with it, with weights that "
        "follow from how much each model changed. Needs no weights."
    )
    formula = (
        "τ̂ᵢ = τᵢ at the k = int(select_topk · nonzero) positions of highest variance over i;  "
        "wᵢ = Σ τ̂ᵢ² (over the tensor);  s = sign(Σ τ̂ᵢ), + at 0;  "
        "θ = θ₀ + Σ wᵢτ̂ᵢ / Σ wᵢ, both sums over i with sign(τ̂ᵢ) = s"
    )
    reference = "Wan et al. 2024, FuseChat, arXiv:2408.07990"
    works = (
        "element by element, one pass of statistics (squares); with select_topk below 1 four "
        "(order statistics of the variance, the places of equal ones, squares)"
    )
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
        if len(merge.models) == 1:
            return Copy()
        base = base_of(merge)
        if not merge.settings["select_topk"]:
            return LinearCombination(tuple(float(i == base) for i in range(len(merge.models))))
        selection = Selection(Differences(base, merge.others), merge.settings["select_topk"])
        return SelectCalculateErase(base, selection)
