"""The values that codes and scales stand for."""

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


@dataclass(frozen=True, slots=True)
class Scale:
    """One scale for each block of ``rows`` times ``columns`` elements of a matrix.

    0 means all of that dimension. The last blocks of a dimension may be ragged. Each matrix of a
    stack has its own scales, unless there is but one for everything. If ``inverse``, values are
    divided by it.
    """

    rows: int = 0
    columns: int = 0
    inverse: bool = False

    def grid(self, shape: Shape) -> tuple[int, int, int]:
        """Matrices, and rows and columns of blocks in each, of a tensor of ``shape``."""
        *stack, rows, columns = (1, 1, *shape)
        return (
            math.prod(stack),
            -(-rows // self.rows) if self.rows else 1,
            -(-columns // self.columns) if self.columns else 1,
        )


@dataclass(frozen=True)
class Dequantise(Kernel):
    """(code - zero) · scale · scale · …, or the entry of ``table`` for a code times the scales.

    Beside the codes lie a tensor for each of ``scales`` and, if ``points``, one of zero points in
    the blocks of the first scale, which are subtracted as well as ``zero``.
    """

    scales: tuple[Scale, ...]
    zero: float = 0.0
    table: tuple[float, ...] | None = None
    points: bool = False
    access = Access.ROWWISE
    integers = True
    double = False

    def output_shape(self, inputs: Sequence[Shape], side: Sequence[Shape]) -> Shape:
        (codes,) = inputs
        blocks = [*self.scales, *self.scales[: self.points]]
        if len(side) != len(blocks):
            raise ValueError(f"{len(blocks)} tensors of scales are expected, here are {len(side)}")
        for block, found in zip(blocks, side, strict=True):
            wanted = block.grid(codes)
            if math.prod(found) not in (1, math.prod(wanted)):
                raise ValueError(
                    f"codes {codes} need {wanted[0]}x{wanted[1]}x{wanted[2]} scales, "
                    f"here are {found}"
                )
        return codes

    @property
    def cost(self) -> float:
        return 0.5 + 0.5 * len(self.scales) + (2.0 if self.table else 0.0)

    def workspace_bytes(self, grains: Grains) -> int:
        """Scales of a grain's rows, numbers of the rows, and indices into the table."""
        rows = grains.size // grains.row
        least = min((scale.columns or grains.row for scale in self.scales), default=grains.row)
        scales = 3 * 4 * rows * -(-grains.row // least)
        return scales + 32 * rows + (8 * _CHUNK if self.table else 0)

    def apply(
        self, grain: GrainView, out: Tensor, statistics: Sequence[Any], before: tuple[int, ...]
    ) -> None:
        import torch

        codes = grain.inputs[0]
        if self.table is None:
            torch.sub(codes, self.zero, out=out)
        else:
            table = torch.tensor(self.table, dtype=torch.float32, device=out.device)
            numbers, values = codes.view(-1), out.view(-1)
            for start in range(0, len(values), _CHUNK):
                part = slice(start, start + _CHUNK)
                torch.index_select(table, 0, numbers[part].int(), out=values[part])
        if self.points:
            blocks = _of_rows(self.scales[0], grain, grain.side[-1])
            for into, each in _blocks(self.scales[0], out, blocks):
                into.sub_(each)
        for scale, side in zip(self.scales, grain.side, strict=False):
            for into, each in _blocks(scale, out, _of_rows(scale, grain, side)):
                if scale.inverse:
                    into.div_(each)
                else:
                    into.mul_(each)


_CHUNK = 1 << 16


def _of_rows(scale: Scale, grain: GrainView, side: Tensor) -> Tensor:
    """The scales of each row of a grain: (rows, blocks in a row), or (1, 1)."""
    import torch

    if side.numel() == 1:
        return side.reshape(1, 1).float()
    stack, down, across = scale.grid(grain.whole)
    rows, height = grain.shape[0], math.prod(grain.whole[:-1]) // stack
    first = grain.start // grain.shape[1]
    number = torch.arange(first, first + rows, device=side.device)
    matrix, inside = number // height, number % height
    index = matrix * down + (inside // scale.rows if scale.rows else 0)
    return side.reshape(stack * down, across)[index].float()


def _blocks(scale: Scale, out: Tensor, of_rows: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Values and their scales, ready to be multiplied: whole blocks, and the ragged last one."""
    rows, row = out.shape
    if of_rows.shape[1] == 1:
        return [(out, of_rows)]
    whole = row // scale.columns
    end = whole * scale.columns
    found = []
    if whole:
        blocks = out[:, :end].view(rows, whole, scale.columns)
        found.append((blocks, of_rows[:, :whole].unsqueeze(-1)))
    if end < row:
        found.append((out[:, end:], of_rows[:, whole:]))
    return found
