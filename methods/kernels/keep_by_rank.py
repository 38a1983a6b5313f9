"""Keep a random choice of elements, with a probability that depends on the rank in the row."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from mergeloom.engine.base.grains import Access, Grains
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.kernel import GrainView, Use
from mergeloom.methods.kernels.keep_at_random import RandomSparsifier
from mergeloom.methods.ops.interface import KeepRule, Vector
from mergeloom.methods.ops.loops.sizes import marks_bytes

_CACHED_ROW = 4096
"""Maximum number of elements of a row whose bounds are cached."""


@dataclass(frozen=True)
class RandomByRank(RandomSparsifier):
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

    def choose(self, number: int, vector: Vector, grain: GrainView, is_repeat: bool) -> KeepRule:
        ops, row = grain.ops, grain.shape[-1]
        marks = ops.new_marks(grain, number, len(self.keep))
        if grain.memo is None or not is_repeat:
            keep, epsilon = self.keep[number] or 0.0, self.epsilon[number]
            bounds = (_cached_bounds if row <= _CACHED_ROW else _bounds)(keep, epsilon, row)
            key = self.keys[number]
            marks = ops.choose_by_rank(vector, row, key, grain.start, bounds, marks)
        return KeepRule(marks=marks)


def _bounds(keep: float, epsilon: float, row: int) -> Any:
    """The bounds of random numbers for each rank in a row of ``row`` elements: int32."""
    import numpy as np

    if row == 1:
        epsilon = 0.0
    share = np.linspace(keep + epsilon, keep - epsilon, row)
    return np.minimum(np.rint(share * 2.0**32) - 2.0**31, 2.0**31 - 1).astype(np.int32)


_cached_bounds = lru_cache(maxsize=16)(_bounds)
"""`_bounds` with a cache: many small tensors have rows of the same length."""
