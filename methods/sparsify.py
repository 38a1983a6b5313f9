"""Which elements of a task vector are kept.

A sparsifier is asked for its statistics and then applied to one grain of one vector at a time.
`TopMagnitude` keeps the largest elements, `RandomKeep` a random choice, `RandomByRank` one that
prefers large elements, `KeepAll` all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.grains import Access
from engine.kernel import GrainSum, GrainSums, GrainView, Statistic
from methods import random
from methods.compiled import Draw, Kept, Limit, loops_for
from methods.statistics import (
    CoarseHistogram,
    FineHistogram,
    RankedMagnitude,
    Ranks,
    Source,
    TieCounts,
    below,
)
from methods.sums import magnitude_sum
from methods.transfer import beside

if TYPE_CHECKING:
    from torch import Tensor

NEGLIGIBLE = 1e-7
"""L1 norms below this are not rescaled: what is left is rounding noise."""


class Sparsifier:
    """Decides which elements of the vectors of a source survive; subclass as a frozen dataclass."""

    @property
    def access(self) -> Access:
        """See `Kernel.access`."""
        return Access.ELEMENTWISE

    @property
    def scratch(self) -> int:
        """Scratch tensors that `apply` is handed; `tally` takes one more at most."""
        return 0

    def workspace_bytes(self, row: int) -> int:
        """See `Kernel.workspace_bytes`; ``row`` is the length of a row."""
        return 0

    @property
    def cost(self) -> float:
        """See `Kernel.cost`."""
        return 0.0

    @property
    def compiled_cost(self) -> float:
        """See `Kernel.compiled_cost`."""
        return 0.0

    def passes(self, source: Source) -> tuple[Statistic[Any, Any], ...]:
        """The statistics that are needed, one pass each."""
        return ()

    def needs_tally(self, statistics: Sequence[Any]) -> bool:
        """See `Kernel.needs_tally`."""
        return False

    def tally(
        self, source: Source, grain: GrainView, statistics: Sequence[Any]
    ) -> tuple[int | Tensor, ...]:
        """See `Kernel.tally`."""
        raise NotImplementedError

    def factors(self, count: int, statistics: Sequence[Any]) -> tuple[float, ...]:
        """What each vector is to be multiplied with once it is sparse."""
        return (1.0,) * count

    def apply(
        self,
        number: int,
        vector: Tensor,
        work: Sequence[Tensor],
        grain: GrainView,
        statistics: Sequence[Any],
        before: tuple[int, ...],
    ) -> None:
        """Set to zero, in place, what is dropped of vector ``number``.

        ``vector`` and the ``scratch`` tensors of ``work`` are float32, of a grain's shape.
        """

    def kept(
        self,
        number: int,
        vector: Callable[[], Tensor],
        work: Sequence[Tensor],
        grain: GrainView,
        statistics: Sequence[Any],
        before: tuple[int, ...],
    ) -> Kept:
        """What `apply` keeps, for compiled loops.

        ``vector`` computes the vector, for who cannot decide without.
        """
        return Kept()


@dataclass(frozen=True)
class KeepAll(Sparsifier):
    """Drops nothing."""


@dataclass(frozen=True)
class Edge:
    """A magnitude from which on elements are kept, with ``ties`` of those that are just as large.

    The ties that are kept are those of lowest index, so that exactly as many elements survive as
    were asked for. ``cut`` says whether some ties are kept and some are not; ``places`` where
    they lie, if that is known.
    """

    value: float
    ties: int
    cut: bool
    places: TieCounts | None = None

    @staticmethod
    def of(found: RankedMagnitude) -> Edge:
        """The edge that keeps the ``found.rank`` largest magnitudes."""
        return Edge.keeping(found, found.rank - found.above)

    @staticmethod
    def keeping(found: RankedMagnitude, ties: int) -> Edge:
        """The edge that keeps what is larger than ``found``, and ``ties`` that are equal."""
        cut = found.value > 0 and 0 < ties < found.equal
        return Edge(found.value, ties, cut, found.ties if cut else None)

    @property
    def needs_tally(self) -> bool:
        """Whether ties must be counted, grain by grain."""
        return self.cut and self.places is None

    def tally(self, vector: Tensor, work: Tensor) -> Tensor:
        """How many elements of ``vector`` are ties (0-d); ``work`` is scratch."""
        return _ties(vector, self.value, work).sum()

    def shrink(self, vector: Tensor, index: int, before: int, out: Tensor, work: Tensor) -> None:
        """Write ``vector``, with zero for what is dropped, to ``out`` (which may be ``vector``).

        The vector is that of grain ``index``; ``before`` ties lie in earlier grains, if they were
        counted. ``work`` is scratch; all are flat.
        """
        import torch

        limit = self.limit(lambda: vector, vector.numel(), index, before, work)
        # hardshrink(x, λ) is x where |x| > λ and 0 elsewhere.
        shrink = torch.ops.aten.hardshrink.out
        if limit.end:
            shrink(vector[: limit.end], limit.before, out=out[: limit.end])
        if limit.end < vector.numel():
            shrink(vector[limit.end :], limit.after, out=out[limit.end :])

    def limit(
        self, vector: Callable[[], Tensor], count: int, index: int, before: int, work: Tensor
    ) -> Limit:
        """What the kept elements among the ``count`` of grain ``index`` are larger than.

        ``vector`` gives the grain's elements, flat, where they must be looked at.
        """
        # One step below the edge keeps ties.
        end = self._end(vector, count, index, before, work)
        return Limit(below(self.value), self.value, end)

    def _end(
        self, vector: Callable[[], Tensor], count: int, index: int, before: int, work: Tensor
    ) -> int:
        """How many elements of this grain lie before the first tie that is not kept."""
        if not self.cut:
            return count if self.ties else 0
        if self.places is not None:
            before, here = self.places.of(index)
            if before + here <= self.ties:
                return count
        if before >= self.ties:
            return 0
        return _end_of_ties(_ties(vector(), self.value, work), self.ties - before)


def _ties(vector: Tensor, value: float, work: Tensor) -> Tensor:
    """1.0 where the magnitude is ``value``, else 0.0."""
    import torch

    return torch.abs(vector, out=work).eq_(value)


def _end_of_ties(marks: Tensor, quota: int) -> int:
    """Length of the longest prefix of ``marks`` (0.0 or 1.0) with ``quota`` ones at most."""
    if int(marks.sum()) <= quota:
        return marks.numel()
    start, stop = 0, marks.numel()
    while stop - start > 1:  # the prefix ends in [start, stop)
        middle = (start + stop) // 2
        inside = int(marks[start:middle].sum())
        if inside <= quota:
            start, quota = middle, quota - inside
        else:
            stop = middle
    return start


@dataclass(frozen=True)
class TieLocation(Statistic["list[dict[int, Any]]", "tuple[TieCounts | None, ...]"]):
    """In which grains the ties at an edge lie, for statistics that must know which are kept.

    Must follow a `FineHistogram` of the same source directly, which knows it already or not.
    Looks at the first rank of every vector.
    """

    source: Source

    @property
    def scratch(self) -> int:
        return 2 + self.source.scratch * self.source.count

    def accumulator_bytes(self, inputs: int, row: int) -> int:
        return 256 << 10

    @property
    def double(self) -> bool:
        return self.source.double

    def start(self) -> list[dict[int, Any]]:
        return [{} for _ in range(self.source.count)]

    def update(self, into: list[dict[int, Any]], grain: GrainView, earlier: Sequence[Any]) -> None:
        found: Ranks = earlier[-1]
        vector, work = grain.take(), grain.take()
        for number, ranked in enumerate(found.of):
            edge = Edge.of(ranked[0]) if ranked else None
            if edge is not None and edge.needs_tally:
                self.source.write(number, grain, vector)
                count = edge.tally(vector, work)
                into[number][grain.index] = count if grain.on_device else int(count)

    def fetch(self, into: list[dict[int, Any]]) -> None:
        import torch

        for counts in into:
            if counts:
                fetched = torch.stack(list(counts.values())).tolist()
                counts.update(zip(counts, map(int, fetched), strict=True))

    def merge(self, into: list[dict[int, Any]], other: list[dict[int, Any]]) -> None:
        for counts, more in zip(into, other, strict=True):
            counts.update(more)

    def finish(
        self, total: list[dict[int, Any]], earlier: Sequence[Any]
    ) -> tuple[TieCounts | None, ...]:
        found: Ranks = earlier[-1]
        return tuple(
            TieCounts.of_grains(counts) if counts else ranked[0].ties if ranked else None
            for counts, ranked in zip(total, found.of, strict=True)
        )


@dataclass(frozen=True)
class TopMagnitude(Sparsifier):
    """Keeps the ``keep[i]`` largest magnitudes of vector ``i``; ``None`` keeps all.

    Where ``skip`` is given, the ``skip[i]`` largest of all are dropped first. With ``rescale``,
    what is kept is scaled to the L1 norm of the whole.
    """

    keep: tuple[int | None, ...]
    rescale: bool = False
    skip: tuple[int, ...] = ()

    @property
    def scratch(self) -> int:
        return 2 if any(self.skip) else 1

    @property
    def cost(self) -> float:
        return 5.5 if any(self.skip) else 4.8

    @property
    def compiled_cost(self) -> float:
        return 2.5 if any(self.skip) else 1.3

    @property
    def _idle(self) -> bool:
        return all(keep is None for keep in self.keep)

    def _ranks(self, number: int) -> tuple[int, ...]:
        """Ranks of the last element that is kept and, where there is one, the last skipped."""
        keep = self.keep[number]
        if keep is None:
            return ()
        skip = self.skip[number] if self.skip else 0
        return (skip + keep, skip) if skip else (keep,)

    def passes(self, source: Source) -> tuple[Statistic[Any, Any], ...]:
        if self._idle:
            return ()
        ranks = tuple(self._ranks(number) for number in range(len(self.keep)))
        fine = FineHistogram(source, self.rescale, max(map(len, ranks)))
        return (CoarseHistogram(source, ranks), fine)

    def _edges(self, statistics: Sequence[Any]) -> tuple[tuple[Edge, ...], ...]:
        """Per vector: the edge above which elements are kept, and the one above which not."""
        if self._idle:
            return ((),) * len(self.keep)
        found: Ranks = statistics[1]
        return tuple(tuple(map(Edge.of, ranked)) for ranked in found.of)

    def needs_tally(self, statistics: Sequence[Any]) -> bool:
        return any(edge.needs_tally for edges in self._edges(statistics) for edge in edges)

    def tally(
        self, source: Source, grain: GrainView, statistics: Sequence[Any]
    ) -> tuple[int | Tensor, ...]:
        """Ties at both edges of every vector."""
        vector, work = grain.take(), grain.take()
        counts: list[int | Tensor] = []
        for number, edges in enumerate(self._edges(statistics)):
            if any(edge.needs_tally for edge in edges):
                source.write(number, grain, vector)
            both = [edge.tally(vector, work) if edge.needs_tally else 0 for edge in edges]
            counts += [*both, 0, 0][:2]
        return tuple(counts)

    def factors(self, count: int, statistics: Sequence[Any]) -> tuple[float, ...]:
        if self._idle or not self.rescale:
            return (1.0,) * count
        found: Ranks = statistics[1]
        factors = []
        for whole, ranked in zip(found.sums, found.of, strict=True):
            sums = [edge.sum_above + edge_sum(edge) for edge in ranked]
            factors.append(l1_factor(whole, sums[0] - sum(sums[1:])) if sums else 1.0)
        return tuple(factors)

    def apply(
        self,
        number: int,
        vector: Tensor,
        work: Sequence[Tensor],
        grain: GrainView,
        statistics: Sequence[Any],
        before: tuple[int, ...],
    ) -> None:
        import torch

        edges = self._edges(statistics)[number]
        flat, scratch = vector.view(-1), work[0].view(-1)
        counts = before[2 * number : 2 * number + 2] or (0, 0)
        if len(edges) > 1:
            skipped = work[1].view(-1)
            edges[1].shrink(flat, grain.index, counts[1], skipped, scratch)
        if edges:
            edges[0].shrink(flat, grain.index, counts[0], flat, scratch)
        if len(edges) > 1:
            # What is skipped cancels, bit by bit: infinity and NaN too.
            flat.view(torch.int32).bitwise_xor_(skipped.view(torch.int32))

    def kept(
        self,
        number: int,
        vector: Callable[[], Tensor],
        work: Sequence[Tensor],
        grain: GrainView,
        statistics: Sequence[Any],
        before: tuple[int, ...],
    ) -> Kept:
        scratch = work[0].view(-1)
        counts = before[2 * number : 2 * number + 2] or (0, 0)
        limits = [
            edge.limit(lambda: vector().view(-1), scratch.numel(), grain.index, count, scratch)
            for edge, count in zip(self._edges(statistics)[number], counts, strict=False)
        ]
        return Kept(above=limits[0] if limits else None, upto=limits[1] if limits[1:] else None)


def edge_sum(found: RankedMagnitude) -> float:
    """Sum of the ties that are kept at an edge."""
    return (found.rank - found.above) * found.value


def l1_factor(whole: float, kept: float) -> float:
    """The factor that scales what is kept to the L1 norm of the whole; 1 where either vanishes."""
    usual = whole >= NEGLIGIBLE and kept >= NEGLIGIBLE and math.isfinite(whole)
    return whole / kept if usual else 1.0


# --- decisions that need no statistic ---------------------------------------------------------


class Dropping(Sparsifier):
    """Decides grain by grain; statistics only serve to rescale."""

    rescale: bool

    def drops(self, number: int) -> bool:
        """Whether anything of vector ``number`` may be dropped."""
        raise NotImplementedError

    def drop(self, number: int, vector: Tensor, work: Sequence[Tensor], grain: GrainView) -> None:
        """Set to zero, in place, what is dropped of vector ``number``; see `apply`."""
        raise NotImplementedError

    def passes(self, source: Source) -> tuple[Statistic[Any, Any], ...]:
        return (KeptNorms(source, self),) if self.rescale else ()

    def factors(self, count: int, statistics: Sequence[Any]) -> tuple[float, ...]:
        if not self.rescale:
            return (1.0,) * count
        return tuple(l1_factor(whole, kept) for whole, kept in statistics[0])

    def apply(
        self,
        number: int,
        vector: Tensor,
        work: Sequence[Tensor],
        grain: GrainView,
        statistics: Sequence[Any],
        before: tuple[int, ...],
    ) -> None:
        if self.drops(number):
            self.drop(number, vector, work, grain)


@dataclass(frozen=True)
class KeptNorms(GrainSum["tuple[tuple[float, float], ...]"]):
    """The L1 norm of every vector of a source, and that of what is kept of it."""

    source: Source
    dropping: Dropping

    @property
    def scratch(self) -> int:
        return 1 + self.dropping.scratch + self.source.scratch * self.source.count

    def accumulator_bytes(self, inputs: int, row: int) -> int:
        return 64 * (200 + 16 * self.source.count)

    def update(self, into: GrainSums, grain: GrainView, earlier: Sequence[Any]) -> None:
        import torch

        vector = grain.take()
        work = [grain.take() for _ in range(self.dropping.scratch)]
        loops = loops_for(grain)
        nothing = torch.zeros((), dtype=torch.float64, device=vector.device)
        sums = []
        for number in range(self.source.count):
            if not self.dropping.drops(number):
                sums += [nothing, nothing]
                continue
            if loops is None:
                self.source.write(number, grain, vector)
                sums.append(magnitude_sum(vector.abs_(), work[0]))
                self.dropping.drop(number, vector, work, grain)
                sums.append(magnitude_sum(vector, work[0]))
                continue
            operands = self.source.operands(number, grain, vector)
            kept = self.dropping.kept(number, lambda: vector, work, grain, earlier, ())
            sums += loops.magnitude_sums(operands, kept)
        into.add(grain.index, torch.stack(sums))

    def finish(self, total: GrainSums, earlier: Sequence[Any]) -> tuple[tuple[float, float], ...]:
        if total.total is None:
            return ((0.0, 0.0),) * self.source.count
        sums = total.total.tolist()
        return tuple(zip(sums[::2], sums[1::2], strict=True))


@dataclass(frozen=True)
class RandomKeep(Dropping):
    """Keeps each element of vector ``i`` with probability ``keep[i]``; ``None`` keeps all.

    ``keys`` are those of `methods.random`.
    """

    keep: tuple[float | None, ...]
    keys: tuple[int, ...]
    rescale: bool

    @property
    def scratch(self) -> int:
        return 2

    @property
    def cost(self) -> float:
        return 5.3 if self.rescale else 2.4

    @property
    def compiled_cost(self) -> float:
        return 0.6 if self.rescale else 0.3

    def drops(self, number: int) -> bool:
        return self.keep[number] is not None

    def drop(self, number: int, vector: Tensor, work: Sequence[Tensor], grain: GrainView) -> None:
        import torch

        numbers = work[0].view(torch.int32)
        random.draw(self.keys[number], grain.start, numbers, work[1].view(torch.int32))
        mask_bits(vector, numbers.ge_(random.threshold(self.keep[number] or 0.0)))

    def kept(
        self,
        number: int,
        vector: Callable[[], Tensor],
        work: Sequence[Tensor],
        grain: GrainView,
        statistics: Sequence[Any],
        before: tuple[int, ...],
    ) -> Kept:
        if not self.drops(number):
            return Kept()
        bound = random.threshold(self.keep[number] or 0.0)
        return Kept(draw=Draw.of(self.keys[number], grain.start, bound))


def mask_bits(vector: Tensor, drop: Tensor) -> None:
    """Set ``vector`` to zero, in place, where ``drop`` (int32) is 1 and not 0; overwrites it."""
    import torch

    # One less is no bit or all bits: what is dropped becomes zero even where it is NaN.
    vector.view(torch.int32).bitwise_and_(drop.sub_(1))


_RANKED = 1 << 17
"""Elements that are ranked at once, at least."""
_OCTAVES = 16
"""Powers of two below the largest magnitude within which magnitudes are told apart by buckets."""
_FEW = 512
"""Length of a row up to which it is not worth the trouble."""


@dataclass(frozen=True)
class RandomByRank(Dropping):
    """Keeps elements of vector ``i`` at random, the likelier the larger they are in their row.

    Of a row of n elements, the one of rank r (0 being the largest magnitude, equal ones in order
    of their index) is kept with probability ``keep[i]`` + ``epsilon[i]`` (1 - 2r/(n - 1)); a
    single element with ``keep[i]``. ``None`` keeps all. ``keys`` are those of `methods.random`.
    """

    keep: tuple[float | None, ...]
    epsilon: tuple[float, ...]
    keys: tuple[int, ...]
    rescale: bool

    @property
    def access(self) -> Access:
        return Access.ROWWISE

    @property
    def scratch(self) -> int:
        return 2

    @property
    def cost(self) -> float:
        return 58.0 if self.rescale else 29.0

    @property
    def compiled_cost(self) -> float:
        return 5.8 if self.rescale else 2.9

    def workspace_bytes(self, row: int) -> int:
        # At worst everything is sorted: magnitudes, buckets and their counts, then keys, their
        # sorted copies and places, and as much again inside of sorting. Thresholds by rank.
        sorting = 88 * max(row, _RANKED) + 32 * row
        # Compiled loops hold a row of each vector and its thresholds, of their sums five more, of
        # what ranks are found with five, and sort magnitudes with their order in 64 bits.
        return max(sorting, (8 * len(self.keep) + 80) * max(row, 1 << 11))

    def drops(self, number: int) -> bool:
        return self.keep[number] is not None

    def drop(self, number: int, vector: Tensor, work: Sequence[Tensor], grain: GrainView) -> None:
        import torch

        numbers, bounds = work[0].view(torch.int32), work[1].view(torch.int32)
        random.draw(self.keys[number], grain.start, numbers, bounds)
        steps = beside(self._thresholds(number, vector.shape[1]), vector)
        if grain.on_device:
            _bound_by_sorting(vector, steps, bounds)
            mask_bits(vector, numbers.ge_(bounds))
            return
        many = max(1, _RANKED // vector.shape[1])
        for first in range(0, vector.shape[0], many):
            rows = slice(first, first + many)
            _bound_by_rank(vector[rows], numbers[rows], steps, bounds[rows])
        mask_bits(vector, numbers.ge_(bounds))

    def kept(
        self,
        number: int,
        vector: Callable[[], Tensor],
        work: Sequence[Tensor],
        grain: GrainView,
        statistics: Sequence[Any],
        before: tuple[int, ...],
    ) -> Kept:
        if not self.drops(number):
            return Kept()
        steps = self._thresholds(number, work[0].shape[1])
        return Kept(draw=Draw.of(self.keys[number], grain.start, steps))

    def _thresholds(self, number: int, row: int) -> Tensor:
        """What the random number of the element of each rank must lie below."""
        import torch

        keep, epsilon = self.keep[number] or 0.0, self.epsilon[number]
        if row == 1:
            epsilon = 0.0
        share = torch.linspace(keep + epsilon, keep - epsilon, row, dtype=torch.float64)
        return share.mul_(2.0**32).round_().sub_(2.0**31).clamp_(max=2.0**31 - 1).int()


def _bound_by_rank(rows: Tensor, numbers: Tensor, steps: Tensor, out: Tensor) -> None:
    """Write to ``out`` what the numbers lie below just where they lie below ``steps[r]``.

    r is the rank of an element of ``rows`` in its row. Where the element is zero, anything may
    be written. All but ``steps``, which falls, are contiguous matrices of one shape.

    Sorting all rows would cost more than the rest of a merge. But a number between two steps
    decides about all elements of smaller or larger rank alike; so elements are counted by
    buckets of neighbouring magnitudes, which tells their ranks roughly, and sorted only in
    buckets with a number that lies between the steps of the bucket's ends.
    """
    import torch

    count, row = rows.shape
    if row <= _FEW:
        _bound_by_sorting(rows, steps, out)
        return
    bits = _magnitude_bits(rows)
    chosen, flat = numbers.reshape(-1), out.view(-1)
    buckets, width = _buckets(row)
    codes = bits.bitwise_right_shift(width)
    codes.sub_(int(codes.max()) - buckets + 1).clamp_min_(1).mul_(bits.clamp_max(1))
    codes.view(count, row).add_(torch.arange(count, dtype=torch.int32).unsqueeze(1) * buckets)
    inside = torch.bincount(codes, minlength=count * buckets)
    upto = inside.view(count, buckets).flip(1).cumsum_(1).flip(1).view(-1)
    above = upto - inside
    lowest = steps.index_select(0, upto.sub_(1).clamp_min_(0))
    highest = steps.index_select(0, above.clamp_max(row - 1)).sub_(1)
    highest[::buckets] = lowest[::buckets] - 1  # of zeros
    torch.index_select(lowest, 0, codes, out=flat)
    between = highest.index_select(0, codes)
    torch.clamp(chosen, flat, between, out=between).eq_(chosen)
    # What is decided counts for the zeros of the first row, which never need to be sorted.
    sought = torch.bincount(between.mul_(codes), minlength=count * buckets).clamp_max_(1).int()
    sought[::buckets] = 0
    torch.index_select(sought, 0, codes, out=between)
    members = torch.nonzero(between).view(-1)
    within = codes.index_select(0, members)
    del codes, between, lowest, highest, upto
    inside.mul_(sought)
    above.sub_(inside.cumsum(0).sub_(inside))
    order = _order(bits.index_select(0, members), within.long())
    ranks = torch.arange(members.numel()) + above.index_select(0, within.index_select(0, order))
    flat.index_copy_(0, members.index_select(0, order), steps.index_select(0, ranks))


def _bound_by_sorting(rows: Tensor, steps: Tensor, out: Tensor) -> None:
    """Write ``steps[r]`` to ``out``, r being the rank of an element of ``rows`` in its row."""
    import torch

    count, row = rows.shape
    numbers = torch.arange(count, device=rows.device).repeat_interleave(
        row, output_size=rows.numel()
    )
    order = _order(_magnitude_bits(rows), numbers)
    out.view(-1).index_copy_(0, order, steps.repeat(count))


def _magnitude_bits(rows: Tensor) -> Tensor:
    import torch

    return rows.reshape(-1).view(torch.int32).bitwise_and(0x7FFFFFFF)


def _order(bits: Tensor, groups: Tensor) -> Tensor:
    """The places of elements by rising group, falling magnitude, rising place."""
    import torch

    # All at once, as whole numbers, which sort fastest.
    keys = groups.bitwise_left_shift_(31).add_(bits.bitwise_xor(0x7FFFFFFF))
    return torch.sort(keys, stable=True).indices


def _buckets(row: int) -> tuple[int, int]:
    """How many buckets a row of this length is counted in, and the bits they do not tell apart."""
    fineness = min(max((row // 4 // _OCTAVES).bit_length() - 1, 2), 8)
    return _OCTAVES << fineness, 23 - fineness
