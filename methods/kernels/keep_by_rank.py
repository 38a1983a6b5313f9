"""Keep a random choice of elements, with a probability that depends on the rank in the row."""

from __future__ import annotations

from typing import Any

from mergeloom.engine.base.grains import Access, Grains
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.kernel import GrainView, Use
from mergeloom.methods.kernels.keep_at_random import Dropping
from mergeloom.methods.ops.interface import KeepRule, Vector
from mergeloom.methods.ops.loops.sizes import marks_bytes


@dataclass(frozen=True)
class RandomByRank(Dropping):
    """Keep elements of vector ``i`` at random; larger elements of a row are kept more often.

    In a row of n elements, the one of rank r (0 is the largest magnitude, ties in index order) is
    kept with probability ``keep[i]`` + ``epsilon[i]`` (1 - 2r/(n - 1)). The element of a row of
    one is kept with probability ``keep[i]``.
    """

    keep: tuple[float | None, ...]
    epsilon: tuple[float, ...]
    keys: tuple[int, ...]
    rescale: bool

    @property
    def access(self) -> Access:
        return Access.ROWWISE

    @property
    def uses(self) -> tuple[Use, ...]:
        return (Use("choose_by_rank", len(self.keep)),)

    def memo_bytes(self, grains: Grains) -> int:
        # Ranking a second time would take as long as everything else together.
        return len(self.keep) * marks_bytes(grains.size) if self.rescale else 0

    def chosen(self, number: int, vector: Vector, grain: GrainView, again: bool) -> KeepRule:
        ops, row = grain.ops, grain.shape[-1]
        marks = ops.new_marks(grain, number, len(self.keep))
        if grain.memo is None or not again:
            key, steps = self.keys[number], self._steps(number, row)
            marks = ops.choose_by_rank(vector, row, key, grain.start, steps, marks)
        return KeepRule(marks=marks)

    def _steps(self, number: int, row: int) -> Any:
        """Bounds for the random numbers of vector ``number``, by rank in a row: int32."""
        import numpy as np

        keep, epsilon = self.keep[number] or 0.0, self.epsilon[number]
        if row == 1:
            epsilon = 0.0
        share = np.linspace(keep + epsilon, keep - epsilon, row)
        return np.minimum(np.rint(share * 2.0**32) - 2.0**31, 2.0**31 - 1).astype(np.int32)
