"""Arithmetic of task vectors: what a fine-tune changed, made sparse, combined, put on the base.

Task arithmetic, TIES, DARE, breadcrumbs and DELLA differ in two choices only: which elements of a
task vector are kept (`methods.kernels.sparsifier`), and whether a sign is elected for each
parameter (`methods.ops.torch_elect`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergeloom.engine.base.grains import Access, Grains
from mergeloom.engine.graph.kernel import Copy, GrainView, Kernel, Statistic
from mergeloom.methods.declare import TensorMerge
from mergeloom.methods.kernels.linear_combination import LinearCombination
from mergeloom.methods.kernels.sparsifier import KeepAll, Sparsifier
from mergeloom.methods.ops.descriptions import Kept, Operands
from mergeloom.methods.ops.torch_elect import elected_sum
from mergeloom.methods.ops.vectors import Differences, operand
from mergeloom.methods.shared_parameters import base_of, sum_of_weights

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TaskVectors(Kernel):
    """θ₀ + λ · combination of the sparsified τᵢ.

    Without ``elect`` the combination is Σ wᵢτᵢ; with it the `elected_sum` of them, where
    ``normalize`` divides by the agreeing weights. ``weights`` and ``positions`` go by task vector.
    """

    base: int
    positions: tuple[int, ...]
    weights: tuple[float, ...]
    sparsifier: Sparsifier
    elect: bool
    normalize: bool
    scale: float
    version = 2

    @property
    def source(self) -> Differences:
        return Differences(self.base, self.positions)

    @property
    def access(self) -> Access:
        return self.sparsifier.access

    def notes_bytes(self, grains: Grains) -> int:
        return self.sparsifier.notes_bytes(grains)

    def workspace_bytes(self, grains: Grains, looped: bool) -> int:
        return self.sparsifier.workspace_bytes(grains, looped)

    @property
    def passes(self) -> tuple[Statistic[Any, Any], ...]:
        return self.sparsifier.passes(self.source)

    @property
    def scratch(self) -> int:
        return self.sparsifier.scratch + (len(self.positions) + 3 if self.elect else 1)

    @property
    def looped_scratch(self) -> int:
        return self.sparsifier.looped_scratch

    @property
    def cost(self) -> float:
        return self.sparsifier.cost + (1.3 if self.elect else 0.6)

    @property
    def compiled_cost(self) -> float:
        return self.sparsifier.compiled_cost + (0.25 if self.elect else 0.05)

    @property
    def loops(self) -> frozenset[str]:
        gains = self.elect or not isinstance(self.sparsifier, KeepAll)
        return super().loops | self.sparsifier.loops | ({"combine"} if gains else frozenset())

    def needs_tally(self, statistics: Sequence[Any]) -> bool:
        return self.sparsifier.needs_tally(statistics)

    def tally(self, grain: GrainView, statistics: Sequence[Any]) -> tuple[int | Tensor, ...]:
        return self.sparsifier.tally(self.source, grain, statistics)

    def combine(
        self, grain: GrainView, out: Tensor, statistics: Sequence[Any], before: tuple[int, ...]
    ) -> None:
        import torch

        factors = self.sparsifier.factors(len(self.positions), statistics)
        coefficients = [w * factor for w, factor in zip(self.weights, factors, strict=True)]
        votes = coefficients if self.elect else None
        shares = self.weights if self.normalize else None
        loops, sparsifier = grain.loops, self.sparsifier
        few = sparsifier.scratch if loops is None else sparsifier.looped_scratch
        pool = [grain.take() for _ in range(few)]

        def sparse(number: int, vector: Tensor) -> Tensor:
            self.source.write(number, grain, vector)
            sparsifier.apply(number, vector, pool, grain, statistics, before)
            return vector

        def described(number: int) -> tuple[Operands, Kept]:
            operands = self.source.operands(number, grain, grain.take)
            return operands, sparsifier.kept(number, operands, pool, grain, statistics, before)

        if loops is not None:
            vectors = [described(number) for number in range(len(coefficients))]
            base = operand(grain, self.base)
            loops.combine(vectors, coefficients, votes, shares, base, self.scale, out)
            return
        if votes is not None:
            taken = [sparse(number, grain.take()) for number in range(len(coefficients))]
            work = (grain.take(), grain.take(), grain.take())
            elected_sum(taken, votes, coefficients, shares, out, work)
        else:
            out.zero_()
            vector = grain.take()
            for number, coefficient in enumerate(coefficients):
                out.add_(sparse(number, vector), alpha=coefficient)
        torch.add(grain.inputs[self.base], out, alpha=self.scale, out=out)


def merge_task_vectors(
    merge: TensorMerge,
    dropped: Sequence[bool],
    sparsifier: Callable[[tuple[int, ...]], Sparsifier],
    *,
    elect: bool,
) -> Kernel:
    """The kernel for ``merge``, whose settings are ``normalize`` and ``lambda``.

    ``dropped`` says of which models nothing is kept at all; ``sparsifier`` is asked for the
    others, given their numbers among the models that are not the base.

    Raises:
        ParameterError: weights cancel out that are to be divided by.
    """
    if len(merge.models) == 1:
        return Copy()
    base = base_of(merge)
    weights = merge.weights()
    normalize = bool(merge.settings["normalize"])
    # All weights zero is no division by zero: nothing is divided, the base is what remains.
    divisor = sum_of_weights(weights) if normalize and any(weights) else 1.0
    kept = tuple(number for number, weight in enumerate(weights) if weight and not dropped[number])
    if not kept or not merge.settings["lambda"]:
        return LinearCombination(tuple(float(i == base) for i in range(len(merge.models))))
    return TaskVectors(
        base=base,
        positions=tuple(merge.others[number] for number in kept),
        weights=tuple(weights[number] for number in kept),
        sparsifier=sparsifier(kept),
        elect=elect,
        normalize=normalize and elect,
        scale=merge.settings["lambda"] / (1.0 if elect else divisor),
    )
