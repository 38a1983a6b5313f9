"""Keeps the largest elements of task vectors, or those of a range of ranks in the whole tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergeloom.engine.base.grains import Grains
from mergeloom.engine.graph.kernel import GrainView, Statistic
from mergeloom.methods.kernels.sparsifier import Sparsifier, l1_factor
from mergeloom.methods.ops.descriptions import Kept, Limit, Operands
from mergeloom.methods.ops.vectors import Source, write_operands
from mergeloom.methods.statistics.selection import (
    CoarseHistogram,
    FineHistogram,
    RankedMagnitude,
    Ranks,
    TieCounts,
    below,
)

if TYPE_CHECKING:
    from torch import Tensor


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

    def accumulator_bytes(self, grains: Grains, looped: bool) -> int:
        return grains.count * self.source.count * 192

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
    def looped_scratch(self) -> int:
        return 2  # a vector, and what the ties at an edge are found with

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
                if grain.loops is None:
                    source.write(number, grain, vector)
                else:
                    operands = source.operands(number, grain, lambda: vector)
                    write_operands(operands, vector, lambda: work)
            both = [edge.tally(vector, work) if edge.needs_tally else 0 for edge in edges]
            counts += [*both, 0, 0][:2]
        return tuple(counts)

    def factors(self, count: int, statistics: Sequence[Any]) -> tuple[float, ...]:
        if self._idle or not self.rescale:
            return (1.0,) * count
        found: Ranks = statistics[1]
        factors = []
        for whole, ranked in zip(found.sums, found.of, strict=True):
            sums = [edge.sum_above + _edge_sum(edge) for edge in ranked]
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
        operands: Operands,
        work: Sequence[Tensor],
        grain: GrainView,
        statistics: Sequence[Any],
        before: tuple[int, ...],
    ) -> Kept:
        vector, scratch = (each.view(-1) for each in work)

        def values() -> Tensor:
            write_operands(operands, vector, lambda: scratch)
            return vector

        counts = before[2 * number : 2 * number + 2] or (0, 0)
        limits = [
            edge.limit(values, scratch.numel(), grain.index, count, scratch)
            for edge, count in zip(self._edges(statistics)[number], counts, strict=False)
        ]
        return Kept(above=limits[0] if limits else None, upto=limits[1] if limits[1:] else None)


def _edge_sum(found: RankedMagnitude) -> float:
    """Sum of the ties that are kept at an edge."""
    return (found.rank - found.above) * found.value
