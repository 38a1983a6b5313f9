"""Rows that a model lacks, from the rows of others.

A token that only some of the vocabularies have gives the others nothing to read. For each row of
the output a table says which inputs make it: one of them, the mean of several, or none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergeloom.engine.base.grains import Access, Grains
from mergeloom.engine.graph.kernel import GrainSum, GrainView, Kernel, Statistic
from mergeloom.engine.graph.sums import GrainSums

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class FillRows(Kernel):
    """Row r is the mean of the inputs j for which byte (r, j) of the table beside them is 1.

    One input alone is taken bit for bit; without any the row is zero. The last ``padding`` rows
    are the mean of all rows before them, whatever the table says of them. The table (rows, inputs)
    tells how many rows there are; the inputs may be vectors.
    """

    padding: int = 0
    access = Access.ROWWISE
    cost = 1.0

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

    def workspace_bytes(self, grains: Grains) -> int:
        """Rows of several inputs in float64: the sum, and one that is added to it."""
        return 24 * grains.size

    def apply(
        self, grain: GrainView, out: Tensor, statistics: Sequence[Any], before: tuple[int, ...]
    ) -> None:
        rows = fill(grain, out)
        if self.padding:
            rows[_before_padding(grain, rows, self.padding) :] = statistics[0].to(out.device)


@dataclass(frozen=True)
class MeanRow(GrainSum["Tensor"]):
    """The mean of all rows but the last ``padding``: (elements of a row), in float64."""

    padding: int
    scratch = 1

    def accumulator_bytes(self, grains: Grains) -> int:
        return (2 * grains.count.bit_length() + 2) * grains.row * 8

    def workspace_bytes(self, grains: Grains) -> int:
        return 24 * grains.size

    def update(self, into: GrainSums, grain: GrainView, earlier: Sequence[Any]) -> None:
        import torch

        rows = fill(grain, grain.take())
        end = _before_padding(grain, rows, self.padding)
        into.add(grain.index, _Rows(rows[:end].sum(0, dtype=torch.float64), end))

    def finalize(self, total: GrainSums, earlier: Sequence[Any]) -> Any:
        return (total.total.sums / total.total.count).float()


@dataclass(frozen=True, slots=True)
class _Rows:
    """The sums (elements of a row) of ``count`` rows."""

    sums: Tensor
    count: int

    def __add__(self, other: _Rows) -> _Rows:
        return _Rows(self.sums + other.sums, self.count + other.count)

    def cpu(self) -> _Rows:
        return _Rows(self.sums.cpu(), self.count)


def fill(grain: GrainView, out: Tensor) -> Tensor:
    """Write the rows that the table describes to ``out``; returns it as (rows, row)."""
    import torch

    table = grain.side[0]
    width = math.prod(grain.whole) // table.shape[0]
    filled = out.view(-1, width)
    first = grain.start // width
    chosen = table[first : first + len(filled)].bool()
    count = chosen.sum(1)
    if bool((count == 1).all()) and bool((chosen == chosen[0]).all()):
        return filled.copy_(grain.inputs[int(chosen[0].nonzero())].reshape(filled.shape))
    filled.zero_()
    several = (count > 1).nonzero().view(-1)
    total = torch.zeros(len(several), width, dtype=torch.float64, device=out.device)
    for number in range(table.shape[1]):
        rows = grain.inputs[number].reshape(filled.shape)
        alone = (chosen[:, number] & (count == 1)).nonzero().view(-1)
        filled.index_copy_(0, alone, rows.index_select(0, alone))
        added = chosen[several, number].nonzero().view(-1)
        total.index_add_(0, added, rows.index_select(0, several[added]).double())
    filled.index_copy_(0, several, (total / count[several].unsqueeze(1)).float())
    return filled


def _before_padding(grain: GrainView, rows: Tensor, padding: int) -> int:
    """How many of a grain's rows come before the padding."""
    first = grain.start // rows.shape[1]
    return max(0, min(len(rows), len(grain.side[0]) - padding - first))
