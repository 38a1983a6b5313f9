"""Keep the largest elements of vectors, or those in a range of ranks, over whole tensors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from mergeloom.engine.base.grains import Grains
from mergeloom.engine.base.records import dataclass, record
from mergeloom.engine.graph.kernel import GrainView, Statistic, Use
from mergeloom.methods.kernels.sparsifier import Sparsifier, l1_factor
from mergeloom.methods.ops.interface import KEEP_ALL, Bound, KeepRule, Ops, RankRange, Vector
from mergeloom.methods.ops.vectors import VectorExpr
from mergeloom.methods.statistics.selection import (
    CoarseHistogram,
    FineHistogram,
    RankedMagnitude,
    Ranks,
    TieCounts,
    below,
)


@record(frozen=True, slots=True)
class Threshold:
    """A magnitude above which elements are kept, along with ``ties`` elements equal to it.

    The ties of lowest index are kept, so that exactly the requested number of elements is kept.
    ``splits_ties`` says whether only some of them are kept; ``tie_counts`` has their number in each
    grain, if known. ``end`` is the number of elements before the first tie that is dropped, if that
    is known and the tensor has one grain.
    """

    value: float
    ties: int
    splits_ties: bool
    tie_counts: TieCounts | None = None
    end: int | None = None

    @staticmethod
    def of(found: RankedMagnitude) -> Threshold:
        """The threshold that keeps the ``found.rank`` largest magnitudes."""
        return Threshold.keeping(found, found.rank - found.above, found.end)

    @staticmethod
    def keeping(found: RankedMagnitude, ties: int, end: int | None = None) -> Threshold:
        """The threshold that keeps magnitudes larger than ``found``, and ``ties`` equal to it;
        ``end`` is where these end, if known."""
        splits = found.value > 0 and 0 < ties < found.equal
        return Threshold(
            found.value, ties, splits, found.ties if splits else None, end if splits else None
        )

    @property
    def needs_scan(self) -> bool:
        """Whether ties must be counted grain by grain."""
        return self.splits_ties and self.tie_counts is None

    def bound(self, vector: Vector, grain: GrainView, before: int) -> Bound:
        """The lower bound of the kept elements of ``vector`` on a grain.

        ``before`` is the number of ties in earlier grains, if they were counted.
        """
        # A bound one step below the threshold keeps ties.
        return Bound(below(self.value), self.value, self._end(vector, grain, before))

    def _end(self, vector: Vector, grain: GrainView, before: int) -> int:
        """Number of elements of this grain before the first tie that is dropped."""
        if not self.splits_ties:
            return grain.count if self.ties else 0
        if self.end is not None:
            return self.end
        if self.tie_counts is not None:
            before, inside = self.tie_counts.of(grain.index)
            if before + inside <= self.ties:
                return grain.count
        if before >= self.ties:
            return 0
        return int(grain.ops.end_of_equal(vector, self.value, self.ties - before))


@dataclass(frozen=True)
class TieLocation(Statistic["list[dict[int, Any]]", "tuple[TieCounts | None, ...]"]):
    """The grains in which the ties at a threshold are, for statistics that depend on them.

    Must directly follow a `FineHistogram` of the same source, which may know them already. Only
    the first rank of every vector is used.
    """

    source: VectorExpr

    @property
    def uses(self) -> tuple[Use, ...]:
        return (Use("count_equal"), *self.source.uses)

    @property
    def scratch(self) -> int:
        return self.source.count * self.source.scratch

    def accumulator_bytes(self, grains: Grains) -> int:
        return grains.count * self.source.count * 192

    uses_float64 = False

    def init(self) -> list[dict[int, Any]]:
        return [{} for _ in range(self.source.count)]

    def update(self, into: list[dict[int, Any]], grain: GrainView, earlier: Sequence[Any]) -> None:
        found: Ranks = earlier[-1]
        for number, ranked in enumerate(found.by_vector):
            threshold = Threshold.of(ranked[0]) if ranked else None
            if threshold is not None and threshold.needs_scan:
                vector = self.source.read(number, grain)
                into[number][grain.index] = grain.ops.count_equal(vector, threshold.value)

    def fetch(self, into: list[dict[int, Any]]) -> None:
        for counts in into:
            for index, count in counts.items():
                counts[index] = int(count)

    def combine(self, into: list[dict[int, Any]], other: list[dict[int, Any]]) -> None:
        for counts, more in zip(into, other, strict=True):
            counts.update(more)

    def finalize(
        self, total: list[dict[int, Any]], earlier: Sequence[Any]
    ) -> tuple[TieCounts | None, ...]:
        found: Ranks = earlier[-1]
        return tuple(
            TieCounts.of_grains(counts) if counts else ranked[0].ties if ranked else None
            for counts, ranked in zip(total, found.by_vector, strict=True)
        )


@dataclass(frozen=True)
class TopMagnitude(Sparsifier):
    """Keep the ``keep[i]`` largest magnitudes of vector ``i``; ``None`` keeps all.

    If ``skip`` is given, the ``skip[i]`` largest are dropped first. With ``rescale``, the kept
    elements are scaled to the L1 norm of the whole vector.
    """

    keep: tuple[int | None, ...]
    rescale: bool = False
    skip: tuple[int, ...] = ()

    @property
    def uses(self) -> tuple[Use, ...]:
        return () if self._keeps_all else (Use("count_equal"), Use("end_of_equal"))

    @cached_property
    def _keeps_all(self) -> bool:
        return all(keep is None for keep in self.keep)

    def _ranks(self, number: int) -> tuple[int, ...]:
        """Rank of the last kept element and, if any are skipped, of the last skipped one."""
        keep = self.keep[number]
        if keep is None:
            return ()
        skip = self.skip[number] if self.skip else 0
        return (skip + keep, skip) if skip else (keep,)

    def passes(self, source: VectorExpr) -> tuple[Statistic[Any, Any], ...]:
        if self._keeps_all:
            return ()
        ranks = tuple(self._ranks(number) for number in range(len(self.keep)))
        fine = FineHistogram(source, self.rescale, max(map(len, ranks)))
        return (CoarseHistogram(source, ranks), fine)

    def for_one_grain(self, ops: Ops, count: int) -> Sparsifier:
        if self._keeps_all or self.rescale or not ops.ranks(count):
            return self
        skipped = self.skip or (0,) * len(self.keep)
        return KeepRanks(
            tuple(
                KEEP_ALL if keep is None else KeepRule(ranks=RankRange(skip + keep, skip))
                for keep, skip in zip(self.keep, skipped, strict=True)
            )
        )

    def _thresholds(self, statistics: Sequence[Any]) -> tuple[tuple[Threshold, ...], ...]:
        """Per vector: the threshold above which elements are kept, and that of skipped ones."""
        if self._keeps_all:
            return ((),) * len(self.keep)
        found: Ranks = statistics[1]
        return tuple(tuple(map(Threshold.of, ranked)) for ranked in found.by_vector)

    def needs_scan(self, statistics: Sequence[Any]) -> bool:
        return any(
            threshold.needs_scan
            for thresholds in self._thresholds(statistics)
            for threshold in thresholds
        )

    def scan_value(
        self, source: VectorExpr, grain: GrainView, statistics: Sequence[Any]
    ) -> tuple[Any, ...]:
        """Number of ties at both thresholds of every vector."""
        counts: list[Any] = []
        for number, thresholds in enumerate(self._thresholds(statistics)):
            vector = source.read(number, grain)
            both = [
                grain.ops.count_equal(vector, threshold.value) if threshold.needs_scan else 0
                for threshold in thresholds
            ]
            counts += [*both, 0, 0][:2]
        return tuple(counts)

    def factors(self, count: int, statistics: Sequence[Any]) -> tuple[float, ...]:
        if self._keeps_all or not self.rescale:
            return (1.0,) * count
        found: Ranks = statistics[1]
        factors = []
        for whole, ranked in zip(found.sums, found.by_vector, strict=True):
            sums = [threshold.sum_above + _kept_tie_sum(threshold) for threshold in ranked]
            factors.append(l1_factor(whole, sums[0] - sum(sums[1:])) if sums else 1.0)
        return tuple(factors)

    def rule(
        self,
        number: int,
        vector: Vector,
        grain: GrainView,
        statistics: Sequence[Any],
        prefix: tuple[int, ...],
    ) -> KeepRule:
        if self._keeps_all:
            return KEEP_ALL
        found: Ranks = statistics[1]
        thresholds = tuple(map(Threshold.of, found.by_vector[number]))
        if not thresholds:
            return KEEP_ALL
        counts = prefix[2 * number : 2 * number + 2] or (0, 0)
        bounds = [
            threshold.bound(vector, grain, count)
            for threshold, count in zip(thresholds, counts, strict=False)
        ]
        return KeepRule(above=bounds[0], upto=bounds[1] if bounds[1:] else None)


@dataclass(frozen=True)
class KeepRanks(Sparsifier):
    """Keep the ranks of ``rules``, one for each vector, on tensors of one grain."""

    rules: tuple[KeepRule, ...]

    def rule(
        self,
        number: int,
        vector: Vector,
        grain: GrainView,
        statistics: Sequence[Any],
        prefix: tuple[int, ...],
    ) -> KeepRule:
        return self.rules[number]


def _kept_tie_sum(found: RankedMagnitude) -> float:
    """Sum of the magnitudes of the kept ties."""
    return (found.rank - found.above) * found.value
