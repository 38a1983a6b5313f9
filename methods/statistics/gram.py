"""The Gram matrix of vectors: all pairwise dot products over whole tensors, grain by grain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mergeloom.engine.base.grains import Grains
from mergeloom.engine.graph.kernel import GrainSum, GrainView
from mergeloom.engine.graph.sums import GrainSums
from mergeloom.methods.ops import torch_dots as dots
from mergeloom.methods.ops.vectors import Source


@dataclass(frozen=True)
class GramMatrix(GrainSum["tuple[tuple[float, ...], ...]"]):
    """G[i][j] = vᵢ·vⱼ over all elements, in float64."""

    source: Source

    loops = frozenset({"dot_products"})

    @property
    def scratch(self) -> int:
        return 2 * self.source.count + 1 + self.source.scratch

    @property
    def looped_scratch(self) -> int | None:
        return None if self.source.computed else 0

    def accumulator_bytes(self, grains: Grains, looped: bool) -> int:
        return 64 * (200 + 8 * self.source.count**2)

    def workspace_bytes(self, grains: Grains, looped: bool) -> int:
        return dots.workspace_bytes(self.source.count, grains.size)

    def update(self, into: GrainSums, grain: GrainView, earlier: Sequence[Any]) -> None:
        count = self.source.count
        loops = grain.loops
        if loops is not None:
            operands = [self.source.operands(i, grain, grain.take) for i in range(count)]
            into.add(grain.index, loops.dot_products(operands))
            return
        vectors = [self.source.read(i, grain, grain.take()).reshape(-1) for i in range(count)]
        into.add(grain.index, dots.dot_products(vectors, grain.take))

    def finish(self, total: GrainSums, earlier: Sequence[Any]) -> tuple[tuple[float, ...], ...]:
        count = self.source.count
        if total.total is None:
            return ((0.0,) * count,) * count
        found = dict(zip(dots.pairs(count), total.total.tolist(), strict=True))
        return tuple(tuple(found[max(i, j), min(i, j)] for j in range(count)) for i in range(count))
