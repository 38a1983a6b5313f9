"""Table operations of arithmetic: find, compare and mix rows of whole tables.

A *table* is a matrix that is a side input of a merge. Rows of one table, the *targets*, are
approximated by rows of another, the *atoms*, of the same width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from mergeloom.engine.base.records import dataclass

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.int32]
    Doubles = NDArray[np.float64]
    Flags = NDArray[np.uint8]
    Singles = NDArray[np.float32]

BATCH = 256
"""Targets per batch: enough that the atoms are read only a few times."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of ``width`` elements in their stored dtype, in an array of the current arithmetic."""

    array: Any
    width: int


class TableOps(Protocol):
    """Table operations. Row numbers, flags, coefficients and results are numpy arrays in main
    memory. ``usable`` (one byte per atom) says which atoms may be chosen; ``None`` means all."""

    def pursue(
        self, targets: Table, rows: Numbers, atoms: Table, usable: Flags | None, most: int
    ) -> tuple[Numbers, Doubles]:
        """Choose up to ``most`` atoms for each of the targets ``rows``, with coefficients.

        Orthogonal matching pursuit (Pati, Rezaiifar, Krishnaprasad 1993): each step chooses the
        atom whose dot product with the residual is largest, and fits the target to all chosen
        atoms by least squares. Coefficients are 0 if fewer are chosen. Both results are (rows,
        most).
        """

    def neighbours(
        self,
        targets: Table,
        rows: Numbers,
        atoms: Table,
        usable: Flags | None,
        most: int,
        cosine: bool,
    ) -> tuple[Numbers, Doubles]:
        """The ``most`` nearest atoms of each of the targets ``rows``, nearest first.

        Nearest by distance or, with ``cosine``, by angle. The second result is a score that grows
        with nearness, and -inf if there are fewer atoms. Both results are (rows, most).
        """

    def products_of_rows(
        self, targets: Table, rows: Numbers, atoms: Table, numbers: Numbers
    ) -> Doubles:
        """All dot products among each target and its atoms ``numbers``.

        The result is (rows, 1 + most, 1 + most), with the target first.
        """

    def mix_rows(self, atoms: Table, numbers: Numbers, coefficients: Doubles) -> Singles:
        """Σ coefficient · atom for each row of ``numbers``, summed in float64: (rows, width)."""

    def read_rows(self, table: Table, first: int, count: int) -> Singles:
        """``count`` rows of a table from ``first`` on: float32."""

    def numbers_of(self, array: Any) -> Any:
        """The elements of an int32, float64 or uint8 array, in main memory."""

    def put_rows(self, out: Any, places: Numbers, values: Singles) -> None:
        """Write rows to positions ``places`` of ``out``, whose rows have the same length."""
