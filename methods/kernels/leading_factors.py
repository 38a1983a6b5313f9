"""The low-rank factors of the best approximation of a change of a weight.

E. Eckart, G. Young, The approximation of one matrix by another of lower rank, 1936: the best
approximation consists of the largest singular values and their vectors.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mergeloom.engine.base.grains import GRAIN_ELEMENTS, Access, Grains, partition
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.kernel import Array, GrainView, Kernel, Use, all_uses
from mergeloom.methods.ops.interface import Vector
from mergeloom.methods.ops.loops.sizes import LANCZOS_MIN_SIZE, LANCZOS_RATIO

Shape = tuple[int, ...]
_ZEROS = 4096
"""Number of zeros written at a time."""


@dataclass(frozen=True)
class LeadingFactors(Kernel, ABC):
    """Two factors whose product is the best approximation, of rank ``rank``, of a matrix (rows,
    columns).

    The result has the elements of the lower one (rank, columns), then those of the upper one (rows,
    rank): see `methods.ops.interface.Ops.leading_of_matrix`. The matrix is computed from the side
    inputs; the one input only gives the result's shape, and its values are not used.
    """

    rows: int
    columns: int
    rank: int
    access = Access.WHOLE
    is_aligned = False

    def output_shape(self, inputs: Sequence[Shape], side: Sequence[Shape]) -> Shape:
        (shape,) = inputs
        if list(map(math.prod, side)) != self.side_elements:
            raise ValueError(f"{list(side)} are not the side inputs of {self}")
        if math.prod(shape) != self.rank * (self.rows + self.columns):
            raise ValueError(f"{shape} does not have the elements of both factors")
        return shape

    @property
    @abstractmethod
    def uses(self) -> tuple[Use, ...]: ...

    @property
    @abstractmethod
    def side_elements(self) -> list[int]:
        """The number of elements of each side input."""

    @property
    def shorter(self) -> int:
        return min(self.rows, self.columns)

    def factors(self, out: Array, ops: Any) -> tuple[Array, Array]:
        """The parts of the result for the lower and the upper factor."""
        lower = self.rank * self.columns
        return ops.part(out, 0, lower), ops.part(out, lower, self.rows * self.rank)

    @property
    def cost(self) -> float:
        """The cost of computing a Gram matrix and making it tridiagonal, or of multiplying by the
        matrix several times for each singular value."""
        shorter, longer = sorted((self.rows, self.columns))
        elements = self.rank * (shorter + longer)
        if shorter >= LANCZOS_MIN_SIZE and LANCZOS_RATIO * self.rank <= shorter:
            return (8.0 * self.rank + 100.0) * shorter * longer * 0.6 / elements
        return shorter * shorter * (longer + 2.0 * shorter) / (4.0 * elements)


@dataclass(frozen=True)
class LeadingOfDifference(LeadingFactors):
    """The factors for the difference of two weights (rows, columns), the second subtracted from the
    first."""

    @property
    def side_elements(self) -> list[int]:
        return [self.rows * self.columns] * 2

    @property
    def uses(self) -> tuple[Use, ...]:
        return (Use("leading_of_matrix", self.shorter), Use("copy"), Use("combine"))

    def workspace_bytes(self, grains: Grains) -> int:
        return 4 * (self.rows * self.columns + 2 * GRAIN_ELEMENTS)

    def apply(
        self, grain: GrainView, out: Array, statistics: Sequence[Any], prefix: tuple[int, ...]
    ) -> None:
        ops, total = grain.ops, self.rows * self.columns
        tuned, base = grain.side
        matrix = ops.take(total)
        top = ops.top()
        room = [ops.take(min(total, GRAIN_ELEMENTS)) for _ in grain.side]
        for start in range(0, total, GRAIN_ELEMENTS):
            count = min(GRAIN_ELEMENTS, total - start)
            own, other = (ops.part(each, 0, count) for each in room)
            ops.copy(ops.part(tuned, start, count), own)
            ops.copy(ops.part(base, start, count), other)
            ops.combine([Vector(own, minus=other)], [1.0], ops.part(matrix, start, count))
        ops.release(top)
        shape = (self.rows, self.columns)
        ops.leading_of_matrix(matrix, shape, self.rank, *self.factors(out, ops))


@dataclass(frozen=True)
class LeadingOfChanges(LeadingFactors):
    """The factors for a combination of low-rank changes.

    Change i is ``scales[i]``·upᵢ·downᵢ, a matrix (rows, columns). The side inputs are all downᵢ
    (ranks[i], columns), then all upᵢ (rows, ranks[i]). The changes are added up, or combined as
    matrices by ``combination``.
    """

    ranks: tuple[int, ...]
    scales: tuple[float, ...]
    combination: Kernel | None = None

    @property
    def side_elements(self) -> list[int]:
        return [rank * size for size in (self.columns, self.rows) for rank in self.ranks]

    @property
    def uses(self) -> tuple[Use, ...]:
        if self.combination is None:
            return (Use("leading_of_product", sum(self.ranks)),)
        changes = (Use("add_product", max(self.ranks)), Use("repeat"))
        return (Use("leading_of_matrix", self.shorter), *changes, *all_uses(self.combination))

    @property
    def cost(self) -> float:
        if self.combination is not None:
            return super().cost
        inner = sum(self.ranks)
        return inner + 4.0 * inner**3 / (self.rank * max(self.rows, self.columns))

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
        count, shape, ops = len(self.ranks), (self.rows, self.columns), grain.ops
        downs, ups = grain.side[:count], grain.side[count:]
        factors = self.factors(out, ops)
        if self.combination is None:
            ops.leading_of_product(downs, ups, self.scales, shape, self.rank, *factors)
            return
        matrix = ops.take(self.rows * self.columns)
        self._write_combination(self.combination, grain, matrix)
        ops.leading_of_matrix(matrix, shape, self.rank, *factors)

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
