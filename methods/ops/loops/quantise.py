"""Quantise matrices by blocks, and round to int8 and fp4."""

from __future__ import annotations

import numpy as np

from mergeloom.methods.ops.loops.blocks import (
    Address,
    Array,
    Loop,
    compiled,
    floats,
    load,
    uint8s,
    uint32s,
)
from mergeloom.methods.ops.loops.sizes import BLOCK, ElementType

_BF16, _E8M0 = int(ElementType.BF16), int(ElementType.F8_E8M0)
_INFINITE = np.uint32(0x7F800000)
_NAN = np.uint32(0x7FC00000)


@compiled
def _scale(largest: int, top: float, kind: int, number: Array) -> None:
    """Write the scale (float32, rounded to ``kind``) of a block with a largest magnitude.

    ``largest`` has the float32 bits of that magnitude. See `methods.ops.interface.Scaling`.
    """
    bits = number.view(np.uint32)
    if np.uint32(largest) >= _INFINITE:
        bits[0] = _NAN
    elif kind == _E8M0:
        exponent = max((largest >> 23) - int(top), 0)
        bits[0] = np.uint32(exponent << 23) if exponent else np.uint32(0x00400000)
    else:
        bits[0] = np.uint32(largest)
        number[0] = number[0] / np.float32(top)
        if kind == _BF16:
            odd = (bits[0] >> np.uint32(16)) & np.uint32(1)
            rounded = np.uint32(bits[0] + np.uint32(0x7FFF) + odd) >> np.uint32(16)
            bits[0] = np.uint32(rounded << np.uint32(16))
        if number[0] == np.float32(0.0):
            number[0] = np.float32(1.0)


@Loop
def quantise(
    source: Address,
    size: int,
    rows: int,
    row: int,
    block_rows: int,
    columns: int,
    top: float,
    limit: float,
    kind: int,
    out: Address,
    scales: Address,
    work: Address,
) -> None:
    """Divide blocks by their scales: `methods.ops.interface.Ops.quantise`."""
    across = -(-row // columns)
    most = np.float32(limit)
    for first in range(0, rows, block_rows):
        last = min(first + block_rows, rows)
        for number in range(first, last):
            for start in range(number * row, (number + 1) * row, BLOCK):
                count = min(BLOCK, (number + 1) * row - start)
                load(source, size, start, floats(out + 4 * start, count))
        for j in range(across):
            begin, end = j * columns, min((j + 1) * columns, row)
            largest = np.uint32(0)
            for number in range(first, last):
                bits = uint32s(out + 4 * (number * row + begin), end - begin)
                for i in range(bits.size):
                    largest = max(largest, bits[i] & np.uint32(0x7FFFFFFF))
            own = floats(scales + 4 * (first // block_rows * across + j), 1)
            _scale(int(largest), top, kind, own)
            scale = own[0]
            for number in range(first, last):
                part = floats(out + 4 * (number * row + begin), end - begin)
                for i in range(part.size):
                    value = part[i] / scale
                    value = min(value, most)
                    part[i] = max(value, -most)


@compiled
def round_to_int8(block: Array, codes: Array) -> None:
    """Round to nearest even integers from -128 to 127; NaN becomes 0."""
    magic = np.float32(12582912.0)  # 1.5 * 2**23: adding it rounds a number to an integer
    for i in range(block.size):
        value = block[i] if abs(block[i]) <= np.float32(128.0) else np.float32(0.0)
        codes[i] = np.int8(np.int32((value + magic) - magic))


@compiled
def round_to_fp4(block: Array, address: Address) -> None:
    """Round to fp4 (E2M1), two elements per byte, to nearest even; NaN becomes 0."""
    pairs = uint8s(address, (block.size + 1) // 2)
    for i in range(pairs.size):
        low = _fp4(block[2 * i])
        high = _fp4(block[2 * i + 1]) if 2 * i + 1 < block.size else 0
        pairs[i] = np.uint8(low | (high << 4))


@compiled
def _fp4(value: float) -> int:
    """The fp4 code of a number."""
    size = abs(value)
    code = int(size > 0.25) + int(size >= 0.75) + int(size > 1.25) + int(size >= 1.75)
    code += int(size > 2.5) + int(size >= 3.5) + int(size > 5.0)
    return code | 8 if value < 0 else code
