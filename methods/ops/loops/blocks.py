"""Arrays at memory addresses, and loading blocks of vectors as float32.

A *block* is an array of at most `sizes.BLOCK` elements in working memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import carray, from_dtype, njit, types
from numba.extending import intrinsic

from mergeloom.methods.ops.loops.record import BLOCKS, VECTOR

compiled = njit(nogil=True, error_model="numpy")

Array = Any

Address = int
"""A memory address; the elements there are contiguous."""


@dataclass(frozen=True)
class Loop:
    """A function that is compiled to machine code and then called by its name.

    Its arguments have the types ``int``, ``Address`` or ``float``.
    """

    function: Callable[..., Any]


def _numbers_at(kind: Any) -> Any:
    """A function (address, count) that returns the array of ``count`` elements at an address."""

    @intrinsic
    def pointer_to(context: Any, address: Any) -> Any:
        pointer = types.CPointer(kind)

        def generate(inner: Any, builder: Any, __: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], inner.get_value_type(pointer))

        return pointer(types.int64), generate

    @compiled
    def at(address: int, count: int) -> Array:
        return carray(pointer_to(address), (count,))

    return at


floats, doubles = _numbers_at(types.float32), _numbers_at(types.float64)
uint8s, uint16s, uint32s = (_numbers_at(kind) for kind in (types.uint8, types.uint16, types.uint32))
int8s, int16s, int32s, int64s, uint64s = (
    _numbers_at(kind) for kind in (types.int8, types.int16, types.int32, types.int64, types.uint64)
)
vectors_at = _numbers_at(from_dtype(np.dtype(list(VECTOR), align=True)))
blocks_at = _numbers_at(from_dtype(np.dtype(list(BLOCKS), align=True)))


@compiled
def fill(block: Array, value: Any) -> None:
    """Set all elements to a value, without the shape check of assigning to a slice."""
    for i in range(block.size):
        block[i] = value


@compiled
def copy(source: Array, block: Array) -> None:
    """Copy ``source`` to ``block``, which has the same length."""
    for i in range(block.size):
        block[i] = source[i]


def _fused(kind: Any) -> Any:
    """A function: factor · other + addend, rounded once, as ``torch.add`` with ``alpha`` does."""

    @intrinsic
    def fused(context: Any, factor: Any, other: Any, addend: Any) -> Any:

        def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
            return builder.fma(*arguments)

        return kind(kind, kind, kind), generate

    return fused


fused, fused_double = _fused(types.float32), _fused(types.float64)


@compiled
def load(address: Address, size: int, start: int, block: Array) -> None:
    """Fill ``block`` (float32) with elements from ``start`` on: float32, or bfloat16 if ``size`` is
    2."""
    count = block.size
    if size == 2:
        narrow, bits = uint16s(address + 2 * start, count), block.view(np.uint32)
        for i in range(count):
            bits[i] = np.uint32(narrow[i]) << np.uint32(16)
    else:
        numbers = floats(address + 4 * start, count)
        for i in range(count):
            block[i] = numbers[i]


@compiled
def difference(vector: Any, start: int, block: Array, other: Array) -> None:
    """Fill ``block`` with the elements of a vector from ``start`` on.

    ``other`` is working memory of the same length.
    """
    load(vector.address, vector.bytes, start, block)
    if vector.minus:
        load(vector.minus, vector.minus_bytes, start, other)
        for i in range(block.size):
            block[i] -= other[i]
    multiply(vector, start, block)


@compiled
def multiply(vector: Any, start: int, block: Array) -> None:
    """Multiply a block, from element ``start`` on, by the vector's row or column factors."""
    if vector.factors:
        if vector.factor_columns:
            _multiply_columns(vector, start, block)
        else:
            _multiply_rows(vector, start, block)


@compiled
def _multiply_rows(vector: Any, start: int, block: Array) -> None:
    stop, row = start + block.size, vector.factor_row
    factors = floats(vector.factors, -(-stop // row))
    for number in range(start // row, factors.size):
        factor = factors[number]
        part = block[max(number * row - start, 0) : (number + 1) * row - start]
        for i in range(part.size):
            part[i] *= factor


@compiled
def _multiply_columns(vector: Any, start: int, block: Array) -> None:
    columns = vector.factor_columns
    factors = floats(vector.factors, columns)
    done = 0
    while done < block.size:
        column = (vector.first_column + start + done) % columns
        part = block[done : done + columns - column]
        own = factors[column : column + part.size]
        for i in range(part.size):
            part[i] *= own[i]
        done += part.size
