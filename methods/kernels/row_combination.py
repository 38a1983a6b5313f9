"""Linear combinations with separate coefficients for every row or column.

Rows are vectors along the last dimension; their dot products are computed in the output pass.
Columns are vectors along the first dimension; they span all grains, so their dot products are a
statistic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mergeloom.engine.base.grains import Access, Grains
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.kernel import Array, GrainSum, GrainView, Kernel, Statistic, Use
from mergeloom.engine.graph.sums import GrainSums
from mergeloom.methods.kernels.linear_combination import Rule
from mergeloom.methods.ops.interface import Factors, matrix
from mergeloom.methods.ops.maths import ArrayMaths
from mergeloom.methods.ops.vectors import VectorExpr, vectors_of


@dataclass(frozen=True)
class RowCombination(Kernel):
    """Σ cᵢ vᵢ for each row, with coefficients from a rule; added to the base if there is one.

    A 0-d tensor counts as one row of one element.
    """

    rule: Rule
    positions: tuple[int, ...]
    base: int | None = None
    access = Access.ROWWISE
    uses_float64 = True
    version = 2

    @property
    def uses(self) -> tuple[Use, ...]:
        count = len(self.positions)
        return (Use("row_dots", count), Use("combine", count))

    def apply(
        self, grain: GrainView, out: Array, statistics: Sequence[Any], prefix: tuple[int, ...]
    ) -> None:
        vectors = vectors_of(self.positions, self.base).read_all(grain)
        ops, row = grain.ops, grain.shape[-1]
        gram = ops.row_dots(vectors, row)
        factors = [ops.to_float32(each) for each in self.rule.coefficients(gram, ops.maths)]
        weighted = [
            replace(vector, factors=Factors(own))
            for vector, own in zip(vectors, factors, strict=True)
        ]
        base = None if self.base is None else grain.inputs[self.base]
        ops.combine(weighted, [1.0] * len(weighted), out, base=base)


@dataclass(frozen=True)
class ColumnGram(GrainSum[Any]):
    """Float32 coefficients (m, columns) from the dot products of vectors along the first dimension.

    There is one column for each index into all dimensions but the first.
    """

    rule: Rule
    source: VectorExpr
    columns: int

    @property
    def uses(self) -> tuple[Use, ...]:
        return (Use("column_dots", self.source.count),)

    def accumulator_bytes(self, grains: Grains) -> int:
        kept = 2 * (grains.count + 2).bit_length()
        return 8 * self.source.count**2 * self.columns * (kept + 4)

    def update(self, into: GrainSums, grain: GrainView, earlier: Sequence[Any]) -> None:
        vectors = self.source.read_all(grain)
        first = grain.start % self.columns
        into.add(grain.index, grain.ops.column_dots(vectors, self.columns, first))

    def finalize(self, total: GrainSums, earlier: Sequence[Any]) -> Any:
        import numpy as np

        gram = matrix(total.total, self.source.count)
        found = self.rule.coefficients(gram, ArrayMaths(np))
        return np.array([np.broadcast_to(each, self.columns) for each in found], np.float32)


@dataclass(frozen=True)
class ColumnCombination(Kernel):
    """Σ cᵢ vᵢ for each vector along the first dimension; added to the base if there is one."""

    rule: Rule
    positions: tuple[int, ...]
    shape: tuple[int, ...]
    base: int | None = None
    access = Access.ROWWISE
    version = 2

    @property
    def source(self) -> VectorExpr:
        """The vectors that are combined."""
        return vectors_of(self.positions, self.base)

    @property
    def passes(self) -> tuple[Statistic[Any, Any], ...]:
        return (ColumnGram(self.rule, self.source, math.prod(self.shape[1:])),)

    @property
    def uses(self) -> tuple[Use, ...]:
        return (Use("combine", len(self.positions)),)

    def apply(
        self, grain: GrainView, out: Array, statistics: Sequence[Any], prefix: tuple[int, ...]
    ) -> None:
        ops, first = grain.ops, grain.start % math.prod(self.shape[1:])
        vectors = [
            replace(
                vector, factors=Factors(ops.from_numpy(own), by_column=True, first_column=first)
            )
            for vector, own in zip(self.source.read_all(grain), statistics[0], strict=True)
        ]
        base = None if self.base is None else grain.inputs[self.base]
        ops.combine(vectors, [1.0] * len(vectors), out, base=base)
