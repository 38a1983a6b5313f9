"""Linear combinations with coefficients of their own for every row, or for every column.

Rows are vectors along the last dimension: their dot products are taken where they are needed.
Vectors along the first dimension cross all grains, so theirs are a statistic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergeloom.engine.base.grains import GRAIN_ELEMENTS, Access, Grains
from mergeloom.engine.graph.kernel import GrainSum, GrainView, Kernel, Statistic
from mergeloom.engine.graph.sums import GrainSums
from mergeloom.methods.kernels.linear_combination import Rule
from mergeloom.methods.ops.torch_transfer import beside
from mergeloom.methods.ops.vectors import Source, vectors_of

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 1 << 15
"""Elements that are converted to float64 at once, so that they stay in the nearest cache."""


@dataclass(frozen=True)
class RowCombination(Kernel):
    """Σ cᵢ vᵢ for each row, with coefficients from a rule; on the base if there is one.

    A 0-d tensor is one row of one element.
    """

    rule: Rule
    positions: tuple[int, ...]
    base: int | None = None
    access = Access.ROWWISE
    double = True

    @property
    def source(self) -> Source:
        """The vectors that are combined."""
        return vectors_of(self.positions, self.base)

    @property
    def scratch(self) -> int:
        return len(self.positions)

    @property
    def cost(self) -> float:
        return 0.3 * len(self.positions) + 0.4

    def workspace_bytes(self, grains: Grains, looped: bool) -> int:
        return gram_bytes(len(self.positions), grains.row)

    def combine(
        self, grain: GrainView, out: Tensor, statistics: Sequence[Any], before: tuple[int, ...]
    ) -> None:
        count = len(self.positions)
        vectors = [self.source.read(i, grain, grain.take()) for i in range(count)]
        # Rows are taken by themselves, so more of them at once change nothing.
        gram = gram_of(vectors, dim=-1, at_once=GRAIN_ELEMENTS if grain.on_device else CHUNK)
        coefficients = self.rule.coefficients(gram).float().unsqueeze(-1)
        _weigh(vectors, coefficients, out)
        if self.base is not None:
            out.add_(grain.inputs[self.base])


@dataclass(frozen=True)
class ColumnGram(GrainSum["Tensor"]):
    """Coefficients (m, columns) from the dot products of vectors along the first dimension.

    ``shape`` is the tensor's; one column is one index into all dimensions but the first.
    """

    rule: Rule
    source: Source
    shape: tuple[int, ...]

    @property
    def _values(self) -> int:
        return self.source.count**2 * math.prod(self.shape[1:])

    @property
    def scratch(self) -> int:
        return self.source.count * (1 + self.source.scratch)

    def accumulator_bytes(self, grains: Grains, looped: bool) -> int:
        kept = 2 * (grains.count + 2).bit_length()
        selected = 0 if len(self.shape) == 2 else 4 * self.source.count * GRAIN_ELEMENTS
        return 8 * self._values * (kept + 4) + gram_bytes(self.source.count, grains.row) + selected

    def update(self, into: GrainSums, grain: GrainView, earlier: Sequence[Any]) -> None:
        import torch

        count = self.source.count
        vectors = [self.source.read(i, grain, grain.take()) for i in range(count)]
        if len(self.shape) <= 2:
            into.add(grain.index, gram_of(vectors, dim=0))
            return
        device = vectors[0].device
        gram = torch.zeros(count, count, *self.shape[1:], dtype=torch.float64, device=device)
        gram = gram.view(count, count, -1, self.shape[-1])
        # Rows of one place are evenly spaced: nothing has to be looked for, on no device.
        middle = gram.shape[2]
        first = grain.start // vectors[0].shape[1] % middle
        for place in range(middle):
            chosen = [vector[(place - first) % middle :: middle] for vector in vectors]
            if chosen[0].shape[0]:
                gram[:, :, place] = gram_of(chosen, dim=0)
        into.add(grain.index, gram)

    def finish(self, total: GrainSums, earlier: Sequence[Any]) -> Tensor:
        count = self.source.count
        gram: Tensor = total.total
        coefficients = self.rule.coefficients(gram.view(count, count, -1))
        return coefficients.float().view(count, -1, self.shape[-1])


@dataclass(frozen=True)
class ColumnCombination(Kernel):
    """Σ cᵢ vᵢ for each vector along the first dimension; on the base if there is one."""

    rule: Rule
    positions: tuple[int, ...]
    shape: tuple[int, ...]
    base: int | None = None
    access = Access.ROWWISE
    cost = 0.9

    @property
    def source(self) -> Source:
        """The vectors that are combined."""
        return vectors_of(self.positions, self.base)

    @property
    def passes(self) -> tuple[Statistic[Any, Any], ...]:
        return (ColumnGram(self.rule, self.source, self.shape),)

    @property
    def scratch(self) -> int:
        return len(self.positions)

    def workspace_bytes(self, grains: Grains, looped: bool) -> int:
        vectors = len(self.positions) + 2
        return 0 if len(self.shape) == 2 else 8 * grains.size * vectors

    def combine(
        self, grain: GrainView, out: Tensor, statistics: Sequence[Any], before: tuple[int, ...]
    ) -> None:
        count = len(self.positions)
        vectors = [self.source.read(i, grain, grain.take()) for i in range(count)]
        coefficients = beside(statistics[0], out)
        places = row_places(grain, self.shape)
        if places is not None:
            coefficients = coefficients.index_select(1, places)
        _weigh(vectors, coefficients, out)
        if self.base is not None:
            out.add_(grain.inputs[self.base])


def gram_of(vectors: Sequence[Tensor], dim: int, at_once: int = CHUNK) -> Tensor:
    """Dot products (m, m, k), float64, of m float32 matrices: of rows (-1) or of columns (0).

    ``at_once`` elements are converted to float64 at once.
    """
    import torch

    count, (rows, row) = len(vectors), vectors[0].shape
    device = vectors[0].device
    gram = torch.zeros(count, count, rows if dim else row, dtype=torch.float64, device=device)
    step = chunk_rows(row, at_once)
    for start in range(0, rows, step):
        chunk = slice(start, start + step)
        parts = [vector[chunk].double() for vector in vectors]
        for i in range(count):
            for j in range(i + 1):
                sums = (parts[i] * parts[j]).sum(dim)
                if dim:
                    gram[i, j, chunk] = gram[j, i, chunk] = sums
                else:
                    gram[i, j] += sums
    if not dim:
        for i in range(count):
            for j in range(i):
                gram[j, i] = gram[i, j]
    return gram


def chunk_rows(row: int, at_once: int = CHUNK) -> int:
    """Rows that are converted to float64 at once."""
    return max(1, at_once // max(row, 1))


def chunk_bytes(count: int, row: int) -> int:
    """Bytes of ``count`` float64 tensors of so many rows, and of a number for each of the rows."""
    return 8 * (count + 1) * max(row, CHUNK)


def gram_bytes(count: int, row: int) -> int:
    """Bytes that `gram_of` allocates for a moment, the result and a rule's work included."""
    rows = max(1, GRAIN_ELEMENTS // max(row, 1))
    return 8 * (count + 2) * max(row, CHUNK) + 32 * count**2 * rows


def row_places(grain: GrainView, shape: tuple[int, ...]) -> Tensor | None:
    """Which middle index every row of the grain has; ``None`` in a matrix, which has none."""
    import torch

    if len(shape) <= 2:
        return None
    rows, row = grain.inputs[0].shape
    first = grain.start // row
    places = torch.arange(first, first + rows, device=grain.inputs[0].device)
    return places % math.prod(shape[1:-1])


def _weigh(vectors: Sequence[Tensor], coefficients: Tensor, out: Tensor) -> None:
    import torch

    torch.mul(vectors[0], coefficients[0], out=out)
    for vector, coefficient in zip(vectors[1:], coefficients[1:], strict=True):
        out.addcmul_(vector, coefficient)
