"""Detects under-trained tokens by their rows.

S. Land, M. Bartolo, Fishing for Magikarp: Automatically Detecting Under-trained Tokens in Large
Language Models, 2024, arXiv:2405.05417: rows that were rarely updated are short, or have the
direction of rows of tokens that never occur.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mergeloom.engine.base.grains import Grains
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.kernel import GrainView, Statistic, Table, Use

if TYPE_CHECKING:
    from mergeloom.methods.ops.tables import Doubles

QUANTILE = 0.01
"""Fraction of rows that count as under-trained: the shortest, and those most similar to unused
ones."""
MIN_COSINE = 0.5
"""Minimum cosine at which a row counts as similar to unused ones."""
_ROWS = 512
"""Number of rows read at once."""


@dataclass(frozen=True)
class WellTrained(Statistic[list[Any], Any]):
    """A byte for each of ``atoms``: 1 if it and its twin are well trained.

    With ``lengths``, the shortest rows count as under-trained: for embeddings of a model with a
    separate head. The tables after targets, atoms and twins are the rows of tokens that never
    occur, if any: (``unused``, ``width``) of the donor and (``unused_twins``, ``twin_width``) of
    the model.
    """

    atoms: int
    width: int
    twin_width: int
    lengths: tuple[bool, bool]
    unused: int
    unused_twins: int

    @property
    def uses(self) -> tuple[Use, ...]:
        return (Use("read_rows"),)

    def accumulator_bytes(self, grains: Grains) -> int:
        return 2 * self.atoms

    def workspace_bytes(self, grains: Grains) -> int:
        return 24 * _ROWS * max(self.width, self.twin_width) + 64 * self.atoms

    @property
    def unused_table_reads(self) -> tuple[int, ...]:
        """How many times each of the existing tables of unused tokens is read."""
        return (1,) * (bool(self.unused) + bool(self.unused_twins))

    def init(self) -> list[Any]:
        return []

    def update(self, into: list[Any], grain: GrainView, earlier: Sequence[Any]) -> None:
        import numpy as np

        if grain.index:  # the first grain reads the tables
            return
        atoms, twins, *others = grain.tables[1:]
        unused = others.pop(0) if self.unused else None
        unused_twins = others.pop(0) if self.unused_twins else None
        good = self._well_trained_rows(grain, atoms, unused, self.unused, self.lengths[0])
        good &= self._well_trained_rows(
            grain, twins, unused_twins, self.unused_twins, self.lengths[1]
        )
        into.append(good.astype(np.uint8))

    def combine(self, into: list[Any], other: list[Any]) -> None:
        into.extend(other)

    def finalize(self, total: list[Any], earlier: Sequence[Any]) -> Any:
        return total[0]

    def _well_trained_rows(
        self, grain: GrainView, table: Table, unused: Table | None, count: int, lengths: bool
    ) -> Any:
        import numpy as np

        squares, along = np.empty(self.atoms), np.zeros(self.atoms)
        direction = None if unused is None else _mean(grain, unused, count)
        for first in range(0, self.atoms, _ROWS):
            number = min(_ROWS, self.atoms - first)
            rows = grain.ops.read_rows(table, first, number).astype(np.float64)
            squares[first : first + number] = np.square(rows).sum(1)
            if direction is not None:
                along[first : first + number] = (rows * direction).sum(1)
        good: Any = squares > 0.0
        norms = np.sqrt(squares)
        if lengths:
            good &= norms >= np.quantile(norms, QUANTILE)
        if direction is not None:
            length = np.sqrt(np.square(direction).sum())
            cosines = along / np.maximum(norms * length, 1e-300)
            good &= cosines <= max(np.quantile(cosines, 1.0 - QUANTILE), MIN_COSINE)
        return good


def _mean(grain: GrainView, table: Table, count: int) -> Doubles:
    import numpy as np

    total = np.zeros(table.width)
    for first in range(0, count, _ROWS):
        rows = grain.ops.read_rows(table, first, min(_ROWS, count - first))
        total += rows.astype(np.float64).sum(0)
    return np.asarray(total / count)
