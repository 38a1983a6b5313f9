"""The words for rows of tables that stand for others: what both arithmetics say of them.

A *table* is a matrix that lies whole beside the inputs of a merge. Rows of one table, the
*targets*, are looked for among those of another, the *atoms*, of the same width.
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
"""Targets that are looked for at once. Enough to read the atoms seldom."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of ``width`` elements, as they are stored, in an array of the arithmetic at hand."""

    array: Any
    width: int


class TableOps(Protocol):
    """What kernels ask of arithmetic about tables. Numbers of rows, flags, coefficients and what is
    returned are arrays of numpy in main memory; ``usable`` (a byte an atom) says which atoms may be
    taken, all without it."""

    def pursue(
        self, targets: Table, rows: Numbers, atoms: Table, usable: Flags | None, most: int
    ) -> tuple[Numbers, Doubles]:
        """Up to ``most`` atoms for each of some ``rows`` of the targets, and their coefficients.

        Orthogonal matching pursuit (Pati, Rezaiifar, Krishnaprasad 1993): again and again the atom
        is taken whose product with what is left of the target is largest, and the target is fitted
        anew to all atoms that were taken, by least squares. Coefficients are 0 where there are
        fewer. Both are (rows, most).
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
        """The ``most`` nearest atoms of each of some ``rows`` of the targets, nearest first.

        By distance or, with ``cosine``, by angle. The second array grows with nearness, and is
        -inf where there are fewer. Both are (rows, most).
        """

    def products_of_rows(
        self, targets: Table, rows: Numbers, atoms: Table, numbers: Numbers
    ) -> Doubles:
        """The dot products of each target and its atoms ``numbers`` with each other.

        (rows, 1 + most, 1 + most), the target first.
        """

    def mix_rows(self, atoms: Table, numbers: Numbers, coefficients: Doubles) -> Singles:
        """The sums of atoms ``numbers`` times coefficients, added up in float64: (rows, width)."""

    def read_rows(self, table: Table, first: int, count: int) -> Singles:
        """Rows of a table from ``first`` on."""

    def numbers_of(self, array: Any) -> Any:
        """The elements of an array as they are stored, in main memory: int32, float64 or uint8."""

    def put_rows(self, out: Any, places: Numbers, values: Singles) -> None:
        """Write rows to their places in ``out``, an array of rows as long."""
