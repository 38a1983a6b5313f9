"""`methods.ops.tables.TableOps` by machine code on plain memory."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from mergeloom.engine.memory.elements import Elements
from mergeloom.methods.ops.loops.sizes import (
    Kind,
    mixing_bytes,
    neighbours_bytes,
    products_bytes,
    pursuit_bytes,
)
from mergeloom.methods.ops.tables import Table

if TYPE_CHECKING:
    import numpy as np

    from mergeloom.methods.ops.tables import Doubles, Flags, Numbers, Singles


class CompiledTables:
    """The table operations of `methods.ops.compiled_ops.CompiledOps`."""

    def _call(self, name: str, *arguments: Any, row: int = 0) -> Any:
        raise NotImplementedError

    def pursue(
        self, targets: Table, rows: Numbers, atoms: Table, usable: Flags | None, most: int
    ) -> tuple[Numbers, Doubles]:
        import numpy as np

        numbers, coefficients = np.empty((len(rows), most), np.int32), np.empty((len(rows), most))
        memory = _memory(pursuit_bytes(len(rows), most, atoms.width))
        self._call(
            *("pursue", *_place(targets), _at(rows), len(rows), *_place(atoms), _count(atoms)),
            *(atoms.width, _at(usable), most, _at(numbers), _at(coefficients), _at(memory)),
        )
        return numbers, coefficients

    def neighbours(
        self,
        targets: Table,
        rows: Numbers,
        atoms: Table,
        usable: Flags | None,
        most: int,
        cosine: bool,
    ) -> tuple[Numbers, Doubles]:
        import numpy as np

        numbers, closeness = np.empty((len(rows), most), np.int32), np.empty((len(rows), most))
        memory = _memory(neighbours_bytes(len(rows), atoms.width))
        self._call(
            *("neighbours", *_place(targets), _at(rows), len(rows), *_place(atoms), _count(atoms)),
            *(atoms.width, _at(usable), most, int(cosine)),
            *(_at(numbers), _at(closeness), _at(memory)),
        )
        return numbers, closeness

    def products_of_rows(
        self, targets: Table, rows: Numbers, atoms: Table, numbers: Numbers
    ) -> Doubles:
        import numpy as np

        count, most = numbers.shape
        found, memory = (
            np.empty((count, most + 1, most + 1)),
            _memory(products_bytes(most, atoms.width)),
        )
        self._call(
            *("products_of_rows", *_place(targets), _at(rows), count, *_place(atoms)),
            *(atoms.width, _at(numbers), most, _at(found), _at(memory)),
        )
        return found

    def mix_rows(self, atoms: Table, numbers: Numbers, coefficients: Doubles) -> Singles:
        import numpy as np

        count, most = numbers.shape
        result, memory = (
            np.empty((count, atoms.width), np.float32),
            _memory(mixing_bytes(atoms.width)),
        )
        self._call(
            *("mix_rows", *_place(atoms), atoms.width, _at(numbers), _at(coefficients)),
            *(count, most, _at(result), _at(memory)),
        )
        return result

    def read_rows(self, table: Table, first: int, count: int) -> Singles:
        import numpy as np

        result = np.empty((count, table.width), np.float32)
        dtype, elements = table.array.dtype, count * table.width
        address = table.array.address + dtype.nbytes(first * table.width)
        self._call("widen", address, Kind[dtype.code], elements, _at(result))
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


def _place(table: Table) -> tuple[int, int]:
    """Address and kind of the elements of a table."""
    return table.array.address, Kind[table.array.dtype.code]


def _count(table: Table) -> int:
    return int(table.array.count // table.width)


def _at(array: np.ndarray[Any, Any] | None) -> int:
    """Address of a contiguous array; 0 for ``None``."""
    if array is None:
        return 0
    assert array.flags.c_contiguous
    return int(array.ctypes.data)


def _memory(nbytes: int) -> np.ndarray[Any, Any]:
    import numpy as np

    return np.empty(-(-nbytes // 8), np.float64)
