"""`methods.ops.interface.Ops` on a CUDA device: each operation is one launch of the device's code.

Results are `Pending` values until the tile is done. Operations without CUDA code raise
NotImplementedError; planning keeps merges that need them on the CPU
(`methods.ops.cuda.arithmetic`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from mergeloom.engine.base.dtypes import DType
from mergeloom.engine.graph.kernel import GrainView
from mergeloom.engine.graph.sums import Sums
from mergeloom.engine.memory.elements import Elements, ScratchArena
from mergeloom.methods.ops.compiled_ops import CompiledOps
from mergeloom.methods.ops.compiled_records import VectorRecord, address_and_size
from mergeloom.methods.ops.cuda.pending import Pending, PendingArray, number_at, sums_at, value_of
from mergeloom.methods.ops.cuda.sizes import MAX_BLOCKS, MAX_KEYS, MAX_VECTORS, WORKSPACE_BYTES
from mergeloom.methods.ops.interface import KeepRule, RandomBound, Vector, pairs
from mergeloom.methods.ops.loops.sizes import ElementType, whole_rows

if TYPE_CHECKING:
    import numpy as np

THREADS = 256
_ELEMENTS_PER_THREAD = 8
"""Minimum number of elements per thread of a sum."""


class Memory(Protocol):
    """A block of device memory."""

    address: int
    size: int


class Launcher(Protocol):
    """The methods of a device used here; see `engine.run.cuda_device.CudaDevice`."""

    def allocate(self, nbytes: int) -> Any: ...
    def launch(
        self, name: str, grid: tuple[int, int], threads: int, given: Sequence[Any]
    ) -> None: ...
    def upload(self, address: int, content: Any) -> None: ...
    def finish(self) -> None: ...
    def cells(self, count: int) -> tuple[int, object]: ...
    def table(self, nbytes: int) -> Any: ...
    def bring(self, memory: Any) -> Any: ...


class Vectors(ctypes.Structure):
    """``struct Vectors`` of the device's code."""

    _fields_ = [("each", VectorRecord * MAX_VECTORS)]


class Keys(ctypes.Structure):
    """``struct Keys`` of the device's code."""

    _fields_ = [
        ("first", ctypes.c_int32 * (MAX_VECTORS + 1)),
        ("high", ctypes.c_int32 * MAX_KEYS),
        ("table", ctypes.c_int64 * MAX_KEYS),
    ]


class Tables(ctypes.Structure):
    """``struct Tables`` of the device's code."""

    _fields_ = [("each", ctypes.c_int64 * MAX_VECTORS)]


TYPES: Mapping[str, Any] = {
    "V": Vectors,
    "T": Tables,
    "K": Keys,
    "q": ctypes.c_int64,
    "d": ctypes.c_double,
}


class Signature(NamedTuple):
    """Argument types of a function, and the index of the number of elements or rows."""

    types: str
    size: int
    sums: bool = False
    """Whether it sums, so that fewer threads do more work each."""


SIGNATURES = {
    "choose": Signature("Vdqq", 3),
    "choose_by_rank": Signature("Vqqqqq", 4),
    "combine": Signature("Vqqqqdqqdqqqqq", 10),
    "count_changed": Signature("Vqqdqq", 2, True),
    "count_equal": Signature("Vqdqq", 1, True),
    "count_high": Signature("VTqqqqq", 3, True),
    "count_low": Signature("VKqqqqqq", 3, True),
    "disjoint": Signature("Vqdqqqq", 6),
    "divergences": Signature("qqqqqqq", 4),
    "dots": Signature("Vqqqq", 2, True),
    "end_of_equal": Signature("Vqdqq", 1),
    "magnitudes": Signature("Vqqqq", 1, True),
    "mark": Signature("Vqq", 1),
    "step": Signature("Vdqqqq", 5),
    "store": Signature("qqqqq", 1),
    "variance": Signature("Vqqq", 3),
    "widen": Signature("qqqq", 2),
}


class CountTable:
    """Int64 counters on a device."""

    def __init__(self, device: Launcher, count: int) -> None:
        self._device = device
        self.memory = device.table(8 * count)
        self._copy: Any = None

    def bring(self) -> None:
        """Start copying the counts to main memory."""
        self._copy = self._device.bring(self.memory)

    def cpu(self) -> np.ndarray[Any, Any]:
        """The counts; call it once the device is done and `bring` was called."""
        import numpy as np

        content = (ctypes.c_int64 * (self.memory.size // 8)).from_address(self._copy.address)
        content.owner = self._copy  # the array keeps this buffer alive, and it the memory
        return np.frombuffer(content, np.int64)


class CudaOps(CompiledOps):
    """Arithmetic on one device with scratch ``memory`` there."""

    on_device = True

    def __init__(self, device: Launcher, workspace: Memory, memory: Any) -> None:
        ScratchArena.__init__(self, memory)
        self._device = device
        self._workspace = workspace
        self._tables: list[CountTable] = []
        self._combination: tuple[Any, ...] | None = None
        """The arguments of a combination that is not launched yet, because it also stores its
        result if that is what is asked for next."""

    def at(self, memory: Memory, offset: int, dtype: DType, count: int) -> Elements:
        """``count`` elements at byte ``offset`` of device memory."""
        return Elements(memory.address + offset, dtype, count)

    def store(self, result: Elements, out: Elements) -> Any:
        found, owner = self._device.cells(1)
        kind = ElementType[out.dtype.code]
        combined, self._combination = self._combination, None
        if combined is not None and combined[-2:] == (result.address, result.count):
            self._launch("combine", *combined, out.address, kind, found)
        else:
            self._combination = combined
            self._call("store", result.address, result.count, out.address, kind, found)
        return number_at(found, owner)

    def flush(self) -> None:
        combined, self._combination = self._combination, None
        if combined is not None:
            self._launch("combine", *combined, 0, 0, 0)

    # --- measuring ------------------------------------------------------------------------

    def sums(self, numbers: Sequence[Any]) -> Any:
        given = list(numbers)
        return Pending(lambda: Sums(float(value_of(number)) for number in given))

    def counters(self, count: int) -> Any:
        self._tables.append(CountTable(self._device, count))
        return self._tables[-1]

    def bring(self) -> None:
        for table in self._tables:
            table.bring()
        self._tables.clear()

    def from_numpy(self, numbers: Any) -> Any:
        self.flush()
        found = self.take(numbers.size)
        self._device.upload(
            found.address, (ctypes.c_float * numbers.size).from_buffer_copy(numbers)
        )
        return found

    @property
    def maths(self) -> Any:
        raise NotImplementedError("functions of numbers on a device")

    def to_float32(self, numbers: Any) -> Any:
        raise NotImplementedError("numbers of rows on a device")

    def numbers(self, array: Elements, start: int, count: int) -> Any:
        raise NotImplementedError("numbers of rows on a device")

    def dots(self, vectors: Sequence[Vector]) -> Any:
        count = len(pairs(len(vectors)))
        place, owner = self._device.cells(count)
        size = vectors[0].array.count
        given = self._vectors(vectors), len(vectors), size, place, self._workspace.address
        self._call("dots", *given, rows=count)
        return sums_at(place, count, owner)

    def _run_sums(self, vector: Vector, kept: KeepRule, squares: bool) -> Any:
        place, owner = self._device.cells(2)
        described, size = self._vectors([vector], [kept]), vector.array.count
        self._call("magnitudes", described, size, squares, place, self._workspace.address)
        return number_at(place, owner), number_at(place + 8, owner)

    def count_changed(self, vectors: Sequence[Vector], epsilon: float) -> Any:
        count, size = len(vectors), vectors[0].array.count
        place, owner = self._device.cells(2 * count)
        described = self._vectors(vectors)
        self._call("count_changed", described, count, size, epsilon, place, self._workspace.address)
        return sums_at(place, 2 * count, owner)

    def ranks(self, count: int) -> bool:
        return False

    def find_ranks(self, vector: Vector, ranks: Sequence[int], low: int) -> None:
        return None  # its elements are not in main memory

    def count_high(self, vectors: Sequence[Vector], low: int, counts: Sequence[Any]) -> Any:
        tables, count = Tables(), len(vectors)
        for number, own in enumerate(counts):
            tables.each[number] = own.memory.address
        place, owner = self._device.cells(count)
        given = count, vectors[0].array.count, low, place, self._workspace.address
        self._call("count_high", self._vectors(vectors), tables, *given, rows=count)
        return [number_at(place + 8 * number, owner) for number in range(count)]

    def count_low(
        self,
        vectors: Sequence[Vector],
        highs: Sequence[Sequence[int]],
        low: int,
        step: int,
        counts: Sequence[Sequence[Any]],
    ) -> Any:
        keys, rows, size = Keys(), 1 << (low - step), vectors[0].array.count
        at, count = 0, len(vectors)
        for number, (own, tables) in enumerate(zip(highs, counts, strict=True)):
            for high, table in zip(own, tables, strict=True):
                if at == MAX_KEYS:  # no kernel needs more than 3 for each of the 16 models
                    raise NotImplementedError(f"more than {MAX_KEYS} buckets on a device")
                keys.high[at], keys.table[at] = high, table.memory.address
                at += 1
            keys.first[number + 1] = at
        place, owner = self._device.cells(-(-at * rows // 2))
        given = count, size, low, step, place, self._workspace.address
        self._call("count_low", self._vectors(vectors), keys, *given, rows=count)
        starts = (keys.first[number] for number in range(count))
        return [
            [
                PendingArray(place + 4 * rows * (start + key), rows, "i4", owner)
                for key in range(len(own))
            ]
            for start, own in zip(starts, highs, strict=True)
        ]

    def count_equal(self, vector: Vector, value: float) -> Any:
        place, owner = self._device.cells(1)
        given = vector.array.count, value, place, self._workspace.address
        self._call("count_equal", self._vectors([vector]), *given)
        return number_at(place, owner)

    def end_of_equal(self, vector: Vector, value: float, max_equal: int) -> int:
        place, owner = self._device.cells(1)
        self._call(
            "end_of_equal", self._vectors([vector]), vector.array.count, value, max_equal, place
        )
        self._device.finish()
        return int(number_at(place, owner))

    def divergences(self, base: Elements, other: Elements, row: int) -> Any:
        rows = base.count // row
        found, owner = self._device.cells(-(-rows // 2))
        given = *address_and_size(base), *address_and_size(other), rows, row, found
        self._call("divergences", *given)
        return PendingArray(found, rows, "f4", owner)

    def row_dots(self, vectors: Sequence[Vector], row: int) -> Any:
        raise NotImplementedError("row_dots on a device")

    def column_dots(self, vectors: Sequence[Vector], columns: int, first: int) -> Any:
        raise NotImplementedError("column_dots on a device")

    def column_sums(self, array: Elements, rows: int, columns: int) -> Any:
        raise NotImplementedError("column_sums on a device")

    # --- choosing -------------------------------------------------------------------------

    def new_marks(self, grain: GrainView, number: int, vectors: int) -> int:
        return self.take_bytes(grain.count)

    def choose_by_rank(
        self, vector: Vector, row: int, key: int, start: int, steps: Any, marks: int
    ) -> int:
        rule = KeepRule(draw=RandomBound(key, start, int(steps[0])))
        size, top = vector.array.count, self.top()
        given = (ctypes.c_int32 * row).from_buffer_copy(steps)
        there, room = self.take_bytes(4 * row), self.take_bytes(16 * size)
        self.flush()
        self._device.upload(there, given)
        described = self._vectors([vector], [rule])
        self._call("choose_by_rank", described, there, row, marks, size, room, rows=row)
        self.release(top)
        return marks

    def mark(self, vector: Vector, kept: KeepRule, marks: int) -> int:
        self._call("mark", self._vectors([vector], [kept]), vector.array.count, marks)
        return marks

    # --- calls ----------------------------------------------------------------------------

    def _call(self, name: str, *arguments: Any, row: int = 0, work: int = 0, rows: int = 0) -> None:
        self.flush()
        if name == "combine":
            self._combination = arguments
        else:
            self._launch(name, *arguments, rows=rows)

    def _launch(self, name: str, *arguments: Any, rows: int = 0) -> None:
        signature = SIGNATURES.get(name)
        if signature is None:
            raise NotImplementedError(f"{name} on a device")
        size = int(arguments[signature.size])
        if not size:
            return
        given = [make(value) for make, value in zip(_MADE[signature.types], arguments, strict=True)]
        self._device.launch(name, _grid(name, signature, size, rows), THREADS, given)

    def _records(self, count: int) -> Any:
        if count > MAX_VECTORS:
            raise NotImplementedError(f"{count} vectors at once on a device")
        return Vectors().each  # keeps the structure alive

    def _numbers_at(self, numbers: Any) -> tuple[int, int]:
        return numbers.address, numbers.count


_MAKE: Mapping[str, Any] = {
    **TYPES,
    "V": lambda array: array._b_base_,
    **dict.fromkeys("TK", lambda structure: structure),
}
_MADE = {
    signature.types: [_MAKE[kind] for kind in signature.types] for signature in SIGNATURES.values()
}


def _grid(name: str, signature: Signature, size: int, rows: int) -> tuple[int, int]:
    """The grid of thread blocks for ``size`` elements or rows."""
    if name == "choose_by_rank":
        return -(-size // whole_rows(rows)), 1
    if name == "divergences":
        return size, 1
    if name == "end_of_equal":
        return 1, 1
    if signature.sums:
        return min(-(-size // (THREADS * _ELEMENTS_PER_THREAD)), MAX_BLOCKS), rows or 1
    return -(-size // THREADS), 1


def workspace(device: Launcher) -> Memory:
    """Working memory shared by the launches on one device, one after the other."""
    found: Memory = device.table(WORKSPACE_BYTES)
    return found
