"""W + s·B·A: a LoRA adapter added to its weight tile by tile; the sum is never stored.

E. Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, arXiv:2106.09685.
S.-Y. Liu et al., DoRA: Weight-Decomposed Low-Rank Adaptation, 2024, arXiv:2402.09353, equation 5:
each row of the sum is scaled to the length learnt by the adapter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mergeloom.engine.base.grains import Access
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.kernel import Array, GrainView, Kernel, Use
from mergeloom.methods.ops.interface import Factors, Vector

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LowRank(Kernel):
    """W + ``scale``·B·A, with the one input W and the side inputs A (rank, in) and B (out, rank).

    W is (out, in), or (out, …) with ``in`` elements for each index of the first dimension. With
    several ``matrices``, W is that many matrices (out, in) one after another, as of experts, with
    factors A (matrices, rank, in) and B (matrices, out, rank) of their own. With ``lengths``
    (DoRA), W is a matrix and a third side input has the length of each row (out): row r of the
    result has the direction of row r of the sum, and that length.
    """

    scale: float
    rank: int
    lengths: bool = False
    matrices: int = 1
    access = Access.ROWWISE
    version = 2

    def output_shape(self, inputs: Sequence[Shape], side: Sequence[Shape]) -> Shape:
        (weight,) = inputs
        down, up = (math.prod(shape) for shape in side[:2])
        rows = math.prod(weight[:-1]) if self.matrices > 1 else (weight[0] if weight else 1)
        if self.lengths and (len(weight) != 2 or math.prod(side[2]) != rows):
            raise ValueError(f"a weight {weight} and lengths {side[2]} do not match")
        of_all = math.prod(weight) * self.rank * self.matrices
        if down * rows != of_all or up != rows * self.rank or rows % self.matrices:
            raise ValueError(
                f"a weight {weight} and matrices {side[0]} and {side[1]} of rank {self.rank} "
                "do not match"
            )
        return weight

    @property
    def uses(self) -> tuple[Use, ...]:
        added = Use("add_product", self.rank)
        return (added, *map(Use, ("row_dots", "numbers", "combine") if self.lengths else ()))

    @property
    def scratch(self) -> int:
        """One array for the sum before it is scaled."""
        return int(self.lengths)

    @property
    def uses_float64(self) -> bool:
        return self.lengths

    def apply(
        self, grain: GrainView, out: Array, statistics: Sequence[Any], prefix: tuple[int, ...]
    ) -> None:
        ops, into = grain.ops, grain.take() if self.lengths else out
        down, up, *lengths = grain.side
        if self.matrices == 1:
            ops.add_product(grain.inputs[0], down, up, self.rank, grain.start, self.scale, into)
        else:
            self._add_products(grain, down, up, into)
        if lengths:
            rows, row = grain.shape
            found = ops.maths.sqrt(ops.row_dots([Vector(into)], row)[0][0])
            found = ops.maths.where(found > 0, found, math.nan)  # a zero row has no direction
            factors = ops.numbers(lengths[0], grain.start // row, rows) / found
            ops.combine([Vector(into, factors=Factors(ops.to_float32(factors)))], [1.0], out)

    def _add_products(self, grain: GrainView, down: Array, up: Array, out: Array) -> None:
        """Add the product of each matrix to the part of it in this grain."""
        ops, width = grain.ops, grain.whole_shape[-1]
        rows = math.prod(grain.whole_shape[:-1]) // self.matrices
        area, done = rows * width, 0
        while done < grain.count:
            matrix, first = divmod(grain.start + done, area)
            size = min(area - first, grain.count - done)
            factors = (
                ops.part(each, matrix * self.rank * length, self.rank * length)
                for each, length in ((down, width), (up, rows))
            )
            own, into = ops.part(grain.inputs[0], done, size), ops.part(out, done, size)
            ops.add_product(own, *factors, self.rank, first, self.scale, into)
            done += size
