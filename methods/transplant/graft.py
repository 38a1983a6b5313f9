"""A table of a model with rows for tokens that it lacks.

    the model's rows, at their new places, missing ones are holes ─► input ─┐
    for each row: the model's own, padding, or missing token number i ─► side ─► GraftRows ─► table
    what the way of making missing ones needs                         ─► side ─┘

How missing rows are made is a `Way`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from mergeloom.engine.base.grains import Access, Grains
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.kernel import Array, GrainSum, GrainView, Kernel, Statistic, Use
from mergeloom.engine.graph.sums import GrainSums
from mergeloom.methods.ops.tables import BATCH, Table

if TYPE_CHECKING:
    from mergeloom.methods.ops.tables import Doubles, Numbers, Singles

Shape = tuple[int, ...]

OWN, PADDING = -1, -2
"""Rows that are the model's own, and those of no token, which are the mean of its own."""


class Way(Protocol):
    """How missing rows are made; immutable, with a faithful ``repr``.

    ``side`` below is what lies beside the inputs, but for the first, which is the kernel's own.
    """

    @property
    def uses(self) -> tuple[Use, ...]:
        """The words it uses; see `Kernel.uses`."""

    @property
    def moments(self) -> bool:
        """Whether it needs `Moments`."""

    @property
    def passes(self) -> tuple[Statistic[Any, Any], ...]:
        """What it must know before it can make rows, beside moments."""

    def check(self, width: int, side: Sequence[Shape]) -> None:
        """See that the shapes go together with rows of ``width``.

        Raises:
            ValueError: they do not.
        """

    def operations(self) -> float:
        """Multiplications for one missing row."""

    def workspace_bytes(self, width: int) -> int:
        """Memory in bytes that making `BATCH` rows takes."""

    def rows(
        self, grain: GrainView, side: Sequence[Array], missing: Numbers, known: Sequence[Any]
    ) -> Singles:
        """The rows of some ``missing`` tokens; ``known`` are the results of moments, if it needs
        them, and of its passes."""


@dataclass(frozen=True)
class GraftRows(Kernel):
    """Row r is that of the input where the table beside it says `OWN`, the mean of all such rows
    where it says `PADDING`, and else what ``way`` makes of missing token number n.

    ``share`` is the part of rows that are missing, ``width`` the elements of a row: they tell how
    long it takes.
    """

    way: Way
    share: float
    width: int
    padding: bool = False
    access = Access.ROWWISE
    aligned = False
    double = True

    def output_shape(self, inputs: Sequence[Shape], side: Sequence[Shape]) -> Shape:
        shape = super().output_shape(inputs, ())
        if shape[1:] != (self.width,) or not side or side[0] != shape[:1]:
            raise ValueError(f"a table {inputs} and what is beside it, {side}, do not go together")
        self.way.check(self.width, side[1:])
        return shape

    @property
    def uses(self) -> tuple[Use, ...]:
        return (Use("copy"), Use("read_rows"), Use("put_rows"), *self.way.uses)

    @property
    def passes(self) -> tuple[Statistic[Any, Any], ...]:
        moments = (Moments(),) if self._moments else ()
        return (*moments, *self.way.passes)

    @property
    def cost(self) -> float:
        return 0.5 + self.share * self.way.operations() / self.width / 20.0

    def workspace_bytes(self, grains: Grains) -> int:
        rows = grains.size // grains.row
        return self.way.workspace_bytes(grains.row) + 8 * BATCH * grains.row + 32 * rows

    @property
    def _moments(self) -> bool:
        return self.padding or self.way.moments

    def apply(
        self, grain: GrainView, out: Array, statistics: Sequence[Any], before: tuple[int, ...]
    ) -> None:
        import numpy as np

        ops, width = grain.ops, grain.shape[1]
        ops.copy(grain.inputs[0], out)
        kinds = _kinds(grain)
        if self.padding:
            places = np.flatnonzero(kinds == PADDING)
            mean = np.broadcast_to(statistics[0].mean.astype(np.float32), (len(places), width))
            ops.put_rows(out, places, mean)
        places = np.flatnonzero(kinds >= 0)
        known = statistics[int(self._moments and not self.way.moments) :]
        for start in range(0, len(places), BATCH):
            some = places[start : start + BATCH]
            missing = np.ascontiguousarray(kinds[some])
            ops.put_rows(out, some, self.way.rows(grain, grain.side[1:], missing, known))


@dataclass(frozen=True, slots=True)
class ColumnMoments:
    """Mean and standard deviation of each column of a table: float64."""

    mean: Doubles
    deviation: Doubles


@dataclass(frozen=True)
class Moments(GrainSum[ColumnMoments]):
    """Of a table's own rows."""

    @property
    def uses(self) -> tuple[Use, ...]:
        return (Use("read_rows"),)

    def accumulator_bytes(self, grains: Grains) -> int:
        return (2 * grains.count.bit_length() + 2) * (2 * grains.row + 1) * 8

    def workspace_bytes(self, grains: Grains) -> int:
        return 28 * grains.size

    def update(self, into: GrainSums, grain: GrainView, earlier: Sequence[Any]) -> None:
        import numpy as np

        rows, width = grain.shape
        own = _kinds(grain) == OWN
        values = grain.ops.read_rows(Table(grain.inputs[0], width), 0, rows).astype(np.float64)
        values[~own] = 0.0
        count = np.array([float(own.sum())])
        into.add(grain.index, np.concatenate([count, values.sum(0), np.square(values).sum(0)]))

    def finalize(self, total: GrainSums, earlier: Sequence[Any]) -> ColumnMoments:
        import numpy as np

        count, sums = max(total.total[0], 1.0), total.total[1:].reshape(2, -1)
        mean = sums[0] / count
        return ColumnMoments(mean, np.sqrt(np.maximum(sums[1] / count - mean**2, 0.0)))


def _kinds(grain: GrainView) -> Numbers:
    """What the rows of a grain are: `OWN`, `PADDING`, or the number of a missing token."""
    first, rows = grain.start // grain.shape[1], grain.shape[0]
    kinds: Numbers = grain.ops.numbers_of(grain.side[0])[first : first + rows]
    return kinds
