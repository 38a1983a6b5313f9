"""Statistics over whole tensors, gathered grain by grain.

- `GramMatrix`: all pairwise dot products of the vectors, in float64.
- `CoarseHistogram` and `FineHistogram`: the exact k-th largest magnitude, in two passes.

What is measured are the vectors of a `Source`: the inputs, or what can be computed from them
element by element. Results depend on the vectors alone, not on how grains are grouped: counts are
integers, and sums are folded by `GrainSums`.

Magnitudes are compared by their float32 bits with the sign cleared. For numbers that is their
order; NaN ranks above infinity, so that a broken input cannot break a count.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine.grains import GRAIN_ELEMENTS
from engine.kernel import GrainSums, GrainView, Statistic

if TYPE_CHECKING:
    from torch import Tensor


class Source:
    """Vectors that are functions of a grain's inputs; subclass as a frozen dataclass."""

    @property
    def count(self) -> int:
        """Number of vectors."""
        raise NotImplementedError

    @property
    def scratch(self) -> int:
        """Scratch tensors that one call of `write` takes at most."""
        return 0

    def write(self, number: int, grain: GrainView, out: Tensor) -> None:
        """Write vector ``number`` on this grain to ``out``: float32, of the inputs' shape."""
        raise NotImplementedError

    def read(self, number: int, grain: GrainView, scratch: Tensor) -> Tensor:
        """Vector ``number``, not to be changed: in ``scratch``, or where it lies already."""
        self.write(number, grain, scratch)
        return scratch


@dataclass(frozen=True)
class Inputs(Source):
    """The inputs at ``positions`` themselves."""

    positions: tuple[int, ...]

    @property
    def count(self) -> int:
        return len(self.positions)

    def write(self, number: int, grain: GrainView, out: Tensor) -> None:
        out.copy_(grain.inputs[self.positions[number]])

    def read(self, number: int, grain: GrainView, scratch: Tensor) -> Tensor:
        return grain.inputs[self.positions[number]]


@dataclass(frozen=True)
class Differences(Source):
    """Task vectors τᵢ = θᵢ - θ₀ of the inputs at ``positions``, rounded to float32."""

    base: int
    positions: tuple[int, ...]

    @property
    def count(self) -> int:
        return len(self.positions)

    def write(self, number: int, grain: GrainView, out: Tensor) -> None:
        import torch

        torch.sub(grain.inputs[self.positions[number]], grain.inputs[self.base], out=out)


# --- dot products ---------------------------------------------------------------------------


class DoubleBuffers:
    """Scratch tensors used as float64: each holds half a grain, so a grain is done in parts."""

    def __init__(self, grain: GrainView, count: int) -> None:
        import torch

        elements = grain.inputs[0].numel()
        self._elements = elements
        self._half = max(elements // 2, 1)
        if elements > 1:
            floats = [grain.take().view(-1) for _ in range(count)]
            self._buffers = [scratch[: 2 * self._half].view(torch.float64) for scratch in floats]
        else:
            self._buffers = [torch.empty(elements, dtype=torch.float64) for _ in range(count)]

    def parts(self) -> list[tuple[slice, list[Tensor]]]:
        """Runs of elements that together are the grain, and buffers of each run's length."""
        starts = range(0, self._elements, self._half)
        runs = [slice(start, min(start + self._half, self._elements)) for start in starts]
        return [(run, [b[: run.stop - run.start] for b in self._buffers]) for run in runs]


@dataclass(frozen=True)
class GramMatrix(Statistic[GrainSums, "tuple[tuple[float, ...], ...]"]):
    """G[i][j] = vᵢ·vⱼ over all elements, in float64."""

    source: Source

    @property
    def scratch(self) -> int:
        return 2 * self.source.count + self.source.scratch

    def accumulator_bytes(self, inputs: int, row: int) -> int:
        return 64 * (200 + 8 * self.source.count**2)

    def start(self) -> GrainSums:
        return GrainSums()

    def update(self, into: GrainSums, grain: GrainView, earlier: Sequence[Any]) -> None:
        import torch

        count = self.source.count
        vectors = [self.source.read(i, grain, grain.take()).reshape(-1) for i in range(count)]
        dots = [0.0] * (count * (count + 1) // 2)
        for run, buffers in DoubleBuffers(grain, count).parts():
            for vector, buffer in zip(vectors, buffers, strict=True):
                buffer.copy_(vector[run])
            pairs = ((i, j) for i in range(count) for j in range(i + 1))
            for place, (i, j) in enumerate(pairs):
                dots[place] += float(torch.dot(buffers[i], buffers[j]))
        into.add(grain.index, torch.tensor(dots, dtype=torch.float64))

    def merge(self, into: GrainSums, other: GrainSums) -> None:
        into.merge(other)

    def finish(self, total: GrainSums, earlier: Sequence[Any]) -> tuple[tuple[float, ...], ...]:
        count = self.source.count
        if total.total is None:
            return ((0.0,) * count,) * count
        dots = total.total.tolist()

        def dot(i: int, j: int) -> float:
            i, j = max(i, j), min(i, j)
            return float(dots[i * (i + 1) // 2 + j])

        return tuple(tuple(dot(i, j) for j in range(count)) for i in range(count))


# --- order statistics -----------------------------------------------------------------------

_MAGNITUDE = 0x7FFFFFFF
_HIGH = 0x7FFF0000
_BUCKETS = 1 << 15
_FINE = 1 << 16
_COLUMNS = 16
_FLUSH = 1 << 16


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
    """Where the magnitude of one rank lies: 2¹⁶ neighbouring floats with the same high bits."""

    high: int
    above: int
    rank: int


@dataclass(frozen=True)
class RankedMagnitude:
    """The magnitude of one rank: ``above`` are larger, ``equal`` are just that large.

    ``sum_above`` is the sum of the larger magnitudes, where sums were asked for.
    """

    value: float
    rank: int
    above: int
    equal: int
    sum_above: float = 0.0


@dataclass
class CoarseCounts:
    """How many magnitudes of each vector share their 16 high bits, and how many are not zero."""

    counts: Tensor
    nonzero: list[int]


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

    @property
    def scratch(self) -> int:
        return 2 + self.source.scratch * self.source.count

    def accumulator_bytes(self, inputs: int, row: int) -> int:
        return 8 * _BUCKETS * (self.source.count + 2)

    def start(self) -> CoarseCounts:
        import torch

        count = self.source.count
        return CoarseCounts(torch.zeros(count, _BUCKETS, dtype=torch.int64), [0] * count)

    def update(self, into: CoarseCounts, grain: GrainView, earlier: Sequence[Any]) -> None:
        import torch

        vector, high = grain.take(), grain.take().view(torch.int32)
        for number in range(self.source.count):
            if not self.ranks[number] and self.nonzero_share is None:
                continue
            self.source.write(number, grain, vector)
            torch.bitwise_and(vector.view(torch.int32), _HIGH, out=high)
            if self.nonzero_share is not None:
                into.nonzero[number] += int(torch.count_nonzero(vector))
            counts = torch.bincount(high.bitwise_right_shift_(16).view(-1))
            into.counts[number, : counts.numel()] += counts

    def merge(self, into: CoarseCounts, other: CoarseCounts) -> None:
        into.counts += other.counts
        into.nonzero = [a + b for a, b in zip(into.nonzero, other.nonzero, strict=True)]

    def finish(self, total: CoarseCounts, earlier: Sequence[Any]) -> tuple[tuple[Bucket, ...], ...]:
        result = []
        for number, counts in enumerate(total.counts):
            wanted = self.ranks[number]
            if self.nonzero_share is not None:
                wanted = (int(total.nonzero[number] * self.nonzero_share),)
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


@dataclass
class FineCounts:
    """Per vector and bucket: counts by low bits, and low bits that are not counted yet."""

    counts: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    pending: dict[tuple[int, int], list[Tensor]] = field(default_factory=dict)
    sums: GrainSums = field(default_factory=GrainSums)

    def add(self, key: tuple[int, int], low: Tensor) -> None:
        """Note the low 16 bits (int32) of magnitudes that lie in a bucket."""
        waiting = self.pending.setdefault(key, [])
        waiting.append(low)
        # Counting costs a pass over 2¹⁶ counters, so it waits until that many elements are there.
        if sum(part.numel() for part in waiting) >= _FLUSH:
            self._count(key)

    def total(self, key: tuple[int, int]) -> Tensor:
        """Counts by low bits."""
        import torch

        self._count(key)
        if key not in self.counts:
            self.counts[key] = torch.zeros(_FINE, dtype=torch.int64)
        return self.counts[key]

    def merge(self, other: FineCounts) -> None:
        for key in other.counts:
            self.total(key).add_(other.counts[key])
        for key, waiting in other.pending.items():
            for low in waiting:
                self.add(key, low)
        self.sums.merge(other.sums)

    def _count(self, key: tuple[int, int]) -> None:
        import torch

        waiting = self.pending.pop(key, [])
        if waiting:
            counts = torch.bincount(torch.cat(waiting), minlength=_FINE)
            self.counts[key] = counts if key not in self.counts else self.counts[key].add_(counts)


@dataclass(frozen=True)
class Ranks:
    """What a radix selection found: the magnitudes asked for, and sums of all magnitudes."""

    of: tuple[tuple[RankedMagnitude, ...], ...]
    sums: tuple[float, ...]


@dataclass(frozen=True)
class FineHistogram(Statistic[FineCounts, Ranks]):
    """Second half of a radix selection; must follow a `CoarseHistogram` directly.

    With ``sums``, the magnitudes are summed up too: all of them, and those above each rank.
    """

    source: Source
    sums: bool = False

    @property
    def scratch(self) -> int:
        return 2 + self.source.scratch * self.source.count

    def accumulator_bytes(self, inputs: int, row: int) -> int:
        # Two buckets a vector at most in what there is; each with counters and waiting elements.
        waiting = 4 * (_FLUSH + max(row, GRAIN_ELEMENTS))
        return 3 * self.source.count * (8 * _FINE + 4 * _FLUSH) + 4 * waiting + 8 * _FINE

    def start(self) -> FineCounts:
        return FineCounts()

    def update(self, into: FineCounts, grain: GrainView, earlier: Sequence[Any]) -> None:
        import torch

        buckets: tuple[tuple[Bucket, ...], ...] = earlier[-1]
        vector, work = grain.take(), grain.take()
        sums: list[float] = []
        for number, wanted in enumerate(buckets):
            if not wanted and not self.sums:
                continue
            self.source.write(number, grain, vector)
            bits = vector.view(torch.int32).view(-1)
            for high in sorted({bucket.high for bucket in wanted}):
                low = _inside(bits, high, work.view(torch.int32).view(-1))
                if low.numel():
                    into.add((number, high), low)
            if self.sums:
                torch.abs(vector, out=vector)
                sums.append(float(vector.sum(dtype=torch.float64)))
                for bucket in wanted:
                    last = float_of((bucket.high << 16) | 0xFFFF)
                    torch.ops.aten.hardshrink.out(vector, last, out=work)
                    sums.append(float(work.sum(dtype=torch.float64)))
        if self.sums:
            into.sums.add(grain.index, torch.tensor(sums, dtype=torch.float64))

    def merge(self, into: FineCounts, other: FineCounts) -> None:
        into.merge(other)

    def finish(self, total: FineCounts, earlier: Sequence[Any]) -> Ranks:
        summed = iter([] if total.sums.total is None else total.sums.total.tolist())
        everything, ranked = [], []
        for number, wanted in enumerate(earlier[-1]):
            everything.append(next(summed, 0.0))
            ranked.append(
                tuple(
                    self._refine(total.total((number, bucket.high)), bucket, next(summed, 0.0))
                    for bucket in wanted
                )
            )
        return Ranks(tuple(ranked), tuple(everything))

    def _refine(self, counts: Tensor, bucket: Bucket, sum_above: float) -> RankedMagnitude:
        import torch

        low, above, equal, _ = _locate(counts, bucket.rank - bucket.above)
        value = float_of((bucket.high << 16) | low)
        if self.sums and above:
            bits = torch.arange(low + 1, _FINE, dtype=torch.int32) | (bucket.high << 16)
            larger = bits.view(torch.float32).to(torch.float64)
            inside = counts[low + 1 :].to(torch.float64)
            sum_above += float(torch.where(inside > 0, larger * inside, inside).sum())
        return RankedMagnitude(value, bucket.rank, bucket.above + above, equal, sum_above)


def _inside(bits: Tensor, high: int, work: Tensor) -> Tensor:
    """The low 16 bits of all elements whose magnitude's high bits are ``high``.

    ``bits`` (int32, flat) is the vector, ``work`` scratch of that length. A bucket holds about
    one element in a hundred. Picking them one by one costs more than everything else, so the
    elements are first laid out as rows of a short, wide matrix, and only columns with a hit
    are looked at.
    """
    import torch

    torch.bitwise_and(bits, _HIGH, out=work)
    torch.bitwise_xor(work, high << 16, out=work)
    width = bits.numel() // _COLUMNS
    edge = width * _COLUMNS
    found = [bits[edge:][work[edge:] == 0]]
    if width:
        nearest = work[:edge].view(_COLUMNS, width).amin(0)
        columns = torch.nonzero(nearest == 0).view(-1)
        if columns.numel() * 4 > width:
            found.append(bits[:edge][work[:edge] == 0])
        else:
            candidates = bits[:edge].view(_COLUMNS, width).index_select(1, columns).view(-1)
            found.append(candidates[(candidates & _HIGH) == high << 16])
    return torch.cat(found).bitwise_and_(0xFFFF)
