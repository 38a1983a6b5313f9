"""Task vectors: sparsified, combined, and added to the base.

Task arithmetic, TIES, DARE, breadcrumbs and DELLA differ only in which elements of a task vector
are kept (`methods.kernels.sparsifier`) and in whether a sign is elected for each parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from mergeloom.engine.base.grains import Access, Grains
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.kernel import Array, GrainView, Kernel, Statistic, Use
from mergeloom.methods.declare import TensorMerge
from mergeloom.methods.kernels.linear_combination import LinearCombination
from mergeloom.methods.kernels.sparsifier import Sparsifier
from mergeloom.methods.ops.vectors import Differences
from mergeloom.methods.shared_parameters import base_of, sum_of_weights


@dataclass(frozen=True)
class TaskVectors(Kernel):
    """θ₀ + λ · combination of the sparsified τᵢ.

    Without ``elect`` the combination is Σ wᵢτᵢ; with it, the sum over elements that agree with the
    elected sign, divided by the agreeing weights if ``normalize``. ``weights`` and ``positions``
    have one entry for each task vector.
    """

    base: int
    positions: tuple[int, ...]
    weights: tuple[float, ...]
    sparsifier: Sparsifier
    elect: bool
    normalize: bool
    scale: float
    version = 3

    @cached_property
    def source(self) -> Differences:
        return Differences(self.base, self.positions)

    @property
    def planning_key(self) -> Hashable:
        return TaskVectors, self.base, self.positions, self.elect, self.sparsifier.planning_key

    @property
    def access(self) -> Access:
        return self.sparsifier.access

    def memo_bytes(self, grains: Grains) -> int:
        return self.sparsifier.memo_bytes(grains)

    @cached_property
    def passes(self) -> tuple[Statistic[Any, Any], ...]:
        return self.sparsifier.passes(self.source)

    def for_one_grain(self, ops: Any, count: int) -> Kernel:
        sparsifier = self.sparsifier.for_one_grain(ops, count)
        return self if sparsifier is self.sparsifier else replace(self, sparsifier=sparsifier)

    @property
    def uses(self) -> tuple[Use, ...]:
        return (Use("combine", len(self.positions), self.elect), *self.sparsifier.uses)

    def needs_scan(self, statistics: Sequence[Any]) -> bool:
        return self.sparsifier.needs_scan(statistics)

    def scan_value(self, grain: GrainView, statistics: Sequence[Any]) -> tuple[Any, ...]:
        return self.sparsifier.scan_value(self.source, grain, statistics)

    def apply(
        self, grain: GrainView, out: Array, statistics: Sequence[Any], prefix: tuple[int, ...]
    ) -> None:
        factors = self.sparsifier.factors(len(self.positions), statistics)
        coefficients = [w * factor for w, factor in zip(self.weights, factors, strict=True)]
        vectors = self.source.read_all(grain)
        grain.ops.combine(
            vectors,
            coefficients,
            out,
            kept=[
                self.sparsifier.rule(number, vector, grain, statistics, prefix)
                for number, vector in enumerate(vectors)
            ],
            votes=coefficients if self.elect else None,
            shares=self.weights if self.normalize else None,
            base=grain.inputs[self.base],
            scale=self.scale,
        )


def merge_task_vectors(
    merge: TensorMerge,
    dropped: Sequence[bool],
    sparsifier: Callable[[tuple[int, ...]], Sparsifier],
    *,
    elect: bool,
) -> Kernel:
    """Return the kernel for ``merge``, which has the settings ``normalize`` and ``lambda``.

    ``dropped`` marks the models of which nothing is kept; ``sparsifier`` is called with the indices
    of the others among the models that are not the base.

    Raises:
        ParameterError: the weights cancel out and cannot be normalised.
    """
    base = base_of(merge)
    weights = merge.weights()
    normalize = bool(merge.settings["normalize"])
    # If all weights are zero, the result is the base, with nothing to divide.
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
