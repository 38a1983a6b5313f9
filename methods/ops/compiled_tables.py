"""`methods.ops.tables.TableOps` by machine code on plain memory."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from mergeloom.engine.graph.kernel import Table
from mergeloom.engine.memory.elements import Elements
from mergeloom.methods.ops.loops.sizes import (
    ElementType,
    mixing_bytes,
    neighbours_bytes,
    pursuit_bytes,
)

if TYPE_CHECKING:
    import numpy as np

    from mergeloom.methods.ops.tables import Doubles, Flags, Numbers, Singles


class CompiledTables:
    """The table operations of `methods.ops.compiled_ops.CompiledOps`."""

    def _call(self, name: str, *arguments: Any, row: int = 0) -> Any:
        raise NotImplementedError

    def pursue(
        self, targets: Singles, atoms: Table, usable: Flags | None, max_atoms: int
    ) -> tuple[Numbers, Doubles]:
        import numpy as np

        count, width = targets.shape
        numbers, coefficients = np.zeros((count, max_atoms), np.int32), np.zeros((count, max_atoms))
        memory = _memory(pursuit_bytes(count, max_atoms, width))
        for turn in range(max_atoms):
            for block in atoms.blocks():
                self._call(
                    *("pursue_scan", turn, _at(targets), count, *_block(block), width),
                    *(_at(usable, block[0]), max_atoms, _at(numbers), _at(memory)),
                )
            self._call(
                *("pursue_fit", turn, _at(targets), count, width, max_atoms),
                *(_at(numbers), _at(coefficients), _at(memory)),
            )
        return numbers, coefficients

    def neighbours(
        self, targets: Singles, atoms: Table, usable: Flags | None, max_atoms: int, cosine: bool
    ) -> tuple[Numbers, Doubles]:
        import numpy as np

        count, width = targets.shape
        numbers, closeness = (
            np.zeros((count, max_atoms), np.int32),
            np.full((count, max_atoms), -np.inf),
        )
        memory = _memory(neighbours_bytes(count, width))
        for block in atoms.blocks():
            self._call(
                *("neighbours_scan", _at(targets), count, *_block(block), width),
                *(_at(usable, block[0]), max_atoms, int(cosine)),
                *(_at(numbers), _at(closeness), _at(memory)),
            )
        return numbers, closeness

    def products_of_rows(self, targets: Singles, atoms: Table, numbers: Numbers) -> Doubles:
        import numpy as np

        count, max_atoms = numbers.shape
        rows = np.empty((count, max_atoms, atoms.width), np.float32)
        for block in atoms.blocks():
            where = *_block(block), atoms.width, _at(numbers), numbers.size
            self._call("gather_scan", *where, _at(rows))
        found = np.empty((count, max_atoms + 1, max_atoms + 1))
        products = _at(targets), count, _at(rows), atoms.width, max_atoms, _at(found)
        self._call("products_of_rows", *products)
        return found

    def mix_rows(self, atoms: Table, numbers: Numbers, coefficients: Doubles) -> Singles:
        import numpy as np

        count, max_atoms = numbers.shape
        memory = np.zeros(mixing_bytes(count, atoms.width) // 8 + 1)
        for block in atoms.blocks():
            self._call(
                *("mix_scan", *_block(block), atoms.width, _at(numbers), _at(coefficients)),
                *(count, max_atoms, _at(memory)),
            )
        sums = memory[: count * atoms.width].reshape(count, atoms.width)
        return sums.astype(np.float32)

    def read_rows(self, table: Table, first: int, count: int) -> Singles:
        import numpy as np

        result = np.empty((count, table.width), np.float32)
        for start, number, array in table.blocks(first, first + count):
            place = _at(result[start - first :])
            self._call("widen", array.address, _kind(array), number * table.width, place)
        return result

    def rows_of(self, array: Elements, width: int) -> Singles:
        import numpy as np

        result = np.empty((array.count // width, width), np.float32)
        self._call("widen", array.address, _kind(array), array.count, _at(result))
        return result

    def numbers_of(self, array: Elements) -> Any:
        import numpy as np

        kind, element = _NUMBERS[array.dtype.code]
        return np.frombuffer((element * array.count).from_address(array.address), kind)

    def put_rows(self, out: Elements, places: Numbers, values: Singles) -> None:
        import numpy as np

        found: Any = (ctypes.c_float * out.count).from_address(out.address)
        np.frombuffer(found, np.float32).reshape(-1, values.shape[1])[places] = values


_NUMBERS: dict[str, tuple[str, Any]] = {
    "I32": ("i4", ctypes.c_int32),
    "F64": ("f8", ctypes.c_double),
    "U8": ("u1", ctypes.c_uint8),
}


def _block(block: tuple[int, int, Elements]) -> tuple[int, int, int, int]:
    """Address and kind of the elements of a block of a table, its first row and their number."""
    first, number, array = block
    return array.address, _kind(array), first, number


def _kind(array: Elements) -> int:
    return ElementType[array.dtype.code]


def _at(array: np.ndarray[Any, Any] | None, first: int = 0) -> int:
    """Address of element ``first`` of a contiguous array; 0 for ``None``."""
    if array is None:
        return 0
    assert array.flags.c_contiguous
    return int(array.ctypes.data) + first * array.itemsize


def _memory(nbytes: int) -> np.ndarray[Any, Any]:
    import numpy as np

    return np.empty(-(-nbytes // 8), np.float64)
