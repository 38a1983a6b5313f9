"""The Gram matrix: all pairwise dot products of vectors over whole tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mergeloom.engine.base.grains import Grains
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.kernel import GrainSum, GrainView, Use
from mergeloom.engine.graph.sums import GrainSums
from mergeloom.methods.ops.interface import matrix
from mergeloom.methods.ops.vectors import VectorExpr


@dataclass(frozen=True)
class GramMatrix(GrainSum["tuple[tuple[float, ...], ...]"]):
    """G[i][j] = vᵢ·vⱼ over all elements, in float64."""

    source: VectorExpr

    @property
    def uses(self) -> tuple[Use, ...]:
        return (Use("dots", self.source.count), *self.source.uses)

    @property
    def scratch(self) -> int:
        return self.source.count * self.source.scratch

    def accumulator_bytes(self, grains: Grains) -> int:
        return 64 * (200 + 8 * self.source.count**2)

    def update(self, into: GrainSums, grain: GrainView, earlier: Sequence[Any]) -> None:
        into.add(grain.index, grain.ops.dots(self.source.read_all(grain)))

    def finalize(self, total: GrainSums, earlier: Sequence[Any]) -> tuple[tuple[float, ...], ...]:
        count = self.source.count
        if total.total is None:
            return ((0.0,) * count,) * count
        return tuple(map(tuple, matrix(total.total, count)))
