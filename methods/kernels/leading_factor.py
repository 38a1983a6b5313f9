"""The factors of low rank that come closest to a combination of low-rank changes.

E. Eckart, G. Young, The approximation of one matrix by another of lower rank, 1936: the largest
singular values and their vectors make the closest one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mergeloom.engine.base.grains import Access, Grains, partition
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.kernel import Array, GrainView, Kernel, Use, all_uses
from mergeloom.methods.ops.loops.sizes import FEW, LARGE

Shape = tuple[int, ...]
_ZEROS = 4096
"""Zeros that are written at once."""


@dataclass(frozen=True)
class LeadingFactor(Kernel):
    """One factor of the best approximation, of ``rank``, of a combination of changes of a weight.

    Change i is ``scales[i]``·upᵢ·downᵢ, a matrix (rows, columns). Beside the input are all downᵢ
    (ranks[i], columns), then all upᵢ (rows, ranks[i]). The changes are added up, or combined by
    ``combination`` as matrices. The result is Vᵀ (rank, columns) of U·S·Vᵀ or, for ``up``, U·S
    (rows, rank): see `methods.ops.words.Ops.leading_of_matrix`. The one input has the result's
    shape, and is not looked at.
    """

    rows: int
    columns: int
    rank: int
    up: bool
    ranks: tuple[int, ...]
    scales: tuple[float, ...]
    combination: Kernel | None = None
    access = Access.WHOLE
    aligned = False

    def output_shape(self, inputs: Sequence[Shape], side: Sequence[Shape]) -> Shape:
        (shape,) = inputs
        found = list(map(math.prod, side))
        wanted = [rank * self.columns for rank in self.ranks]
        wanted += [self.rows * rank for rank in self.ranks]
        if found != wanted or len(self.scales) != len(self.ranks):
            raise ValueError(f"matrices {list(side)} are not of ranks {self.ranks}")
        if math.prod(shape) != self.rank * (self.rows if self.up else self.columns):
            raise ValueError(f"{shape} is no factor of rank {self.rank}")
        return shape

    @property
    def uses(self) -> tuple[Use, ...]:
        if self.combination is None:
            return (Use("leading_of_product", sum(self.ranks)),)
        shorter = min(self.rows, self.columns)
        changes = (Use("add_product", max(self.ranks)), Use("repeat"))
        return (Use("leading_of_matrix", shorter), *changes, *all_uses(self.combination))

    @property
    def cost(self) -> float:
        """That of making a Gram matrix tridiagonal, and of what it is made from; or of multiplying
        by it some times for each singular value."""
        shorter, longer = sorted((self.rows, self.columns))
        if self.combination is None:
            inner = sum(self.ranks)
            return inner + 4.0 * inner**3 / (self.rank * longer)
        if shorter >= LARGE and FEW * self.rank <= shorter:
            return (8.0 * self.rank + 100.0) * shorter * 0.6 / self.rank
        return shorter * shorter * (longer + 2.0 * shorter) / (4.0 * self.rank * longer)

    def workspace_bytes(self, grains: Grains) -> int:
        if self.combination is None:
            return 32 * sum(self.ranks) * (self.rows + self.columns)
        # The matrix; of one grain all changes; the tables that statistics are counted in.
        inner = self._inner
        tables = sum(each.accumulator_bytes(inner) for each in self.combination.passes)
        arrays = len(self.ranks) + 2
        return 4 * self.rows * self.columns + 4 * arrays * (inner.size + _ZEROS) + 2 * tables

    @property
    def _inner(self) -> Grains:
        """How the combination of matrices is gone through: as it would be by itself."""
        assert self.combination is not None
        return partition((self.rows, self.columns), self.combination.access)

    def apply(
        self, grain: GrainView, out: Array, statistics: Sequence[Any], before: tuple[int, ...]
    ) -> None:
        count, shape = len(self.ranks), (self.rows, self.columns)
        downs, ups = grain.side[:count], grain.side[count:]
        if self.combination is None:
            grain.ops.leading_of_product(downs, ups, self.scales, shape, self.rank, self.up, out)
            return
        matrix = grain.ops.take(self.rows * self.columns)
        self._combine(self.combination, grain, matrix)
        grain.ops.leading_of_matrix(matrix, shape, self.rank, self.up, out)

    def _combine(self, kernel: Kernel, whole: GrainView, matrix: Array) -> None:
        """Write the combination of the changes, grain by grain, as the engine does it."""
        grains, results = self._inner, list[Any]()
        for statistic in kernel.passes:
            total = statistic.init()
            for index in range(grains.count):
                with self._changes(whole, index) as view:
                    statistic.update(total, view, results)
            statistic.fetch(total)
            results.append(statistic.finalize(total, results))
        scans, before = kernel.needs_scan(results), list[int]()
        for index in range(grains.count):
            part = whole.ops.part(matrix, *grains.bounds(index))
            with self._changes(whole, index) as view:
                own = list(map(int, kernel.scan_value(view, results))) if scans else []
                before = before or [0] * len(own)
                kernel.apply(view, part, results, tuple(before))
                before = [a + b for a, b in zip(before, own, strict=True)]

    @contextmanager
    def _changes(self, whole: GrainView, index: int) -> Iterator[GrainView]:
        """What the combination sees of one grain: the changes there, for as long as it looks."""
        ops, count = whole.ops, len(self.ranks)
        start, size = self._inner.bounds(index)
        top = ops.top()
        zeros = ops.take(size)
        ops.repeat(ops.single(ops.counters(1)), 0, zeros)
        changes = []
        for number, (rank, scale) in enumerate(zip(self.ranks, self.scales, strict=True)):
            down, up = whole.side[number], whole.side[count + number]
            changes.append(ops.take(size))
            ops.add_product(zeros, down, up, rank, start, scale, changes[-1])
        shape = self.rows, self.columns
        yield GrainView(changes, index, start, (size,), lambda: ops.take(size), ops, whole=shape)
        ops.release(top)
