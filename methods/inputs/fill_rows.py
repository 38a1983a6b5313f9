"""Fill in rows that a model lacks from the rows of other models.

A model has no row for a token that is not in its vocabulary. For each row of the output, a table
says which inputs it is computed from: one of them, the mean of several, or none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mergeloom.engine.base.grains import Access, Grains
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.kernel import Array, GrainSum, GrainView, Kernel, Statistic, Use
from mergeloom.engine.graph.sums import GrainSums
from mergeloom.methods.ops.interface import Numbers, elements_of, to_numpy

Shape = tuple[int, ...]


@dataclass(frozen=True)
class FillRows(Kernel):
    """Row r is the mean of the inputs j for which byte (r, j) of the side table is 1.

    A single input is copied bit for bit; a row without inputs is zero. The last ``padding`` rows
    are the mean of all rows before them, regardless of the table. The table has shape (rows,
    inputs) and defines the number of rows; the inputs may be vectors.
    """

    padding: int = 0
    access = Access.ROWWISE
    version = 2
    uses = (Use("mean_rows"),)
    uses_float64 = True

    def output_shape(self, inputs: Sequence[Shape], side: Sequence[Shape]) -> Shape:
        shape = super().output_shape(inputs, ())
        ((rows, columns),) = side
        width = math.prod(shape) // max(rows, 1)
        if columns != len(inputs) or rows * width != math.prod(shape) or shape[-1] % max(width, 1):
            raise ValueError(f"{len(inputs)} inputs {shape} and a table {side[0]} do not fit")
        if not 0 <= self.padding < max(rows, 1):
            raise ValueError(f"of {rows} rows {self.padding} cannot be padding")
        return shape

    @property
    def passes(self) -> tuple[Statistic[Any, Any], ...]:
        return (MeanRow(self.padding),) if self.padding else ()

    def apply(
        self, grain: GrainView, out: Array, statistics: Sequence[Any], prefix: tuple[int, ...]
    ) -> None:
        rows = _fill(grain, out)
        if self.padding:
            grain.ops.repeat(
                grain.ops.from_numpy(statistics[0]), rows.before_padding(self.padding), out
            )


@dataclass(frozen=True)
class MeanRow(GrainSum[Any]):
    """The mean of all rows but the last ``padding``: float32 numpy array (row length)."""

    padding: int
    scratch = 1
    uses = (Use("mean_rows"), Use("column_sums"))

    def accumulator_bytes(self, grains: Grains) -> int:
        return (2 * grains.count.bit_length() + 3) * grains.row * 8

    def update(self, into: GrainSums, grain: GrainView, earlier: Sequence[Any]) -> None:
        filled = grain.take()
        rows = _fill(grain, filled)
        count = rows.before_padding(self.padding)
        into.add(grain.index, _RowSum(grain.ops.column_sums(filled, count, rows.width), count))

    def finalize(self, total: GrainSums, earlier: Sequence[Any]) -> Any:
        return (to_numpy(total.total.sums) / total.total.count).astype("float32")


@dataclass(frozen=True, slots=True)
class _RowSum:
    """The sum (row length) of ``count`` rows: float64."""

    sums: Numbers
    count: int

    def __add__(self, other: _RowSum) -> _RowSum:
        return _RowSum(self.sums + other.sums, self.count + other.count)

    def cpu(self) -> _RowSum:
        return _RowSum(to_numpy(self.sums), self.count)


@dataclass(frozen=True, slots=True)
class _GrainRows:
    """The rows of a grain: ``count`` rows of ``width`` elements from row ``first`` on, out of
    ``total`` rows of the tensor."""

    total: int
    first: int
    count: int
    width: int

    def before_padding(self, padding: int) -> int:
        """Number of these rows before the padding."""
        return max(0, min(self.count, self.total - padding - self.first))


def _fill(grain: GrainView, out: Array) -> _GrainRows:
    """Write the rows described by the side table."""
    inputs, (table,) = list(grain.inputs), grain.side
    total = elements_of(table) // len(inputs)
    width = math.prod(grain.whole_shape) // total
    rows = _GrainRows(total, grain.start // width, grain.count // width, width)
    grain.ops.mean_rows(inputs, table, width, rows.first, out)
    return rows
