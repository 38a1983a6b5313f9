"""The exact k-th largest magnitude of whole tensors, gathered grain by grain in two passes.

`CoarseHistogram` finds the bucket in which it lies, `FineHistogram` its place in there. Results
depend on the vectors alone, not on how grains are grouped: counts are integers, and sums are folded
by `GrainSums`.

Magnitudes are compared by their float32 bits with the sign cleared. For numbers that is their
order; NaN ranks above infinity, so that a broken input cannot break a count.
"""

from __future__ import annotations

import ctypes
import struct
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from mergeloom.engine.base.grains import Grains
from mergeloom.engine.graph.kernel import GrainView, Statistic
from mergeloom.engine.graph.sums import GrainSums
from mergeloom.methods.ops.compiled_ops import Loops
from mergeloom.methods.ops.descriptions import Operands
from mergeloom.methods.ops.torch_counts import add_counts
from mergeloom.methods.ops.vectors import Source

if TYPE_CHECKING:
    from torch import Tensor


_MAGNITUDE = 0x7FFFFFFF
_LOW_BITS = 15
"""Halving 31 bits so keeps both tables of counters small, and a bucket holds few elements."""
_FINE = 1 << _LOW_BITS
_HIGH = _MAGNITUDE & -_FINE
_BUCKETS = 1 << (31 - _LOW_BITS)
_LEVEL_BITS = 9
_LEVEL = 1 << _LEVEL_BITS
_COLUMNS = 8
_COUNT = struct.Struct("=i")
_ENTRY = 192
"""Bytes of a small object in a dictionary, at most."""


def float_of(bits: int) -> float:
    """The float32 with these bits."""
    value: float = struct.unpack("<f", struct.pack("<I", bits))[0]
    return value


def below(value: float) -> float:
    """The next smaller float32 of a float32 above zero; zero for zero."""
    bits: int = struct.unpack("<I", struct.pack("<f", value))[0]
    return float_of(bits - 1) if bits else 0.0


@dataclass(frozen=True)
class Bucket:
    """Where the magnitude of one rank lies: 2¹⁵ neighbouring floats with the same high bits."""

    high: int
    above: int
    rank: int


@dataclass(frozen=True)
class TieCounts:
    """How many elements of each grain are just as large as a threshold, where there are any."""

    grains: tuple[int, ...]
    upto: tuple[int, ...]
    """Ties in this grain and all before it."""

    @staticmethod
    def of_grains(counts: Mapping[int, int]) -> TieCounts:
        """From counts by grain."""
        grains = sorted(grain for grain, count in counts.items() if count)
        return TieCounts(tuple(grains), tuple(accumulate(counts[grain] for grain in grains)))

    def of(self, grain: int) -> tuple[int, int]:
        """How many ties lie in the grains before ``grain``, and how many in it."""
        place = bisect_left(self.grains, grain)
        before = self.upto[place - 1] if place else 0
        here = place < len(self.grains) and self.grains[place] == grain
        return before, self.upto[place] - before if here else 0


@dataclass(frozen=True)
class RankedMagnitude:
    """The magnitude of one rank: ``above`` are larger, ``equal`` are just that large.

    ``sum_above`` is the sum of the larger magnitudes, where sums were asked for. ``ties`` says in
    which grains the equal ones lie, where that came out by the way.
    """

    value: float
    rank: int
    above: int
    equal: int
    sum_above: float = 0.0
    ties: TieCounts | None = None


@dataclass
class CoarseCounts:
    """How many magnitudes of each vector share their high bits, and how many are not zero."""

    counts: Tensor
    nonzero: Tensor

    def place_like(self, vector: Tensor) -> None:
        """Let the counters, which have counted nothing elsewhere, lie where ``vector`` does."""
        import torch

        if self.counts.device != vector.device:  # zeros made there, for to send them is to wait
            self.counts = torch.zeros_like(self.counts, device=vector.device)
            self.nonzero = torch.zeros_like(self.nonzero, device=vector.device)


@dataclass(frozen=True)
class CoarseHistogram(Statistic[CoarseCounts, "tuple[tuple[Bucket, ...], ...]"]):
    """First half of a radix selection: the bucket of every rank asked for.

    ``ranks[i]`` are the ranks wanted of vector ``i``, 1 being the largest magnitude. Where
    ``nonzero_share`` is given, the one rank wanted of every vector is that share of the number of
    its elements that are not zero, rounded down; a rank of 0 gives no bucket.
    """

    source: Source
    ranks: tuple[tuple[int, ...], ...]
    nonzero_share: float | None = None
    loops = frozenset({"count_high"})

    @property
    def scratch(self) -> int:
        return 2 + self.source.scratch * self.source.count

    @property
    def looped_scratch(self) -> int | None:
        return None if self.source.computed else 0

    def accumulator_bytes(self, grains: Grains, looped: bool) -> int:
        return 8 * _BUCKETS * (self.source.count + 2)

    @property
    def double(self) -> bool:
        return self.source.double

    def start(self) -> CoarseCounts:
        import torch

        count = self.source.count
        counts = torch.zeros(count, _BUCKETS, dtype=torch.int64)
        return CoarseCounts(counts, torch.zeros(count, dtype=torch.int64))

    def update(self, into: CoarseCounts, grain: GrainView, earlier: Sequence[Any]) -> None:
        import torch

        source, loops, vector_room = self.source.given(earlier), grain.loops, cache(grain.take)
        if loops is None:
            vector, high = vector_room(), grain.take().view(torch.int32)
            into.place_like(vector)
        for number in range(source.count):
            if not self.ranks[number] and self.nonzero_share is None:
                continue
            if loops is not None:
                operands = source.operands(number, grain, vector_room)
                nonzero = loops.count_high(operands, _LOW_BITS, into.counts[number])
                if self.nonzero_share is not None:
                    into.nonzero[number] += nonzero
                continue
            source.write(number, grain, vector)
            torch.bitwise_and(vector.view(torch.int32), _HIGH, out=high)
            if self.nonzero_share is not None:
                into.nonzero[number] += torch.count_nonzero(vector)
            high.bitwise_right_shift_(_LOW_BITS)
            add_counts(high.view(-1), into.counts[number], grain.on_device)

    def fetch(self, into: CoarseCounts) -> None:
        into.counts, into.nonzero = into.counts.cpu(), into.nonzero.cpu()

    def merge(self, into: CoarseCounts, other: CoarseCounts) -> None:
        into.counts += other.counts
        into.nonzero += other.nonzero

    def finish(self, total: CoarseCounts, earlier: Sequence[Any]) -> tuple[tuple[Bucket, ...], ...]:
        result = []
        for number, counts in enumerate(total.counts):
            wanted = self.ranks[number]
            if self.nonzero_share is not None:
                wanted = (int(int(total.nonzero[number]) * self.nonzero_share),)
            found = (_locate(counts, rank) for rank in wanted if rank)
            result.append(tuple(Bucket(high, above, rank) for high, above, _, rank in found))
        return tuple(result)


def _locate(counts: Tensor, rank: int) -> tuple[int, int, int, int]:
    """The bin in which the ``rank``-th largest lies: its number, how many lie above, in it; rank.

    ``rank`` must lie in 1 … the number of all.
    """
    import torch

    at_least = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(at_least, rank))
    inside = int(counts[counts.numel() - 1 - place])
    return counts.numel() - 1 - place, int(at_least[place]) - inside, inside, rank


Key = tuple[int, int]
"""A vector's number and the high bits of a bucket."""


@dataclass
class FineCounts:
    """Per vector and bucket: counts by low bits, and low bits that are not counted yet.

    ``levels`` holds per grain the counts of those low bits that are multiples of `_LEVEL`.
    Differences of 16-bit floats have few significant bits, so many are equal; that their
    threshold's ties are then counted already saves a search for them.
    """

    counts: dict[Key, Tensor] = field(default_factory=dict)
    pending: dict[Key, list[Tensor]] = field(default_factory=dict)
    levels: dict[Key, dict[int, Any]] = field(default_factory=dict)
    sums: GrainSums = field(default_factory=GrainSums)

    def add_low(self, key: Key, index: int, low: Tensor) -> None:
        """Note low bits (int32) of grain ``index`` one by one."""
        import torch

        even = low[(low & (_LEVEL - 1)) == 0] >> _LEVEL_BITS
        levels = torch.bincount(even, minlength=_FINE // _LEVEL)
        self.levels.setdefault(key, {})[index] = _content(levels.int())
        waiting = self.pending.setdefault(key, [])
        waiting.append(low)
        # Counting costs a pass over all counters, so it waits until that many elements are there.
        if sum(part.numel() for part in waiting) >= 2 * _FINE:
            self._flush(key)

    def add_counts(self, key: Key, index: int, counts: Tensor, on_device: bool) -> None:
        """Note the counts by low bits (int64) of grain ``index``."""
        levels = counts[::_LEVEL].int()
        self.levels.setdefault(key, {})[index] = levels if on_device else _content(levels)
        self._count(key, counts)

    def add_all(self, keys: Sequence[Key], index: int, operands: Operands, loops: Loops) -> None:
        """Note the elements of ``keys``, which are of one vector, among all of grain ``index``."""
        import numpy as np
        import torch

        for key in keys:
            if key not in self.counts:
                self.counts[key] = torch.zeros(_FINE, dtype=torch.int64)
        counts = [self.counts[key] for key in keys]
        levels = np.zeros((len(keys), _FINE // _LEVEL), np.int32)
        highs = [high for _, high in keys]
        loops.count_low(operands, highs, _LOW_BITS, _LEVEL_BITS, counts, levels)
        for key, own in zip(keys, levels, strict=True):
            if own.any():
                self.levels.setdefault(key, {})[index] = own.tobytes()

    def fetch(self) -> None:
        """Bring counters to main memory that lie on a device, where nothing waits to be counted."""
        import torch

        self.counts = {key: counts.cpu() for key, counts in self.counts.items()}
        for key, levels in self.levels.items():
            fetched = torch.stack(list(levels.values())).cpu()
            self.levels[key] = dict(zip(levels, map(_content, fetched), strict=True))
        self.sums.fetch()

    def total(self, key: Key) -> Tensor:
        """Counts by low bits."""
        import torch

        self._flush(key)
        return self.counts.setdefault(key, torch.zeros(0, dtype=torch.int64))

    def ties(self, key: Key, low: int) -> TieCounts | None:
        """Where the elements with these low bits lie, if that is known."""
        level, finer = divmod(low, _LEVEL)
        if finer:
            return None
        return TieCounts.of_grains(
            {
                grain: _COUNT.unpack_from(levels, level * _COUNT.size)[0]
                for grain, levels in self.levels.get(key, {}).items()
            }
        )

    def merge(self, other: FineCounts) -> None:
        for key, levels in other.levels.items():
            self.levels.setdefault(key, {}).update(levels)
        for key in {*other.counts, *other.pending}:
            self._count(key, other.total(key))
        self.sums.merge(other.sums)

    def _flush(self, key: Key) -> None:
        import torch

        waiting = self.pending.pop(key, [])
        if waiting:
            self._count(key, torch.bincount(torch.cat(waiting), minlength=_FINE))

    def _count(self, key: Key, counts: Tensor) -> None:
        if counts.numel():
            present = self.counts.get(key)
            self.counts[key] = counts if present is None else present.add_(counts)


def _content(counts: Tensor) -> bytes:
    """The bytes of a tensor in main memory.

    Thousands of small tensors that stay would scatter over the heap and keep it from reusing the
    large pieces that come and go between them.
    """
    return ctypes.string_at(counts.data_ptr(), counts.nbytes)


@dataclass(frozen=True)
class Ranks:
    """What a radix selection found: the magnitudes asked for, and sums of all magnitudes."""

    of: tuple[tuple[RankedMagnitude, ...], ...]
    sums: tuple[float, ...]


@dataclass(frozen=True)
class FineHistogram(Statistic[FineCounts, Ranks]):
    """Second half of a radix selection; must follow a `CoarseHistogram` directly.

    With ``sums``, the magnitudes are summed up too: all of them, and those above each rank. At
    most ``ranks`` are wanted of any vector.
    """

    source: Source
    sums: bool = False
    ranks: int = 3
    loops = frozenset({"count_low"})

    @property
    def scratch(self) -> int:
        return 2 + self.source.scratch * self.source.count

    @property
    def looped_scratch(self) -> int | None:
        return None if self.sums or self.source.computed else 0

    def accumulator_bytes(self, grains: Grains, looped: bool) -> int:
        # At most one bucket a rank, each with counters, elements that wait for them, and levels of
        # each grain; and what counting those that wait allocates.
        counted = 8 * _FINE
        levels = grains.count * (_COUNT.size * (_FINE >> _LEVEL_BITS) + _ENTRY)
        every = self.ranks * self.source.count
        sums = 64 * (512 + 8 * (every + self.source.count))
        if looped:
            return every * (counted + levels) + counted + sums
        return every * (2 * counted + levels) + 3 * counted + sums

    def workspace_bytes(self, grains: Grains, looped: bool) -> int:
        # What is looked at of a grain, by what it is in a bucket or not.
        return 0 if looped and not self.source.computed else 9 * grains.size

    @property
    def double(self) -> bool:
        return self.sums or self.source.double

    def start(self) -> FineCounts:
        return FineCounts()

    def update(self, into: FineCounts, grain: GrainView, earlier: Sequence[Any]) -> None:
        import torch

        buckets: tuple[tuple[Bucket, ...], ...] = earlier[-1]
        source, loops, vector_room = self.source.given(earlier), grain.loops, cache(grain.take)
        if loops is None or self.sums:
            vector, work = vector_room(), grain.take()
        sums: list[Tensor] = []
        for number, wanted in enumerate(buckets):
            if not wanted and not self.sums:
                continue
            keys = [(number, high) for high in sorted({bucket.high for bucket in wanted})]
            if loops is not None and keys:
                operands = source.operands(number, grain, vector_room)
                into.add_all(keys, grain.index, operands, loops)
            if loops is None or self.sums:
                source.write(number, grain, vector)
            if loops is None:
                look = _count_inside if grain.on_device else _look_inside
                bits = vector.view(torch.int32).view(-1)
                for key in keys:
                    look(bits, work.view(torch.int32).view(-1), into, key, grain.index)
            if self.sums:
                torch.abs(vector, out=vector)
                sums.append(vector.sum(dtype=torch.float64))
                for bucket in wanted:
                    last = float_of((bucket.high << _LOW_BITS) | (_FINE - 1))
                    torch.ops.aten.hardshrink.out(vector, last, out=work)
                    sums.append(work.sum(dtype=torch.float64))
        if self.sums:
            into.sums.add(grain.index, torch.stack(sums))

    def fetch(self, into: FineCounts) -> None:
        into.fetch()

    def merge(self, into: FineCounts, other: FineCounts) -> None:
        into.merge(other)

    def finish(self, total: FineCounts, earlier: Sequence[Any]) -> Ranks:
        summed = iter([] if total.sums.total is None else total.sums.total.tolist())
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
        import torch

        counts = total.total(key)
        low, above, equal, _ = _locate(counts, bucket.rank - bucket.above)
        value = float_of((bucket.high << _LOW_BITS) | low)
        if self.sums and above:
            bits = torch.arange(low + 1, _FINE, dtype=torch.int32) | (bucket.high << _LOW_BITS)
            larger = bits.view(torch.float32).to(torch.float64)
            inside = counts[low + 1 :].to(torch.float64)
            sum_above += float(torch.where(inside > 0, larger * inside, inside).sum())
        above += bucket.above
        ties = total.ties(key, low)
        return RankedMagnitude(value, bucket.rank, above, equal, sum_above, ties)


def _look_inside(bits: Tensor, work: Tensor, into: FineCounts, key: Key, index: int) -> None:
    """Note in ``into`` all elements of a grain whose magnitude's high bits are those of ``key``.

    ``bits`` (int32, flat) is the vector, ``work`` scratch of that length. A bucket often holds
    one element in a hundred. Picking them one by one costs more than everything else, so the
    elements are first laid out as rows of a short, wide matrix, and only columns with a hit are
    looked at. Where most columns have one, all elements are counted instead.
    """
    import torch

    _low_bits(bits, key[1], work)
    width = bits.numel() // _COLUMNS
    edge = width * _COLUMNS
    columns = torch.nonzero(work[:edge].view(_COLUMNS, width).amin(0) < _FINE).view(-1)
    if columns.numel() * 4 > width:
        counts = torch.bincount(work.clamp_max_(_FINE), minlength=_FINE + 1)
        into.add_counts(key, index, counts[:_FINE], on_device=False)
        return
    candidates = work[:edge].view(_COLUMNS, width).index_select(1, columns).view(-1)
    candidates = torch.cat((candidates, work[edge:]))
    low = candidates[candidates < _FINE]
    if low.numel():
        into.add_low(key, index, low)


def _count_inside(bits: Tensor, work: Tensor, into: FineCounts, key: Key, index: int) -> None:
    """As `_look_inside`, but asks nothing: on a device a pass over all costs less than to wait."""
    import torch

    _low_bits(bits, key[1], work)
    # Most elements lie elsewhere, and adding them all to one counter would take its time. They
    # are spread over as many counters that nobody looks at.
    other = torch.arange(bits.numel(), dtype=torch.int32, device=bits.device)
    other.bitwise_and_(_FINE - 1).bitwise_or_(_FINE)
    counts = torch.zeros(2 * _FINE, dtype=torch.int64, device=bits.device)
    add_counts(torch.where(work < _FINE, work, other), counts, on_device=True)
    into.add_counts(key, index, counts[:_FINE], on_device=True)


def _low_bits(bits: Tensor, high: int, out: Tensor) -> None:
    """Write to ``out`` the low bits where the high bits are ``high``, and 2¹⁵ or more elsewhere."""
    import torch

    torch.bitwise_and(bits, _MAGNITUDE, out=out)
    out.bitwise_xor_(high << _LOW_BITS)
