"""Quantisation: one merge that writes the quantised values of a weight and the scales of its
blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mergeloom.engine.base.dtypes import DType
from mergeloom.engine.base.grains import Access
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.kernel import GrainView, Kernel, Use
from mergeloom.engine.graph.sums import Sums
from mergeloom.methods.ops.interface import Adjustment, Array, Blocks, Scaling, Vector


@dataclass(frozen=True)
class Quantise(Kernel):
    """Divide the one input, a matrix, by the scales of its blocks of (``rows``, ``columns``).

    The float32 result is rounded when it is written. The scales, of type ``scales``, are the second
    result (`Kernel.parts`).

    A block never spans two grains, so that scales do not depend on tiling.
    """

    scaling: Scaling
    rows: int
    columns: int
    scales: DType
    access = Access.ROWWISE
    is_aligned = False
    uses_float64 = False
    lossy = True
    scratch = 1
    uses = (Use("quantise"), Use("adjust"), Use("dots", 2))

    @property
    def row_multiple(self) -> int:
        return self.rows

    @property
    def parts(self) -> tuple[DType, ...]:
        return (self.scales,)

    def apply(
        self, grain: GrainView, out: Array, statistics: Sequence[Any], prefix: tuple[int, ...]
    ) -> None:
        (scales,) = grain.parts
        row = grain.shape[1]
        grain.ops.quantise(
            *(grain.inputs[0], row, self.rows, self.columns, self.scaling, out, scales)
        )

    def loss(self, grain: GrainView, quantised: Array) -> Sums:
        ops, (rows, row), (scales,) = grain.ops, grain.shape, grain.parts
        grid = (1, -(-rows // self.rows), -(-row // self.columns))
        blocks = Blocks(scales, grid, self.rows, self.columns, rows, 0)
        ops.adjust(quantised, blocks, Adjustment.MULTIPLY, row, quantised)
        values = grain.inputs[0]
        error, _, size = ops.dots([Vector(quantised, minus=values), Vector(values)])
        return Sums((error, size))
