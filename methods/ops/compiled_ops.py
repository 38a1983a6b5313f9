"""Arithmetic by machine code on plain memory; it defines the results on the CPU.

The code is compiled from `methods.ops.loops`. numpy is imported only by operations that count or
that have numbers for each row.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mergeloom.engine.base.dtypes import DType
from mergeloom.engine.graph.kernel import GrainView
from mergeloom.engine.graph.sums import Sums
from mergeloom.engine.hardware.machine_code import Function
from mergeloom.engine.memory.elements import Elements
from mergeloom.engine.memory.ledger import Block
from mergeloom.engine.run.codecs import decode, encode
from mergeloom.methods.ops.compiled_factors import CompiledFactors
from mergeloom.methods.ops.compiled_records import (
    SIZES,
    VectorRecord,
    address_and_size,
    describe_blocks,
    describe_rule,
)
from mergeloom.methods.ops.compiled_tables import CompiledTables
from mergeloom.methods.ops.draws import HASH
from mergeloom.methods.ops.interface import (
    CANCELLED,
    KEEP_ALL,
    Adjustment,
    Blocks,
    Factors,
    KeepRule,
    RandomBound,
    Scaling,
    Vector,
    matrix,
    pairs,
)
from mergeloom.methods.ops.loops.sizes import (
    MAX_RANKED,
    ElementType,
    marks_bytes,
    product_bytes,
    ranking_bytes,
    work_bytes,
)
from mergeloom.methods.ops.maths import ArrayMaths, divergences_of

if TYPE_CHECKING:
    import numpy as np

_HASH = (ctypes.c_uint32 * len(HASH))(*HASH)
_HASH_AT = ctypes.addressof(_HASH)


class CompiledOps(CompiledTables, CompiledFactors):
    """`methods.ops.interface.Ops` on `Elements` in main memory; scratch is taken from one block."""

    on_device = False

    def reads(self, dtype: DType) -> bool:
        return dtype.code in SIZES

    def __init__(self, functions: Mapping[str, Function], block: Block) -> None:
        super().__init__(block)
        self._functions = functions

    @cached_property
    def brief(self) -> CompiledOps:
        functions = {name: _keeping_lock(function) for name, function in self._functions.items()}
        return CompiledOps(functions, self._block)

    # --- called by the engine -------------------------------------------------------------

    def view(self, block: Block, offset: int, dtype: DType, count: int) -> Elements:
        """``count`` elements at byte ``offset`` of a block."""
        return Elements(block.address + offset, dtype, count)

    def shaped(self, array: Elements, shape: tuple[int, ...]) -> Elements:
        """Return the array itself: elements have no shape, the grain has."""
        return array

    def widen(self, dtype: DType, array: Elements, out: Elements) -> None:
        """Convert elements of any `ElementType`, or blocks of codes, to float32."""
        if dtype.codec:
            decode(dtype, _array(array, "u1"), _array(out, "f4"))
            return
        self._call("widen", array.address, ElementType[dtype.code], out.count, out.address)

    def whole_bytes(self, dtype: DType, array: Elements, count: int) -> Elements:
        if not dtype.codec:
            return Elements(array.address, dtype, count)
        widened = self.take(count)
        self.widen(dtype, array, widened)
        return widened

    def store(self, result: Elements, out: Elements) -> int:
        """Round float32 elements to the dtype of ``out``, which may be the same memory.

        Returns the number of elements of ``out`` that are not finite.
        """
        kind = ElementType[out.dtype.code]
        found = self._call("store", result.address, result.count, out.address, kind)
        return int(found)

    def pack(self, dtype: DType, result: Elements, out: Elements) -> int:
        """Encode float32 elements as blocks; returns an upper bound of those not finite."""
        return encode(dtype, _array(result, "f4"), _array(out, "u1"))

    @cached_property
    def maths(self) -> ArrayMaths:
        import numpy as np

        return ArrayMaths(np)

    def sums(self, numbers: Sequence[Any]) -> Sums:
        return Sums(numbers)

    def counters(self, count: int) -> np.ndarray[Any, Any]:
        import numpy as np

        return np.zeros(count, np.int64)

    def to_float32(self, numbers: Any) -> Any:
        import numpy as np

        return np.ascontiguousarray(numbers, np.float32)

    def from_numpy(self, numbers: Any) -> Any:
        return numbers

    def numbers(self, array: Elements, start: int, count: int) -> Any:
        import numpy as np

        found = np.empty(count, np.float32)
        address = array.address + array.dtype.nbytes(start)
        self._call("widen", address, ElementType[array.dtype.code], count, found.ctypes.data)
        return found.astype(np.float64)

    # --- measuring ------------------------------------------------------------------------

    def dots(self, vectors: Sequence[Vector]) -> Sums:
        size, found = vectors[0].array.count, (ctypes.c_double * len(pairs(len(vectors))))()
        self._call("dots", self._vectors(vectors), len(vectors), size, ctypes.addressof(found))
        return Sums(found)

    def magnitudes(self, vector: Vector, kept: KeepRule) -> tuple[float, float]:
        return self._run_sums(vector, kept, False)

    def squares(self, vector: Vector, kept: KeepRule) -> float:
        return self._run_sums(vector, kept, True)[1]

    def _run_sums(self, vector: Vector, kept: KeepRule, squares: bool) -> tuple[float, float]:
        size, found = vector.array.count, (ctypes.c_double * 2)()
        described, place = self._vectors([vector], [kept]), ctypes.addressof(found)
        self._call("magnitudes", described, _HASH_AT, size, squares, place)
        whole, rest = found
        return whole, rest

    def count_changed(self, vectors: Sequence[Vector], epsilon: float) -> Sums:
        size, counts = vectors[0].array.count, (ctypes.c_int64 * (2 * len(vectors)))()
        address = ctypes.addressof(counts)
        self._call("count_changed", self._vectors(vectors), len(vectors), size, epsilon, address)
        return Sums(counts)

    def ranks(self, count: int) -> bool:
        return count <= MAX_RANKED

    def find_ranks(
        self, vector: Vector, ranks: Sequence[int], low: int
    ) -> tuple[int, list[tuple[int, int, int, int, int]]] | None:
        size, count = vector.array.count, len(ranks)
        numbers = (ctypes.c_int64 * (6 * count or 1))(*ranks)
        address = ctypes.addressof(numbers)
        nonzero = self._call(
            *("find_ranks", self._vectors([vector]), size, address, count, low),
            address + 8 * count,
            work=ranking_bytes(size),
        )
        if nonzero < 0:
            return None
        found = iter(numbers[count:])
        return nonzero, list(zip(*[found] * 5, strict=False))

    def count_high(self, vectors: Sequence[Vector], low: int, counts: Sequence[Any]) -> Any:
        size = vectors[0].array.count
        return [
            int(self._call("count_high", self._vectors([vector]), size, low, own.ctypes.data))
            for vector, own in zip(vectors, counts, strict=True)
        ]

    def count_low(
        self,
        vectors: Sequence[Vector],
        highs: Sequence[Sequence[int]],
        low: int,
        step: int,
        counts: Sequence[Sequence[Any]],
    ) -> Any:
        import numpy as np

        found = []
        for vector, own, those in zip(vectors, highs, counts, strict=True):
            levels = np.zeros((len(own), 1 << (low - step)), np.int32)
            keys = (ctypes.c_int32 * len(own))(*own)
            tables = (ctypes.c_int64 * len(own))(*(table.ctypes.data for table in those))
            self._call(
                *("count_low", self._vectors([vector]), vector.array.count),
                *(ctypes.addressof(keys), len(own), low, step),
                *(ctypes.addressof(tables), levels.ctypes.data),
            )
            found.append(levels)
        return found

    def count_equal(self, vector: Vector, value: float) -> int:
        size = vector.array.count
        return int(self._call("count_equal", self._vectors([vector]), size, value))

    def end_of_equal(self, vector: Vector, value: float, max_equal: int) -> int:
        size = vector.array.count
        return int(self._call("end_of_equal", self._vectors([vector]), size, value, max_equal))

    def row_dots(self, vectors: Sequence[Vector], row: int) -> list[list[Any]]:
        import numpy as np

        count, rows = len(vectors), vectors[0].array.count // row
        found = np.empty((len(pairs(count)), rows))
        self._call("row_dots", self._vectors(vectors), count, rows, row, found.ctypes.data)
        return matrix(list(found), count)

    def column_dots(self, vectors: Sequence[Vector], columns: int, first: int) -> Any:
        import numpy as np

        count, size = len(vectors), vectors[0].array.count
        found = np.empty((len(pairs(count)), columns))
        described = self._vectors(vectors)
        self._call("column_dots", described, count, size, columns, first, found.ctypes.data)
        return found

    def column_sums(self, array: Elements, rows: int, columns: int) -> Any:
        import numpy as np

        found = np.empty(columns)
        self._call("column_sums", array.address, rows, columns, found.ctypes.data)
        return found

    def divergences(self, base: Elements, other: Elements, row: int) -> Any:
        import numpy as np

        rows = base.count // row
        sums = np.empty((5, rows))
        places = *address_and_size(base), *address_and_size(other)
        self._call("divergences", *places, rows, row, sums.ctypes.data)
        return divergences_of(sums, np).astype(np.float32)

    # --- choosing -------------------------------------------------------------------------

    def new_marks(self, grain: GrainView, number: int, vectors: int) -> int:
        count = grain.count
        if grain.memo is None:
            return self.take_bytes(marks_bytes(count))
        size: int = grain.memo.count
        address: int = grain.memo.address
        return address + number * (size // vectors)

    def choose_by_rank(
        self, vector: Vector, row: int, key: int, start: int, steps: Any, marks: int
    ) -> int:
        rule = KeepRule(draw=RandomBound(key, start, int(steps[0])))
        described, size = self._vectors([vector], [rule]), vector.array.count
        place = steps.ctypes.data
        self._call("choose_by_rank", described, _HASH_AT, place, row, marks, size, row=row)
        return marks

    def mark(self, vector: Vector, kept: KeepRule, marks: int) -> int:
        described = self._vectors([vector], [kept])
        self._call("mark", described, _HASH_AT, marks, vector.array.count)
        return marks

    # --- writing --------------------------------------------------------------------------

    def combine(
        self,
        vectors: Sequence[Vector],
        coefficients: Sequence[float],
        out: Elements,
        *,
        kept: Sequence[KeepRule] | None = None,
        votes: Sequence[float] | None = None,
        shares: Sequence[float] | None = None,
        base: Elements | None = None,
        scale: float = 1.0,
        by_count: bool = False,
    ) -> None:
        described = self._vectors(vectors, kept)
        if kept is not None and any(rule.ranks is not None for rule in kept):
            self._bound_ranks(described, kept, out.count)
        for number in range(len(vectors)):
            record = described[number]
            record.coefficient = coefficients[number]
            record.vote = (votes or coefficients)[number]
            record.share = (shares or coefficients)[number]
        self._call(
            *("combine", described, len(vectors), _HASH_AT),
            *(0 if votes is None else 1 + by_count, shares is not None, CANCELLED),
            *((0, 0) if base is None else address_and_size(base)),
            *(scale, out.address, out.count),
        )

    def _bound_ranks(self, described: Any, kept: Sequence[KeepRule], size: int) -> None:
        """Write the bounds that ``ranks`` of keep rules mean into the records of their vectors."""
        numbers = (ctypes.c_int64 * (2 * len(kept)))()
        for number, rule in enumerate(kept):
            if rule.ranks is not None:
                numbers[2 * number], numbers[2 * number + 1] = rule.ranks.last, rule.ranks.skipped
        self._call(
            *("bound_ranks", described, len(kept), ctypes.addressof(numbers), size),
            work=ranking_bytes(size),
        )

    def step(self, vector: Vector, limit: float, base: Elements, out: Elements) -> None:
        place = address_and_size(base)
        self._call("step", self._vectors([vector]), limit, *place, out.address, out.count)

    def disjoint(
        self,
        vectors: Sequence[Vector],
        epsilon: float,
        excess: Sequence[float],
        base: Elements,
        out: Elements,
    ) -> None:
        described = self._vectors(vectors)
        for number, more in enumerate(excess):
            described[number].coefficient = more
        place = *address_and_size(base), out.address, out.count
        self._call("disjoint", described, len(vectors), epsilon, *place)

    def variance(self, vectors: Sequence[Vector], out: Elements) -> None:
        self._call("variance", self._vectors(vectors), len(vectors), out.address, out.count)

    def choose(self, vector: Vector, threshold: float, out: Elements) -> None:
        self._call("choose", self._vectors([vector]), threshold, out.address, out.count)

    def copy(self, array: Elements, out: Elements) -> None:
        self.widen(array.dtype, array, out)

    def adjust(
        self,
        array: Elements,
        blocks: Blocks,
        how: Adjustment,
        row: int,
        out: Elements,
        *,
        zero: float = 0.0,
        factor: float = 1.0,
    ) -> None:
        record, across, top = describe_blocks(blocks), blocks.grid[2], self.top()
        room = self.take_bytes(8 * across + (4 * row if blocks.groups is not None else 0))
        self._call(
            *("adjust", *address_and_size(array), ctypes.addressof(record), int(how), zero, factor),
            *(out.address, out.count // row, row, room),
        )
        self.release(top)

    def quantise(
        self,
        array: Elements,
        row: int,
        block_rows: int,
        columns: int,
        scale: Scaling,
        out: Elements,
        scales: Elements,
    ) -> None:
        self._call(
            *("quantise", *address_and_size(array), out.count // row, row, block_rows, columns),
            *(scale.top, scale.limit, ElementType[scale.dtype.code], out.address, scales.address),
        )

    def look_up(self, indices: Elements, table: Elements, out: Elements) -> None:
        place = address_and_size(indices)
        self._call("look_up", *place, table.address, table.count, out.address, out.count)

    def add_product(
        self,
        weight: Elements,
        down: Elements,
        up: Elements,
        rank: int,
        first: int,
        scale: float,
        out: Elements,
    ) -> None:
        factors = down.address, ElementType[down.dtype.code], up.address, ElementType[up.dtype.code]
        sizes = rank, down.count // rank
        place = first, scale, out.address, out.count
        self._call(
            *("add_product", *address_and_size(weight), *factors, *sizes, *place),
            work=product_bytes(rank),
        )

    def mean_rows(
        self, arrays: Sequence[Elements], table: Elements, row: int, first: int, out: Elements
    ) -> None:
        described = self._vectors([Vector(array) for array in arrays])
        rows = out.count // row, row
        chosen = table.address + first * len(arrays)
        self._call(
            *("mean_rows", ctypes.addressof(described), len(arrays), chosen, *rows, out.address)
        )

    def repeat(self, numbers: Any, first: int, out: Elements) -> None:
        for place in range(first * numbers.nbytes, 4 * out.count, numbers.nbytes):
            ctypes.memmove(out.address + place, numbers.ctypes.data, numbers.nbytes)

    def transpose(self, array: Elements, matrix: tuple[int, int], out: Elements) -> None:
        count = array.count // (matrix[0] * matrix[1])
        self._call("transpose", *address_and_size(array), count, *matrix, out.address)

    # --- calls ----------------------------------------------------------------------------

    def _call(self, name: str, *arguments: Any, row: int = 0, work: int = 0) -> Any:
        """Call a machine-code function with numbers and addresses, and ``work`` bytes of workspace
        (0 for the usual size)."""
        first, vectors = arguments[0], 1
        if isinstance(first, ctypes.Array):
            vectors = len(first)
            arguments = ctypes.addressof(first), *arguments[1:]
        top = self.top()
        room = self.take_bytes(work or work_bytes(vectors, row))
        result = self._functions[name](*arguments, room)
        self.release(top)
        return result

    def _vectors(self, vectors: Sequence[Vector], kept: Sequence[KeepRule] | None = None) -> Any:
        """Records of `methods.ops.loops.record`; valid as long as the arrays."""
        described = self._records(len(vectors))
        for number, vector in enumerate(vectors):
            record = described[number]
            record.address, record.bytes = address_and_size(vector.array)
            if vector.minus is not None:
                record.minus, record.minus_bytes = address_and_size(vector.minus)
            if vector.factors is not None:
                self._describe_factors(record, vector.factors, vector.array.count)
            if kept is not None and kept[number] is not KEEP_ALL:
                describe_rule(record, kept[number], vector.array.count)
        return described

    def _records(self, count: int) -> Any:
        """An array of zeroed records."""
        return (VectorRecord * count)()

    def _describe_factors(self, record: Any, factors: Factors, count: int) -> None:
        record.factors, numbers = self._numbers_at(factors.numbers)
        if factors.by_column:
            record.factor_columns, record.first_column = numbers, factors.first_column
        else:
            record.factor_row = count // numbers

    def _numbers_at(self, numbers: Any) -> tuple[int, int]:
        """Address and count of float32 numbers."""
        return numbers.ctypes.data, numbers.size


def _array(elements: Elements, kind: str) -> np.ndarray[Any, Any]:
    """Elements as a numpy array; valid as long as the elements."""
    import numpy as np

    nbytes = elements.count * int(kind[1])
    memory = (ctypes.c_uint8 * nbytes).from_address(elements.address)
    return np.ctypeslib.as_array(memory).view(kind)


def _keeping_lock(function: Function) -> Function:
    """The same function for calls of microseconds, which keep the interpreter's lock: passing it
    to another thread and back would take longer."""
    released: Any = function
    kept = ctypes.PYFUNCTYPE(released.restype, *released.argtypes)
    address = ctypes.cast(released, ctypes.c_void_p).value or 0
    called = kept(address)
    called.belongs_to = function  # type: ignore[attr-defined]  # keeps the code alive
    return called
