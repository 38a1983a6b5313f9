"""The exact k-th largest magnitude of whole tensors: a radix selection in two passes over grains.

`CoarseHistogram` finds its bucket, `FineHistogram` its position within the bucket. Results do not
depend on how grains are grouped: counts are integers, and sums are added up by `GrainSums`.

Magnitudes are compared by their float32 bits with the sign cleared, which preserves their order.
NaN ranks above infinity, so that NaN in an input does not spoil counts.
"""

from __future__ import annotations

import math
import struct
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import field
from itertools import accumulate, chain
from typing import Any

from mergeloom.engine.base.grains import Grains
from mergeloom.engine.base.records import dataclass, record
from mergeloom.engine.graph.kernel import GrainView, Statistic, Use
from mergeloom.engine.graph.sums import GrainSums
from mergeloom.methods.ops.interface import KEEP_ALL, Bound, KeepRule, Ops, Vector, to_numpy
from mergeloom.methods.ops.loops.sizes import MAX_RANKED
from mergeloom.methods.ops.vectors import VectorExpr

_LOW_BITS = 15
"""Low bits of the 31: splitting them near the middle keeps both tables of counters small."""
_LOW_COUNTERS = 1 << _LOW_BITS
_HIGH_COUNTERS = 1 << (31 - _LOW_BITS)
_GROUP = 256
"""Bins that are searched as a group; the size of every table of counters is a multiple."""
_STEP_BITS = 9
_STEP = 1 << _STEP_BITS
_COUNT = struct.Struct("=i")
_OBJECT_BYTES = 192
"""Upper bound of the bytes of a small object in a dictionary."""


def float_of(bits: int) -> float:
    """The float32 with the given bits."""
    value: float = struct.unpack("<f", struct.pack("<I", bits))[0]
    return value


def below(value: float) -> float:
    """The next smaller float32 of a non-negative float32; zero for zero."""
    bits: int = struct.unpack("<I", struct.pack("<f", value))[0]
    return float_of(bits - 1) if bits else 0.0


@record(frozen=True, slots=True)
class Bucket:
    """The bucket of the magnitude of one rank: 2¹⁵ adjacent floats with the same high bits.

    ``found`` is the magnitude itself, if it is already known.
    """

    high: int
    above: int
    rank: int
    found: RankedMagnitude | None = None


@record(frozen=True, slots=True)
class TieCounts:
    """The number of elements equal to a threshold, for each grain that has any."""

    grains: tuple[int, ...]
    upto: tuple[int, ...]
    """Number of ties in this grain and all before it."""

    @staticmethod
    def of_grains(counts: Mapping[int, int]) -> TieCounts:
        """Create from a mapping of grain index to count."""
        grains = sorted(grain for grain, count in counts.items() if count)
        return TieCounts(tuple(grains), tuple(accumulate(counts[grain] for grain in grains)))

    def of(self, grain: int) -> tuple[int, int]:
        """Number of ties in the grains before ``grain``, and in it."""
        place = bisect_left(self.grains, grain)
        before = self.upto[place - 1] if place else 0
        here = place < len(self.grains) and self.grains[place] == grain
        return before, self.upto[place] - before if here else 0


@record(frozen=True, slots=True)
class RankedMagnitude:
    """The magnitude of one rank: ``above`` elements are larger, ``equal`` elements are equal.

    ``sum_above`` is the sum of the larger magnitudes, if requested. ``ties`` has the number of
    equal elements of each grain, if known; ``end`` the number of elements before the first of them
    that is not among the first ``rank``, if that is known and the tensor is one grain.
    """

    value: float
    rank: int
    above: int
    equal: int
    sum_above: float = 0.0
    ties: TieCounts | None = None
    end: int | None = None


@dataclass
class CoarseCounts:
    """For each vector, counts of magnitudes by their high bits, and the number of nonzero elements.

    A vector that is a whole small tensor has its ``buckets`` instead.
    """

    counts: dict[int, Any] = field(default_factory=dict)
    nonzero: dict[int, Any] = field(default_factory=dict)
    buckets: dict[int, tuple[Bucket, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class CoarseHistogram(Statistic[CoarseCounts, "tuple[tuple[Bucket, ...], ...]"]):
    """First half of a radix selection: the bucket of every requested rank.

    ``ranks[i]`` are the ranks for vector ``i``; rank 1 is the largest magnitude. If
    ``nonzero_share`` is given, the only rank of every vector is that share of the number of its
    nonzero elements, rounded down; rank 0 has no bucket.
    """

    source: VectorExpr
    ranks: tuple[tuple[int, ...], ...]
    nonzero_share: float | None = None
    uses_float64 = False

    @property
    def uses(self) -> tuple[Use, ...]:
        return (Use("count_high", self.source.count), *self.source.uses)

    @property
    def scratch(self) -> int:
        return self.source.scratch * self.source.count

    def accumulator_bytes(self, grains: Grains) -> int:
        return 8 * _HIGH_COUNTERS * (self.source.count + 2)

    def init(self) -> CoarseCounts:
        return CoarseCounts()

    def update(self, into: CoarseCounts, grain: GrainView, earlier: Sequence[Any]) -> None:
        source, ops = self.source.with_results(earlier), grain.ops
        whole = grain.index == 0 and grain.count == math.prod(grain.whole_shape)
        small = whole and grain.count <= MAX_RANKED
        counted: dict[int, Vector] = {}
        for number in range(source.count):
            if not self.ranks[number] and self.nonzero_share is None:
                continue
            vector = source.read(number, grain)
            if not (small and self._find(into, number, vector, ops)):
                counted[number] = vector
        if not counted:
            return
        for number in counted:
            if number not in into.counts:
                into.counts[number] = ops.counters(_HIGH_COUNTERS)
        counts = [into.counts[number] for number in counted]
        found = ops.count_high(list(counted.values()), _LOW_BITS, counts)
        for number, nonzero in zip(counted, found, strict=True):
            into.nonzero[number] = into.nonzero.get(number, 0) + nonzero

    def _find(self, into: CoarseCounts, number: int, vector: Vector, ops: Ops) -> bool:
        """Find the buckets of a vector that is a whole tensor, if the arithmetic can."""
        ranks: Sequence[int] = [rank for rank in self.ranks[number] if rank]
        if self.nonzero_share is not None:
            counted = ops.find_ranks(vector, (), _LOW_BITS)
            rank = 0 if counted is None else int(counted[0] * self.nonzero_share)
            ranks = (rank,) if rank else ()
        found = ops.find_ranks(vector, ranks, _LOW_BITS)
        if found is None:
            return False
        into.buckets[number] = tuple(map(_bucket, ranks, found[1]))
        return True

    def fetch(self, into: CoarseCounts) -> None:
        into.counts = {number: to_numpy(counts) for number, counts in into.counts.items()}
        into.nonzero = {number: int(count) for number, count in into.nonzero.items()}

    def combine(self, into: CoarseCounts, other: CoarseCounts) -> None:
        into.buckets |= other.buckets
        for number, counts in other.counts.items():
            present = into.counts.get(number)
            into.counts[number] = counts if present is None else _add(present, counts)
        for number, count in other.nonzero.items():
            into.nonzero[number] = into.nonzero.get(number, 0) + count

    def finalize(
        self, total: CoarseCounts, earlier: Sequence[Any]
    ) -> tuple[tuple[Bucket, ...], ...]:
        result = []
        for number in range(self.source.count):
            if number in total.buckets:
                result.append(total.buckets[number])
                continue
            wanted = self.ranks[number]
            if self.nonzero_share is not None:
                wanted = (int(total.nonzero.get(number, 0) * self.nonzero_share),)
            found = (_locate(total.counts[number], rank) for rank in wanted if rank)
            result.append(tuple(Bucket(high, above, rank) for high, above, _, rank in found))
        return tuple(result)


def _bucket(rank: int, found: tuple[int, int, int, int, int]) -> Bucket:
    """The bucket of a rank with its magnitude; for ``found`` see `Ops.find_ranks`."""
    bits, above, equal, beyond, end = found
    ties = TieCounts((0,), (equal,))
    magnitude = RankedMagnitude(float_of(bits), rank, above, equal, 0.0, ties, end)
    return Bucket(bits >> _LOW_BITS, beyond, rank, magnitude)


def _add(counts: Any, more: Any) -> Any:
    counts += more
    return counts


def _locate(counts: Any, rank: int) -> tuple[int, int, int, int]:
    """Find the bin of the ``rank``-th largest: (bin, count above it, count in it, ``rank``).

    ``rank`` is between 1 and the sum of counts. Groups of bins are searched first, because a
    cumulative sum over all bins would dominate the time for small tensors.
    """
    groups = counts.reshape(-1, _GROUP)
    group, before, _ = _from_above(groups.sum(axis=1), rank)
    place, above, inside = _from_above(groups[group], rank - before)
    return group * _GROUP + place, before + above, inside, rank


def _from_above(counts: Any, rank: int) -> tuple[int, int, int]:
    """The same for a few bins: (bin, count above it, count in it)."""
    at_least = counts[::-1].cumsum()
    place = int(at_least.searchsorted(rank))
    inside = int(counts[counts.size - 1 - place])
    return counts.size - 1 - place, int(at_least[place]) - inside, inside


Key = tuple[int, int]
"""Index of a vector, and the high bits of a bucket."""


@dataclass
class FineCounts:
    """Counts by low bits for each vector and bucket.

    ``levels`` has, for each grain, the counts of low bits that are multiples of `_STEP`.
    Differences of 16-bit floats have few significant bits, so the threshold often is such a
    multiple; its ties are then already counted and need no further pass.
    """

    counts: dict[Key, Any] = field(default_factory=dict)
    levels: dict[Key, dict[int, Any]] = field(default_factory=dict)
    sums: GrainSums = field(default_factory=GrainSums)

    def add(
        self, highs: Mapping[int, Sequence[int]], grain: GrainView, given: Sequence[Vector]
    ) -> None:
        """Count the elements of a grain that belong to ``highs`` of each vector ``given``."""
        keys = [[(number, high) for high in own] for number, own in highs.items()]
        for key in chain.from_iterable(keys):
            if key not in self.counts:
                self.counts[key] = grain.ops.counters(_LOW_COUNTERS)
        counts = [[self.counts[key] for key in own] for own in keys]
        found = grain.ops.count_low(given, list(highs.values()), _LOW_BITS, _STEP_BITS, counts)
        for key, levels in zip(chain.from_iterable(keys), chain.from_iterable(found), strict=True):
            self.levels.setdefault(key, {})[grain.index] = levels

    def fetch(self) -> None:
        """Copy the counts to main memory.

        Levels are stored as bytes, nonzero ones only: thousands of small arrays would fragment the
        heap and keep it from reusing large blocks between them.
        """
        self.counts = {key: to_numpy(counts) for key, counts in self.counts.items()}
        for key, levels in self.levels.items():
            found = ((grain, to_numpy(own)) for grain, own in levels.items())
            self.levels[key] = {grain: own.tobytes() for grain, own in found if own.any()}
        self.sums.fetch()

    def total(self, key: Key) -> Any:
        """Counts by low bits."""
        if key not in self.counts:
            import numpy as np

            self.counts[key] = np.zeros(_LOW_COUNTERS, np.int64)
        return self.counts[key]

    def ties(self, key: Key, low: int) -> TieCounts | None:
        """The elements with the low bits ``low`` by grain, if known."""
        level, finer = divmod(low, _STEP)
        if finer:
            return None
        return TieCounts.of_grains(
            {
                grain: _COUNT.unpack_from(levels, level * _COUNT.size)[0]
                for grain, levels in self.levels.get(key, {}).items()
            }
        )

    def combine(self, other: FineCounts) -> None:
        for key, levels in other.levels.items():
            self.levels.setdefault(key, {}).update(levels)
        for key, counts in other.counts.items():
            present = self.counts.get(key)
            self.counts[key] = counts if present is None else _add(present, counts)
        self.sums.combine(other.sums)


@record(frozen=True, slots=True)
class Ranks:
    """Result of a radix selection: the requested magnitudes, and the sum of all magnitudes."""

    by_vector: tuple[tuple[RankedMagnitude, ...], ...]
    sums: tuple[float, ...]


@dataclass(frozen=True)
class FineHistogram(Statistic[FineCounts, Ranks]):
    """Second half of a radix selection; must follow a `CoarseHistogram` directly.

    With ``sums``, magnitudes are also summed: all of them, and those above each rank. ``ranks`` is
    the maximum number of ranks of a vector.
    """

    source: VectorExpr
    sums: bool = False
    ranks: int = 3

    @property
    def uses(self) -> tuple[Use, ...]:
        count = self.source.count
        summing = (Use("magnitudes", count),) if self.sums else ()
        return (Use("count_low", count), *summing, *self.source.uses)

    @property
    def scratch(self) -> int:
        return self.source.scratch * self.source.count

    def accumulator_bytes(self, grains: Grains) -> int:
        # At most one bucket per rank, each with counters and the levels of each grain.
        levels = grains.count * (_COUNT.size * (_LOW_COUNTERS >> _STEP_BITS) + _OBJECT_BYTES)
        every = self.ranks * self.source.count
        sums = 64 * (512 + 8 * (every + self.source.count))
        return every * (8 * _LOW_COUNTERS + levels) + 8 * _LOW_COUNTERS + sums

    @property
    def uses_float64(self) -> bool:
        return self.sums

    def init(self) -> FineCounts:
        return FineCounts()

    def update(self, into: FineCounts, grain: GrainView, earlier: Sequence[Any]) -> None:
        buckets: tuple[tuple[Bucket, ...], ...] = earlier[-1]
        source, ops = self.source.with_results(earlier), grain.ops
        highs: dict[int, list[int]] = {}
        counted: list[Vector] = []
        sums: list[Any] = []
        for number, wanted in enumerate(buckets):
            if not self.sums and all(bucket.found is not None for bucket in wanted):
                continue
            vector = source.read(number, grain)
            if wanted:
                highs[number] = sorted({bucket.high for bucket in wanted})
                counted.append(vector)
            if self.sums:
                limits = [
                    float_of((bucket.high << _LOW_BITS) | (_LOW_COUNTERS - 1)) for bucket in wanted
                ]
                rules = [KeepRule(above=Bound(limit, limit, 0)) for limit in limits]
                found = [ops.magnitudes(vector, rule) for rule in rules or [KEEP_ALL]]
                sums += [found[0][0], *(above for _, above in found[: len(rules)])]
        if counted:
            into.add(highs, grain, counted)
        if self.sums:
            into.sums.add(grain.index, ops.sums(sums))

    def fetch(self, into: FineCounts) -> None:
        into.fetch()

    def combine(self, into: FineCounts, other: FineCounts) -> None:
        into.combine(other)

    def finalize(self, total: FineCounts, earlier: Sequence[Any]) -> Ranks:
        summed = iter(total.sums.total or ())
        everything, ranked = [], []
        for number, wanted in enumerate(earlier[-1]):
            everything.append(next(summed, 0.0))
            ranked.append(
                tuple(
                    self._refine(total, (number, bucket.high), bucket, next(summed, 0.0))
                    for bucket in wanted
                )
            )
        return Ranks(tuple(ranked), tuple(everything))

    def _refine(
        self, total: FineCounts, key: Key, bucket: Bucket, sum_above: float
    ) -> RankedMagnitude:
        if bucket.found is not None and not self.sums:
            return bucket.found
        import numpy as np

        counts = total.total(key)
        low, above, equal, _ = _locate(counts, bucket.rank - bucket.above)
        value = float_of((bucket.high << _LOW_BITS) | low)
        if self.sums and above:
            bits = np.arange(low + 1, _LOW_COUNTERS, dtype=np.int32) | (bucket.high << _LOW_BITS)
            inside = counts[low + 1 :]
            is_present = inside > 0
            larger = bits.astype(np.int32)[is_present].view(np.float32).astype(np.float64)
            sum_above += float((larger * inside[is_present]).sum())
        above += bucket.above
        ties = total.ties(key, low)
        end = bucket.found.end if bucket.found is not None else None
        return RankedMagnitude(value, bucket.rank, above, equal, sum_above, ties, end)
