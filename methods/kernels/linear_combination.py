"""Linear combinations of the inputs: with given coefficients, or with some that the Gram matrix
decides.

Spherical interpolation, the Karcher mean and model stock look different, yet all yield
Σ cᵢ vᵢ, where the cᵢ depend on the pairwise dot products of the vᵢ alone. So they share one
statistic and one kernel, and each is a rule from a small matrix to a few numbers. Variants that
treat every row or column on its own apply the same rule to many small matrices
(`methods.kernels.row_combination`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergeloom.engine.graph.kernel import GrainView, Kernel, Statistic
from mergeloom.engine.graph.sums import GrainSums
from mergeloom.methods.ops.descriptions import Kept
from mergeloom.methods.ops.vectors import Source, operand, vectors_of
from mergeloom.methods.statistics.gram import GramMatrix

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LinearCombination(Kernel):
    """Σ cᵢ θᵢ with constant coefficients; inputs with coefficient 0 are not looked at."""

    coefficients: tuple[float, ...]
    cost = 0.2

    def combine(
        self, grain: GrainView, out: Tensor, statistics: Sequence[Any], before: tuple[int, ...]
    ) -> None:
        weighted_sum(grain.inputs, self.coefficients, out)


class Rule:
    """How coefficients follow from dot products; subclass as a frozen dataclass."""

    def coefficients(self, gram: Tensor) -> Tensor:
        """Coefficients cᵢ (m, k) of m vectors, from gram (m, m, k): k merges at once, in float64.

        Raises:
            RunError: the vectors admit no result.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Coefficients(GramMatrix):
    """The coefficients that a rule makes of the Gram matrix of a source."""

    rule: Rule

    def finish(self, total: GrainSums, earlier: Sequence[Any]) -> Any:
        import torch

        gram = torch.tensor(super().finish(total, earlier), dtype=torch.float64)
        return tuple(self.rule.coefficients(gram.unsqueeze(-1)).squeeze(-1).tolist())


@dataclass(frozen=True)
class GramCombination(Kernel):
    """Σ cᵢ θᵢ, or θ₀ + Σ cᵢ τᵢ where there is a base, with coefficients from a rule."""

    rule: Rule
    positions: tuple[int, ...]
    base: int | None = None
    version = 2

    @property
    def source(self) -> Source:
        """The vectors that are combined."""
        return vectors_of(self.positions, self.base)

    @property
    def passes(self) -> tuple[Statistic[Any, Any], ...]:
        return (Coefficients(self.source, self.rule),)

    @property
    def loops(self) -> frozenset[str]:
        return super().loops | {"combine"}

    looped_scratch = 0

    @property
    def scratch(self) -> int:
        return 0 if self.base is None else 1

    @property
    def cost(self) -> float:
        return 1.4 + 0.3 * len(self.positions)

    @property
    def compiled_cost(self) -> float:
        return 0.3 + 0.1 * len(self.positions)

    def combine(
        self, grain: GrainView, out: Tensor, statistics: Sequence[Any], before: tuple[int, ...]
    ) -> None:
        coefficients = statistics[0]
        loops = grain.loops
        if loops is not None:
            terms = [
                ((self.source.operands(number, grain, lambda: out), Kept()), coefficient)
                for number, coefficient in enumerate(coefficients)
                if coefficient
            ]
            base = None if self.base is None else operand(grain, self.base)
            if terms:
                vectors, factors = zip(*terms, strict=True)
                loops.combine(vectors, factors, None, None, base, 1.0, out)
                return
            out.zero_()
            if base is not None:
                out.add_(base.view(out.shape))
        elif self.base is None:
            weighted_sum([grain.inputs[i] for i in self.positions], coefficients, out)
        else:
            add_weighted(self.source, coefficients, grain, out)
            out.add_(grain.inputs[self.base])


def weighted_sum(vectors: Sequence[Tensor], coefficients: Sequence[float], out: Tensor) -> None:
    """Write Σ cᵢ vᵢ to ``out`` (float32, of the vectors' shape), leaving out what has cᵢ = 0."""
    import torch

    terms = [(v, c) for v, c in zip(vectors, coefficients, strict=True) if c]
    if not terms:
        out.zero_()
        return
    torch.mul(*terms[0], out=out)
    for vector, coefficient in terms[1:]:
        out.add_(vector, alpha=coefficient)


def add_weighted(
    source: Source, coefficients: Sequence[float], grain: GrainView, out: Tensor
) -> None:
    """Write Σ cᵢ vᵢ over the vectors of ``source`` to ``out``; takes one scratch tensor."""
    vector = grain.take()
    out.zero_()
    for number, coefficient in enumerate(coefficients):
        if coefficient:
            source.write(number, grain, vector)
            out.add_(vector, alpha=coefficient)
