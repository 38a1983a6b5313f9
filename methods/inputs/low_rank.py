"""W + s·B·A: an adapter added to its weight, tile by tile; the sum is never stored.

E. Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, arXiv:2106.09685.
S.-Y. Liu et al., DoRA: Weight-Decomposed Low-Rank Adaptation, 2024, arXiv:2402.09353, equation 5:
each row of the sum is scaled to the length that the adapter has learnt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergeloom.engine.base.grains import Access, Grains
from mergeloom.engine.graph.kernel import GrainView, Kernel

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LowRank(Kernel):
    """``scale``·B·A added to the one input W, with A (rank, in) and B (out, rank) beside it.

    W is (out, in), or (out, …) with as many elements in a row of the first dimension as A has.
    With ``lengths`` (DoRA) W is a matrix, and a vector (out) of lengths stands beside A and B: row
    r of the result has the direction of row r of the sum, and length r.
    """

    scale: float
    rank: int
    lengths: bool = False
    access = Access.ROWWISE

    def output_shape(self, inputs: Sequence[Shape], side: Sequence[Shape]) -> Shape:
        (weight,) = inputs
        down, up = (math.prod(shape) for shape in side[:2])
        rows = weight[0] if weight else 1
        if self.lengths and (len(weight) != 2 or math.prod(side[2]) != rows):
            raise ValueError(f"a weight {weight} and lengths {side[2]} do not go together")
        if down * rows != math.prod(weight) * self.rank or up != rows * self.rank:
            raise ValueError(
                f"a weight {weight} and matrices {side[0]} and {side[1]} of rank {self.rank} "
                "do not go together"
            )
        return weight

    @property
    def cost(self) -> float:
        return 0.3 + 0.03 * self.rank

    def workspace_bytes(self, grains: Grains) -> int:
        """Both matrices as float32, and the product, where its rows are not those of the grain."""
        rows = grains.size // grains.row
        matrices = self.rank * (grains.total // max(rows, 1) + grains.row + rows)
        return 4 * (matrices + grains.size) + 24 * rows

    def apply(
        self, grain: GrainView, out: Tensor, statistics: Sequence[Any], before: tuple[int, ...]
    ) -> None:
        import torch

        down = grain.side[0].reshape(self.rank, -1).float()
        up = grain.side[1].reshape(-1, self.rank)
        width = down.shape[1]
        first, last = grain.start // width, -(-(grain.start + out.numel()) // width)
        weight, rows = grain.inputs[0], up[first:last].float()
        if out.numel() == (last - first) * width:
            torch.addmm(
                *(weight.view(-1, width), rows, down), alpha=self.scale, out=out.view(-1, width)
            )
            if self.lengths:
                lengths = grain.side[2].reshape(-1)[first:last].double()
                lengths /= torch.linalg.vector_norm(out.view(-1, width), dim=1, dtype=torch.float64)
                out.view(-1, width).mul_(lengths.float().unsqueeze(1))
            return
        inside = grain.start - first * width
        change = (rows @ down).view(-1)[inside : inside + out.numel()]
        torch.add(weight, change.view(out.shape), alpha=self.scale, out=out)
