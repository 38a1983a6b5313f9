"""Keep a random choice of elements, with a probability that depends on the rank in the row."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from mergeloom.engine.base.grains import Access, Grains
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.kernel import GrainView, Use
from mergeloom.methods.kernels.keep_at_random import Dropping
from mergeloom.methods.ops.interface import KeepRule, Vector
from mergeloom.methods.ops.loops.sizes import marks_bytes

_SHORT = 4096
"""Elements of rows whose bounds are remembered."""


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
            keep, epsilon = self.keep[number] or 0.0, self.epsilon[number]
            steps = (_known_steps if row <= _SHORT else _steps)(keep, epsilon, row)
            key = self.keys[number]
            marks = ops.choose_by_rank(vector, row, key, grain.start, steps, marks)
        return KeepRule(marks=marks)


def _steps(keep: float, epsilon: float, row: int) -> Any:
    """Bounds for random numbers by rank in a row: int32."""
    import numpy as np

    if row == 1:
        epsilon = 0.0
    share = np.linspace(keep + epsilon, keep - epsilon, row)
    return np.minimum(np.rint(share * 2.0**32) - 2.0**31, 2.0**31 - 1).astype(np.int32)


_known_steps = lru_cache(maxsize=16)(_steps)
"""The same, remembered: many small tensors have rows of one length."""
