"""Low-rank factors of the best approximation of a combination of low-rank changes.

E. Eckart, G. Young, The approximation of one matrix by another of lower rank, 1936: the best
approximation consists of the largest singular values and their vectors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mergeloom.engine.base.grains import Access, Grains, partition
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.kernel import Array, GrainView, Kernel, Use, all_uses
from mergeloom.methods.ops.loops.sizes import LANCZOS_MIN_SIZE, LANCZOS_RATIO

Shape = tuple[int, ...]
_ZEROS = 4096
"""Number of zeros written at a time."""


@dataclass(frozen=True)
class LeadingFactor(Kernel):
    """One factor of the best approximation, of rank ``rank``, of a combination of weight changes.

    Change i is ``scales[i]``·upᵢ·downᵢ, a matrix (rows, columns). The side inputs are all downᵢ
    (ranks[i], columns), then all upᵢ (rows, ranks[i]). The changes are added up, or combined as
    matrices by ``combination``. The result is Vᵀ (rank, columns) of U·S·Vᵀ or, for ``up``, U·S
    (rows, rank): see `methods.ops.interface.Ops.leading_of_matrix`. The one input only gives the
    result's shape; its values are not used.
    """

    rows: int
    columns: int
    rank: int
    up: bool
    ranks: tuple[int, ...]
    scales: tuple[float, ...]
    combination: Kernel | None = None
    access = Access.WHOLE
    is_aligned = False

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
        """The cost of computing a Gram matrix and making it tridiagonal, or of multiplying by the
        matrix several times for each singular value."""
        shorter, longer = sorted((self.rows, self.columns))
        if self.combination is None:
            inner = sum(self.ranks)
            return inner + 4.0 * inner**3 / (self.rank * longer)
        if shorter >= LANCZOS_MIN_SIZE and LANCZOS_RATIO * self.rank <= shorter:
            return (8.0 * self.rank + 100.0) * shorter * 0.6 / self.rank
        return shorter * shorter * (longer + 2.0 * shorter) / (4.0 * self.rank * longer)

    def workspace_bytes(self, grains: Grains) -> int:
        if self.combination is None:
            return 32 * sum(self.ranks) * (self.rows + self.columns)
        # The matrix, all changes on one grain, and the accumulators of statistics.
        grains = self._grains
        accumulators = sum(each.accumulator_bytes(grains) for each in self.combination.passes)
        arrays = len(self.ranks) + 2
        return 4 * self.rows * self.columns + 4 * arrays * (grains.size + _ZEROS) + 2 * accumulators

    @property
    def _grains(self) -> Grains:
        """The grains in which the combination runs: those it would have as a merge of its own."""
        assert self.combination is not None
        return partition((self.rows, self.columns), self.combination.access)

    def apply(
        self, grain: GrainView, out: Array, statistics: Sequence[Any], prefix: tuple[int, ...]
    ) -> None:
        count, shape = len(self.ranks), (self.rows, self.columns)
        downs, ups = grain.side[:count], grain.side[count:]
        if self.combination is None:
            grain.ops.leading_of_product(downs, ups, self.scales, shape, self.rank, self.up, out)
            return
        matrix = grain.ops.take(self.rows * self.columns)
        self._write_combination(self.combination, grain, matrix)
        grain.ops.leading_of_matrix(matrix, shape, self.rank, self.up, out)

    def _write_combination(self, kernel: Kernel, whole: GrainView, matrix: Array) -> None:
        """Write the combination of the changes grain by grain, as the engine would."""
        grains, results = self._grains, list[Any]()
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
        """Yield the view of one grain with the changes as inputs; valid within the context only."""
        ops, count = whole.ops, len(self.ranks)
        start, size = self._grains.bounds(index)
        top = ops.top()
        zeros = ops.take(size)
        ops.repeat(ops.to_float32(ops.counters(1)), 0, zeros)
        changes = []
        for number, (rank, scale) in enumerate(zip(self.ranks, self.scales, strict=True)):
            down, up = whole.side[number], whole.side[count + number]
            changes.append(ops.take(size))
            ops.add_product(zeros, down, up, rank, start, scale, changes[-1])
        yield GrainView(
            *(changes, index, start, (size,), lambda: ops.take(size), ops),
            whole_shape=(self.rows, self.columns),
        )
        ops.release(top)
