"""Completes a table of a model with rows for tokens that it lacks.

    the model's rows in their new order, with missing rows as holes ─► input ──┐
    tables that the way compares, read in blocks                    ─► tables ─► GraftRows ─► table
    its other side inputs, complete                                 ─► side ───┘

A `Way` computes the missing rows.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from mergeloom.engine.base.grains import Access, Grains
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.kernel import Array, GrainSum, GrainView, Kernel, Statistic, Use
from mergeloom.engine.graph.sums import GrainSums

if TYPE_CHECKING:
    from mergeloom.methods.ops.tables import Doubles, Numbers, Singles

Shape = tuple[int, ...]

OWN, PADDING = -1, -2
"""RowKinds of rows: the model's own, and rows of no token, which get the mean of its own rows."""


class Way(Protocol):
    """Computes missing rows; immutable, with a complete ``repr``."""

    @property
    def uses(self) -> tuple[Use, ...]:
        """The operations it uses; see `Kernel.uses`."""

    @property
    def needs_moments(self) -> bool:
        """Whether it needs `Moments`."""

    @property
    def passes(self) -> tuple[Statistic[Any, Any], ...]:
        """The statistics it needs before it can compute rows, apart from moments."""

    def check(self, width: int, side: Sequence[Shape]) -> None:
        """Check that the shapes of side inputs and tables fit rows of ``width``.

        Raises:
            ValueError: they do not.
        """

    def operations(self) -> float:
        """Number of multiplications for one missing row."""

    @property
    def batch(self) -> int:
        """Number of rows computed at once."""

    def workspace_bytes(self, width: int) -> int:
        """Bytes of memory for computing a batch of rows."""

    def table_reads(self, batches: int, evaluations: int) -> tuple[int, ...]:
        """How many times each table is read; see `Kernel.table_reads`. All rows are computed
        ``evaluations`` times, in ``batches`` batches altogether."""

    def rows(self, grain: GrainView, missing: Numbers, known: Sequence[Any]) -> Singles:
        """The rows of some ``missing`` tokens: float32 (missing, width).

        ``known`` has the results of the moments, if it needs them, and of its passes.
        """


@dataclass(frozen=True, repr=False)
class RowKinds:
    """The kind of each row of a table: `OWN`, `PADDING`, or the number of a missing token.

    ``content`` are these numbers, int32.
    """

    content: bytes

    @staticmethod
    def of(kinds: array[int]) -> RowKinds:
        return RowKinds(kinds.tobytes())

    def __repr__(self) -> str:
        return f"RowKinds({hashlib.blake2b(self.content, digest_size=16).hexdigest()})"

    def __len__(self) -> int:
        return len(self.content) // 4

    def missing(self, rows: int) -> list[int]:
        """The number of missing tokens in each group of ``rows`` rows."""
        kinds = array("i")
        kinds.frombytes(self.content)
        starts = range(0, len(kinds), rows)
        return [sum(kind >= 0 for kind in kinds[start : start + rows]) for start in starts]

    def rows(self, grain: GrainView) -> Numbers:
        """The kinds of the rows of a grain."""
        import numpy as np

        first = grain.start // grain.shape[1]
        return np.frombuffer(self.content, np.int32)[first : first + grain.shape[0]]


@dataclass(frozen=True)
class GraftRows(Kernel):
    """Row r is the input row if its kind is `OWN`, the mean of all such rows if it is `PADDING`,
    and otherwise the row that ``way`` computes for the missing token of that number.

    ``share`` is the fraction of missing rows, ``width`` the length of a row; both are for estimates
    of time.
    """

    way: Way
    kinds: RowKinds
    share: float
    width: int
    padding: bool = False
    version = 2
    access = Access.ROWWISE
    is_aligned = False
    uses_float64 = True

    def output_shape(self, inputs: Sequence[Shape], side: Sequence[Shape]) -> Shape:
        shape = super().output_shape(inputs, ())
        if shape != (len(self.kinds), self.width):
            raise ValueError(f"a table {inputs} is not one of {len(self.kinds)} rows")
        self.way.check(self.width, side)
        return shape

    @property
    def uses(self) -> tuple[Use, ...]:
        return (Use("copy"), Use("put_rows"), *self.way.uses)

    @property
    def passes(self) -> tuple[Statistic[Any, Any], ...]:
        moments = (Moments(self.kinds),) if self._needs_moments else ()
        return (*moments, *self.way.passes)

    @property
    def cost(self) -> float:
        return 0.5 + self.share * self.way.operations() / self.width / 20.0

    def workspace_bytes(self, grains: Grains) -> int:
        rows = grains.size // self.width
        made = 8 * self.way.batch * self.width
        return self.way.workspace_bytes(self.width) + made + 32 * rows

    def table_reads(self, grains: Grains, evaluations: int) -> tuple[int, ...]:
        missing, batch = self.kinds.missing(grains.size // self.width), self.way.batch
        batches = sum(-(-count // batch) for count in missing)
        return self.way.table_reads(evaluations * batches, evaluations)

    @property
    def _needs_moments(self) -> bool:
        return self.padding or self.way.needs_moments

    def apply(
        self, grain: GrainView, out: Array, statistics: Sequence[Any], prefix: tuple[int, ...]
    ) -> None:
        import numpy as np

        ops, width = grain.ops, grain.shape[1]
        ops.copy(grain.inputs[0], out)
        kinds = self.kinds.rows(grain)
        if self.padding:
            places = np.flatnonzero(kinds == PADDING)
            mean = np.broadcast_to(statistics[0].mean.astype(np.float32), (len(places), width))
            ops.put_rows(out, places, mean)
        places = np.flatnonzero(kinds >= 0)
        known = statistics[int(self._needs_moments and not self.way.needs_moments) :]
        for start in range(0, len(places), self.way.batch):
            some = places[start : start + self.way.batch]
            missing = np.ascontiguousarray(kinds[some])
            ops.put_rows(out, some, self.way.rows(grain, missing, known))


@dataclass(frozen=True, slots=True)
class ColumnMoments:
    """Mean and standard deviation of each column of a table, in float64."""

    mean: Doubles
    deviation: Doubles


@dataclass(frozen=True)
class Moments(GrainSum[ColumnMoments]):
    """Computes the moments of a table's own rows."""

    kinds: RowKinds

    @property
    def uses(self) -> tuple[Use, ...]:
        return (Use("rows_of"),)

    def accumulator_bytes(self, grains: Grains) -> int:
        return (2 * grains.count.bit_length() + 2) * (2 * grains.row + 1) * 8

    def workspace_bytes(self, grains: Grains) -> int:
        return 28 * grains.size

    def update(self, into: GrainSums, grain: GrainView, earlier: Sequence[Any]) -> None:
        import numpy as np

        own = self.kinds.rows(grain) == OWN
        values = grain.ops.rows_of(grain.inputs[0], grain.shape[1]).astype(np.float64)
        values[~own] = 0.0
        count = np.array([float(own.sum())])
        into.add(grain.index, np.concatenate([count, values.sum(0), np.square(values).sum(0)]))

    def finalize(self, total: GrainSums, earlier: Sequence[Any]) -> ColumnMoments:
        import numpy as np

        count, sums = max(total.total[0], 1.0), total.total[1:].reshape(2, -1)
        mean = sums[0] / count
        return ColumnMoments(mean, np.sqrt(np.maximum(sums[1] / count - mean**2, 0.0)))
