"""Low-rank factors of the best approximation, by machine code on plain memory."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

from mergeloom.engine.base.dtypes import DType
from mergeloom.engine.hardware.machine_code import Function
from mergeloom.engine.memory.elements import Elements, ScratchArena
from mergeloom.methods.ops.loops.sizes import factors_bytes, leading_bytes


class CompiledFactors(ScratchArena):
    """The operations of `methods.ops.compiled_ops.CompiledOps` that compute low-rank factors."""

    _functions: Mapping[str, Function]

    def widen(self, dtype: DType, array: Elements, out: Elements) -> None:
        raise NotImplementedError

    def part(self, array: Elements, start: int, count: int) -> Elements:
        return Elements(array.address + array.dtype.size * start, array.dtype, count)

    def leading_of_matrix(
        self, matrix: Elements, shape: tuple[int, int], rank: int, down: Elements, up: Elements
    ) -> None:
        top = self.top()
        room = self.take_bytes(leading_bytes(min(shape), rank))
        places = down.address, up.address, room
        self._functions["leading_of_matrix"](matrix.address, *shape, rank, *places)
        self.release(top)

    def leading_of_product(
        self,
        downs: Sequence[Elements],
        ups: Sequence[Elements],
        coefficients: Sequence[float],
        shape: tuple[int, int],
        rank: int,
        down: Elements,
        up: Elements,
    ) -> None:
        (rows, columns), top = shape, self.top()
        widths = [each.count // columns for each in downs]
        room = self.take_bytes(factors_bytes(sum(widths), rows))
        below, above = self._widened(downs), self._widened(ups)
        sizes = (ctypes.c_int64 * len(widths))(*widths)
        factors = (ctypes.c_double * len(widths))(*coefficients)
        self._functions["leading_of_product"](
            *(below, above, ctypes.addressof(sizes), ctypes.addressof(factors)),
            *(len(widths), rows, columns, rank, down.address, up.address, room),
        )
        self.release(top)

    def _widened(self, arrays: Sequence[Elements]) -> int:
        """Address of the arrays as contiguous float32."""
        together = self.take(sum(each.count for each in arrays))
        first = 0
        for each in arrays:
            self.widen(each.dtype, each, self.part(together, first, each.count))
            first += each.count
        return together.address
