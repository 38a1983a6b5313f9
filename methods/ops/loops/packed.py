"""Convert packed elements (fewer than 8 bits) and powers of two (F8_E8M0) to float32."""

from __future__ import annotations

import numpy as np

from mergeloom.methods.ops.loops.blocks import Address, Array, compiled, int32s, uint8s
from mergeloom.methods.ops.loops.sizes import ElementType

_F4, _I4, _U2 = int(ElementType.F4), int(ElementType.I4), int(ElementType.U2)
_U4_UPPER, _U4_EVEN = int(ElementType.U4_UPPER), int(ElementType.U4_EVEN)


@compiled
def is_packed(kind: int) -> bool:
    """Whether several elements of an `ElementType` share a byte."""
    return kind >= _F4


@compiled
def code_at(address: Address, kind: int, place: int) -> int:
    """The code of element ``place`` of a packed array."""
    if kind == _U2:
        code: int = (uint8s(address, place // 4 + 1)[place // 4] >> np.uint8(2 * (place % 4))) & 3
        return code
    if kind == _U4_UPPER:
        place ^= 1
    elif kind == _U4_EVEN:
        place = (place & ~7) | ((place & 1) << 2) | ((place >> 1) & 3)
    half: int = (uint8s(address, place // 2 + 1)[place // 2] >> np.uint8(4 * (place % 2))) & 15
    return half


@compiled
def unpack(address: Address, kind: int, start: int, codes: Array) -> None:
    """Write the codes (int32) of elements from ``start`` on; ``start`` begins a packed word."""
    count = codes.size
    if kind in (_U2, _U4_EVEN):
        for i in range(count):
            codes[i] = code_at(address, kind, start + i)
        return
    shared = uint8s(address + start // 2, (count + 1) // 2)
    first, second = (4, 0) if kind == _U4_UPPER else (0, 4)
    for i in range(count // 2):
        codes[2 * i] = (np.int32(shared[i]) >> np.int32(first)) & np.int32(15)
        codes[2 * i + 1] = (np.int32(shared[i]) >> np.int32(second)) & np.int32(15)
    if count % 2:
        codes[count - 1] = (np.int32(shared[count // 2]) >> np.int32(first)) & np.int32(15)


@compiled
def values_of(kind: int, codes: Array, block: Array) -> None:
    """Write the values of codes (int32) as float32."""
    if kind == _F4:
        half = np.float32(0.5)
        for i in range(block.size):
            low, exponent = codes[i] & np.int32(1), (codes[i] >> np.int32(1)) & np.int32(3)
            shift = max(exponent - np.int32(1), np.int32(0))
            normal = (low | np.int32(2)) << shift
            value = half * np.float32(low if exponent == 0 else normal)
            block[i] = -value if codes[i] & np.int32(8) else value
    elif kind == _I4:
        for i in range(block.size):
            block[i] = np.float32((codes[i] ^ np.int32(8)) - np.int32(8))
    else:
        for i in range(block.size):
            block[i] = np.float32(codes[i])


@compiled
def widen_packed(address: Address, kind: int, start: int, block: Array, work: Address) -> None:
    """Fill ``block`` with packed elements from ``start`` on, as float32."""
    codes = int32s(work, block.size)
    unpack(address, kind, start, codes)
    values_of(kind, codes, block)


@compiled
def widen_exponents(codes: Array, block: Array) -> None:
    """Write powers of two, stored as exponent + 127; 255 is NaN (OCP MX specification)."""
    bits = block.view(np.uint32)
    for i in range(block.size):
        code = np.uint32(codes[i])
        number = code << np.uint32(23) if code else np.uint32(0x00400000)
        bits[i] = np.uint32(0x7FC00000) if code == np.uint32(255) else number
