"""Keep a random choice of elements and rescale them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any

from mergeloom.engine.base.grains import Grains
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.kernel import GrainSum, GrainView, Statistic, Use
from mergeloom.engine.graph.sums import GrainSums
from mergeloom.methods.kernels.sparsifier import Sparsifier, l1_factor
from mergeloom.methods.ops import draws
from mergeloom.methods.ops.interface import KEEP_ALL, KeepRule, RandomBound, Vector
from mergeloom.methods.ops.vectors import VectorExpr


class RandomSparsifier(Sparsifier):
    """A sparsifier that decides grain by grain; statistics are only needed for rescaling.

    ``keep[i]`` is the probability of keeping an element of vector ``i``; ``None`` keeps all.
    ``keys`` are the keys for `methods.ops.draws`.
    """

    keep: tuple[float | None, ...]
    keys: tuple[int, ...]
    rescale: bool

    @property
    def planning_key(self) -> Hashable:
        return type(self), self.keep, self.rescale

    def may_drop(self, number: int) -> bool:
        """Whether elements of vector ``number`` may be dropped."""
        return self.keep[number] is not None

    @abstractmethod
    def choose(self, number: int, vector: Vector, grain: GrainView, is_repeat: bool) -> KeepRule:
        """The rule for a vector for which `may_drop` is true.

        ``is_repeat`` says that an earlier pass has called this for every such vector of this grain.
        """

    def passes(self, source: VectorExpr) -> tuple[Statistic[Any, Any], ...]:
        return (KeptNorms(source, self),) if self.rescale else ()

    def factors(self, count: int, statistics: Sequence[Any]) -> tuple[float, ...]:
        if not self.rescale:
            return (1.0,) * count
        return tuple(l1_factor(whole, kept) for whole, kept in statistics[0])

    def rule(
        self,
        number: int,
        vector: Vector,
        grain: GrainView,
        statistics: Sequence[Any],
        prefix: tuple[int, ...],
    ) -> KeepRule:
        if not self.may_drop(number):
            return KEEP_ALL
        return self.choose(number, vector, grain, is_repeat=self.rescale)


@dataclass(frozen=True)
class KeptNorms(GrainSum["tuple[tuple[float, float], ...]"]):
    """The L1 norm of every vector of a source, and that of its kept elements.

    Both are 0 for a vector whose elements are all kept.
    """

    source: VectorExpr
    sparsifier: RandomSparsifier

    @property
    def uses(self) -> tuple[Use, ...]:
        return (Use("magnitudes", self.source.count), *self.sparsifier.uses)

    def accumulator_bytes(self, grains: Grains) -> int:
        return 64 * (200 + 16 * self.source.count)

    def update(self, into: GrainSums, grain: GrainView, earlier: Sequence[Any]) -> None:
        sums: list[Any] = []
        for number in range(self.source.count):
            if not self.sparsifier.may_drop(number):
                sums += [0.0, 0.0]
                continue
            vector = self.source.read(number, grain)
            kept = self.sparsifier.choose(number, vector, grain, is_repeat=False)
            sums += grain.ops.magnitudes(vector, kept)
        into.add(grain.index, grain.ops.sums(sums))

    def finalize(self, total: GrainSums, earlier: Sequence[Any]) -> tuple[tuple[float, float], ...]:
        if total.total is None:
            return ((0.0, 0.0),) * self.source.count
        sums = total.total
        return tuple(zip(sums[::2], sums[1::2], strict=True))


@dataclass(frozen=True)
class RandomKeep(RandomSparsifier):
    """Keep each element of vector ``i`` with probability ``keep[i]``."""

    keep: tuple[float | None, ...]
    keys: tuple[int, ...]
    rescale: bool

    @property
    def uses(self) -> tuple[Use, ...]:
        return (Use("draw", len(self.keep)),)

    def choose(self, number: int, vector: Vector, grain: GrainView, is_repeat: bool) -> KeepRule:
        bound = draws.threshold(self.keep[number] or 0.0)
        return KeepRule(draw=RandomBound(self.keys[number], grain.start, bound))


@dataclass(frozen=True)
class ExpectedKeep(RandomKeep):
    """Like `RandomKeep`, with kept elements divided by their probability: the expected value is
    that of the whole vector."""

    rescale: bool = False

    def factors(self, count: int, statistics: Sequence[Any]) -> tuple[float, ...]:
        return tuple(1.0 if keep is None else 1.0 / keep for keep in self.keep)
