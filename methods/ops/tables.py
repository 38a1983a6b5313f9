"""Table operations of arithmetic: find, compare and mix rows of whole tables.

A *table* (`engine.graph.kernel.Table`) is a matrix beside the inputs of a merge, read in blocks.
Rows of one table, the *targets*, are approximated by rows of another, the *atoms*, of the same
width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from mergeloom.engine.graph.kernel import Table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.int32]
    Doubles = NDArray[np.float64]
    Flags = NDArray[np.uint8]
    Singles = NDArray[np.float32]

MAX_TARGETS = 256
"""Maximum number of targets per batch; with that many, atoms are read only a few times."""
_BATCH_BYTES = 64 << 20
"""Approximate bytes of working memory for one batch."""


def batch_size(bytes_each: int) -> int:
    """Number of targets per batch, for ``bytes_each`` bytes each; no result depends on it."""
    return max(min(_BATCH_BYTES // max(bytes_each, 1), MAX_TARGETS), 2)


class TableOps(Protocol):
    """Table operations. Targets, row numbers, flags, coefficients and results are numpy arrays in
    main memory. ``usable`` (one byte per atom) says which atoms may be chosen; ``None`` means all.
    Each operation reads a table once, from its first row to its last, unless it says otherwise."""

    def pursue(
        self, targets: Singles, atoms: Table, usable: Flags | None, max_atoms: int
    ) -> tuple[Numbers, Doubles]:
        """Choose up to ``max_atoms`` atoms for each target (count, width), with coefficients.

        Reads the atoms ``max_atoms`` times.

        Orthogonal matching pursuit (Pati, Rezaiifar, Krishnaprasad 1993): each step chooses the
        atom whose dot product with the residual is largest, and fits the target to all chosen
        atoms by least squares. Coefficients are 0 if fewer are chosen. Both results are (count,
        max_atoms).
        """

    def neighbours(
        self, targets: Singles, atoms: Table, usable: Flags | None, max_atoms: int, cosine: bool
    ) -> tuple[Numbers, Doubles]:
        """The ``max_atoms`` nearest atoms of each of the targets (count, width), nearest first.

        By distance or, with ``cosine``, by angle. The second array grows with nearness, and is
        -inf where there are fewer. Both are (count, max_atoms).
        """

    def products_of_rows(self, targets: Singles, atoms: Table, numbers: Numbers) -> Doubles:
        """The dot products of each target and its atoms ``numbers`` with each other.

        (count, 1 + max_atoms, 1 + max_atoms), the target first.
        """

    def mix_rows(self, atoms: Table, numbers: Numbers, coefficients: Doubles) -> Singles:
        """The sums of atoms ``numbers`` times coefficients: (count, width).

        Terms are added in float64, in the order of blocks.
        """

    def read_rows(self, table: Table, first: int, count: int) -> Singles:
        """Rows of a table from ``first`` on; only these are read."""

    def rows_of(self, array: Any, width: int) -> Singles:
        """All rows, of ``width`` elements, of an array of this arithmetic."""

    def numbers_of(self, array: Any) -> Any:
        """The elements of an int32, float64 or uint8 array, in main memory."""

    def put_rows(self, out: Any, places: Numbers, values: Singles) -> None:
        """Write rows to positions ``places`` of ``out``, whose rows have the same length."""
