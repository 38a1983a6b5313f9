"""Linear combinations of the inputs, with coefficients that are given or computed from the Gram
matrix.

Spherical interpolation, the Karcher mean and model stock all yield Σ cᵢ vᵢ, where the cᵢ depend
only on the pairwise dot products of the vᵢ. So they share one statistic and one kernel, and each
is a rule from a small matrix to a few numbers. Variants that treat every row or column separately
apply the same rule to many small matrices (`methods.kernels.row_combination`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cached_property
from typing import Any

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.kernel import Array, GrainView, Kernel, Statistic, Use
from mergeloom.engine.graph.sums import GrainSums
from mergeloom.methods.ops.maths import NUMBERS, Maths
from mergeloom.methods.ops.vectors import Inputs, VectorExpr, vectors_of
from mergeloom.methods.statistics.angles import Matrix
from mergeloom.methods.statistics.gram import GramMatrix


@dataclass(frozen=True)
class LinearCombination(Kernel):
    """Σ cᵢ θᵢ with constant coefficients; inputs with coefficient 0 are not read."""

    coefficients: tuple[float, ...]
    version = 2

    @property
    def planning_key(self) -> Hashable:
        return LinearCombination, len(self.coefficients)

    @property
    def uses(self) -> tuple[Use, ...]:
        return (Use("combine", len(self.coefficients)),)

    def apply(
        self, grain: GrainView, out: Array, statistics: Sequence[Any], prefix: tuple[int, ...]
    ) -> None:
        weighted_sum(Inputs(tuple(range(len(self.coefficients)))), self.coefficients, grain, out)


class Rule:
    """Computes coefficients from dot products; subclass as a frozen dataclass."""

    def coefficients(self, gram: Matrix, maths: Maths) -> Sequence[Any]:
        """Coefficients cᵢ of m vectors, from the (m, m) matrix of their dot products.

        Entries are float64: single numbers, or arrays with one element for each row or column.

        Raises:
            RunError: the result is undefined for these vectors.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Coefficients(GramMatrix):
    """The coefficients that a rule computes from the Gram matrix of a source."""

    rule: Rule

    def finalize(self, total: GrainSums, earlier: Sequence[Any]) -> Any:
        return tuple(self.rule.coefficients(super().finalize(total, earlier), NUMBERS))


@dataclass(frozen=True)
class GramCombination(Kernel):
    """Σ cᵢ θᵢ, or θ₀ + Σ cᵢ τᵢ if there is a base, with coefficients from a rule."""

    rule: Rule
    positions: tuple[int, ...]
    base: int | None = None
    version = 3

    @property
    def source(self) -> VectorExpr:
        """The vectors that are combined."""
        return vectors_of(self.positions, self.base)

    @cached_property
    def passes(self) -> tuple[Statistic[Any, Any], ...]:
        return (Coefficients(self.source, self.rule),)

    @property
    def uses(self) -> tuple[Use, ...]:
        return (Use("combine", len(self.positions)),)

    def apply(
        self, grain: GrainView, out: Array, statistics: Sequence[Any], prefix: tuple[int, ...]
    ) -> None:
        base = None if self.base is None else grain.inputs[self.base]
        weighted_sum(self.source, statistics[0], grain, out, base)


def weighted_sum(
    source: VectorExpr,
    coefficients: Sequence[float],
    grain: GrainView,
    out: Array,
    base: Array | None = None,
) -> None:
    """Write Σ cᵢ vᵢ to ``out``, added to ``base`` if given; vectors with cᵢ = 0 are skipped."""
    numbers = [number for number, coefficient in enumerate(coefficients) if coefficient] or [0]
    vectors = [source.read(number, grain) for number in numbers]
    grain.ops.combine(vectors, [coefficients[number] for number in numbers], out, base=base)
