"""Views of memory at an address, and blocks of vectors."""

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
"""Where something begins in memory; its elements follow each other without gaps."""


@dataclass(frozen=True)
class Loop:
    """A function that others can call by its name once it is machine code.

    Its arguments are of type ``int``, ``Address`` or ``float``.
    """

    function: Callable[..., Any]


def _numbers_at(kind: Any) -> Any:
    """The function that gives a number of elements of a type that begin at an address."""

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
bytes_, halves, words = (_numbers_at(kind) for kind in (types.uint8, types.uint16, types.uint32))
tinies, shorts, ints, longs, longwords = (
    _numbers_at(kind) for kind in (types.int8, types.int16, types.int32, types.int64, types.uint64)
)
vectors_at = _numbers_at(from_dtype(np.dtype(list(VECTOR), align=True)))
blocks_at = _numbers_at(from_dtype(np.dtype(list(BLOCKS), align=True)))


@compiled
def fill(block: Array, value: Any) -> None:
    """Set all elements to a value. (A slice that is assigned to brings a check of its shape.)"""
    for i in range(block.size):
        block[i] = value


@compiled
def copy(source: Array, block: Array) -> None:
    """Set all elements of ``block`` to those of ``source``, which is as long."""
    for i in range(block.size):
        block[i] = source[i]


def _fused(kind: Any) -> Any:
    """The function factor * other + addend with one rounding, as torch adds a multiple."""

    @intrinsic
    def fused(context: Any, factor: Any, other: Any, addend: Any) -> Any:

        def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
            return builder.fma(*arguments)

        return kind(kind, kind, kind), generate

    return fused


fused, fused_double = _fused(types.float32), _fused(types.float64)


@compiled
def load(address: Address, size: int, start: int, block: Array) -> None:
    """Fill ``block`` with elements at an address: float32 numbers, or bfloat16 ones (2 bytes)."""
    count = block.size
    if size == 2:
        narrow, bits = halves(address + 2 * start, count), block.view(np.uint32)
        for i in range(count):
            bits[i] = np.uint32(narrow[i]) << np.uint32(16)
    else:
        numbers = floats(address + 4 * start, count)
        for i in range(count):
            block[i] = numbers[i]


@compiled
def difference(vector: Any, start: int, block: Array, other: Array) -> None:
    """Write the elements of a vector from ``start`` on to ``block``; ``other`` is work as long."""
    load(vector.address, vector.bytes, start, block)
    if vector.minus:
        load(vector.minus, vector.minus_bytes, start, other)
        for i in range(block.size):
            block[i] -= other[i]
    multiply(vector, start, block)


@compiled
def multiply(vector: Any, start: int, block: Array) -> None:
    """Multiply elements from ``start`` on, in place, by the factors of their rows or columns."""
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
