"""Conversions between float32 and other dtypes, rounded once, to nearest even."""

from __future__ import annotations

import numpy as np

from mergeloom.methods.ops.loops.blocks import (
    Address,
    Array,
    Loop,
    compiled,
    doubles,
    floats,
    int8s,
    int16s,
    int32s,
    int64s,
    load,
    uint8s,
    uint16s,
    uint32s,
    uint64s,
)
from mergeloom.methods.ops.loops.packed import is_packed, widen_exponents, widen_packed
from mergeloom.methods.ops.loops.quantise import round_to_fp4, round_to_int8
from mergeloom.methods.ops.loops.sizes import BLOCK, ElementType

_BF16, _F32, _F16, _F64 = (
    int(ElementType.BF16),
    int(ElementType.F32),
    int(ElementType.F16),
    int(ElementType.F64),
)
_E4M3, _E5M2, _E8M0 = int(ElementType.F8_E4M3), int(ElementType.F8_E5M2), int(ElementType.F8_E8M0)
_E4M3_FNUZ, _E5M2_FNUZ = int(ElementType.F8_E4M3FNUZ), int(ElementType.F8_E5M2FNUZ)
_F4 = int(ElementType.F4)
_I64, _I32, _I16, _I8 = (
    int(ElementType.I64),
    int(ElementType.I32),
    int(ElementType.I16),
    int(ElementType.I8),
)
_U64, _U32, _U16, _U8 = (
    int(ElementType.U64),
    int(ElementType.U32),
    int(ElementType.U16),
    int(ElementType.U8),
)

_INFINITE = np.uint32(0x7F800000)


@compiled
def _widen_half(narrow: Array, shift: int, signs: Array, block: Array) -> None:
    """Widen float16 (``shift`` 0), or float8_e5m2, the upper byte of a float16 (``shift`` 8)."""
    bits = block.view(np.uint32)
    for i in range(block.size):
        code = np.uint32(narrow[i]) << np.uint32(shift)
        signs[i] = code
        bits[i] = (code & np.uint32(0x7FFF)) << np.uint32(13)
    scale = np.float32(2.0**112)
    for i in range(block.size):
        block[i] *= scale
    for i in range(block.size):
        code = signs[i]
        special = _INFINITE if code & np.uint32(0x7C00) == np.uint32(0x7C00) else np.uint32(0)
        bits[i] |= special | ((code & np.uint32(0x8000)) << np.uint32(16))


@compiled
def _widen_e4m3(narrow: Array, block: Array) -> None:
    """Widen float8_e4m3fn: no infinities, NaN where all seven lower bits are set."""
    bits = block.view(np.uint32)
    for i in range(block.size):
        bits[i] = (np.uint32(narrow[i]) & np.uint32(0x7F)) << np.uint32(20)
    scale = np.float32(2.0**120)
    for i in range(block.size):
        block[i] *= scale
    for i in range(block.size):
        code = np.uint32(narrow[i])
        nan = np.uint32(0x7FC00000) if code & np.uint32(0x7F) == np.uint32(0x7F) else np.uint32(0)
        bits[i] |= nan | ((code & np.uint32(0x80)) << np.uint32(24))


@compiled
def _widen_fnuz(narrow: Array, mantissa: int, bias: int, block: Array) -> None:
    """Widen a float8 FNUZ type: no infinities; the code of -0 is NaN."""
    bits = block.view(np.uint32)
    shift, scale = np.uint32(23 - mantissa), np.float32(2.0 ** (127 - bias))
    for i in range(block.size):
        bits[i] = (np.uint32(narrow[i]) & np.uint32(0x7F)) << shift
    for i in range(block.size):
        block[i] *= scale
    for i in range(block.size):
        code = np.uint32(narrow[i])
        nan = np.uint32(0x7FC00000) if code == np.uint32(0x80) else np.uint32(0)
        bits[i] |= nan | ((code & np.uint32(0x80)) << np.uint32(24))


@compiled
def _cast(source: Array, block: Array) -> None:
    """Round elements to float32."""
    for i in range(block.size):
        block[i] = np.float32(source[i])


@compiled
def widened(address: Address, kind: int, start: int, block: Array, work: Address) -> None:
    """Fill ``block`` with elements of an `ElementType` from ``start`` on, as float32.

    Element ``start`` begins at a byte boundary. ``work`` has 4 bytes per element.
    """
    count = block.size
    if is_packed(kind):
        widen_packed(address, kind, start, block, work)
    elif kind == _E8M0:
        widen_exponents(uint8s(address + start, count), block)
    elif kind == _BF16:
        load(address, 2, start, block)
    elif kind == _F32:
        load(address, 4, start, block)
    elif kind == _F16:
        _widen_half(uint16s(address + 2 * start, count), 0, uint32s(work, count), block)
    elif kind == _E5M2:
        _widen_half(uint8s(address + start, count), 8, uint32s(work, count), block)
    elif kind == _E4M3:
        _widen_e4m3(uint8s(address + start, count), block)
    elif kind == _E4M3_FNUZ:
        _widen_fnuz(uint8s(address + start, count), 3, 8, block)
    elif kind == _E5M2_FNUZ:
        _widen_fnuz(uint8s(address + start, count), 2, 16, block)
    elif kind == _F64:
        _cast(doubles(address + 8 * start, count), block)
    elif kind == _I64:
        _cast(int64s(address + 8 * start, count), block)
    elif kind == _I32:
        _cast(int32s(address + 4 * start, count), block)
    elif kind == _I16:
        _cast(int16s(address + 2 * start, count), block)
    elif kind == _I8:
        _cast(int8s(address + start, count), block)
    elif kind == _U64:
        _cast(uint64s(address + 8 * start, count), block)
    elif kind == _U32:
        _cast(uint32s(address + 4 * start, count), block)
    elif kind == _U16:
        _cast(uint16s(address + 2 * start, count), block)
    else:
        _cast(uint8s(address + start, count), block)


@Loop
def widen(address: Address, kind: int, size: int, out: Address, work: Address) -> None:
    """Convert ``size`` elements of an `ElementType` to float32."""
    widen_run(address, kind, size, out, work)


@compiled
def widen_run(address: Address, kind: int, size: int, out: Address, work: Address) -> None:
    """Convert ``size`` elements of an `ElementType` to float32, called by other loops."""
    for start in range(0, size, BLOCK):
        count = min(BLOCK, size - start)
        widened(address, kind, start, floats(out + 4 * start, count), work)


@compiled
def _narrow(
    block: Array, sums: Array, mantissa: int, bias: int, top: int, nan: int, codes: Array
) -> int:
    """Write the codes (uint32, without sign) of float32 numbers in a narrower floating-point type.

    The type has ``mantissa`` bits and an exponent ``bias``; ``top`` is the code for overflow,
    ``nan`` that for NaN. ``sums`` (float32) is working memory. Returns the number of codes that are
    ``top`` or ``nan``.
    """
    bits, rounded = block.view(np.uint32), sums.view(np.uint32)
    width = np.uint32(23 - mantissa)
    least, shift = np.uint32((128 - bias) << 23), np.uint32((127 - bias) << 23)
    half = np.uint32((1 << (22 - mantissa)) - 1)
    # The last place of this float32 number is worth the type's smallest subnormal number.
    magic_bits = np.uint32((127 - bias + 24 - mantissa) << 23)
    for i in range(block.size):
        rounded[i] = magic_bits
    for i in range(block.size):
        sums[i] += abs(block[i])
    bad = 0
    highest = np.uint32(min(top, nan))
    for i in range(block.size):
        own = bits[i] & np.uint32(0x7FFFFFFF)
        odd = np.uint32((own >> width) & np.uint32(1))
        normal = np.uint32(np.uint32(own - shift + half + odd) >> width)
        small = np.uint32(rounded[i] - magic_bits)
        code = small if own < least else min(normal, np.uint32(top))
        code = np.uint32(nan) if own > _INFINITE else code
        codes[i] = code
        bad += np.int64(code >= highest)
    return bad


@Loop
def store(source: Address, size: int, out: Address, kind: int, work: Address) -> int:
    """Round float32 numbers to an `ElementType`; returns the number of results that are not finite.

    For F32, ``out`` may be ``source``.
    """
    bad = 0
    one = np.uint32(1)
    for start in range(0, size, BLOCK):
        count = min(BLOCK, size - start)
        block, bits = floats(source + 4 * start, count), uint32s(source + 4 * start, count)
        if kind == _BF16:
            narrow, found = uint16s(out + 2 * start, count), np.uint32(0)
            for i in range(count):
                code = bits[i]
                odd = (code >> np.uint32(16)) & one
                rounded = np.uint32(np.uint32(code + np.uint32(0x7FFF) + odd) >> np.uint32(16))
                quiet = (code >> np.uint32(16)) | np.uint32(0x40)
                nan = code & np.uint32(0x7FFFFFFF) > _INFINITE
                rounded = quiet if nan else rounded
                narrow[i] = np.uint16(rounded)
                found += one if rounded & np.uint32(0x7F80) == np.uint32(0x7F80) else np.uint32(0)
            bad += np.int64(found)
        elif kind == _F32:
            found = np.uint32(0)
            for i in range(count):
                found += one if bits[i] & _INFINITE == _INFINITE else np.uint32(0)
            bad += np.int64(found)
            if out != source:
                target = uint32s(out + 4 * start, count)
                for i in range(count):
                    target[i] = bits[i]
        elif kind == _F64:
            wide, found = doubles(out + 8 * start, count), np.uint32(0)
            for i in range(count):
                wide[i] = np.float64(block[i])
                found += one if bits[i] & _INFINITE == _INFINITE else np.uint32(0)
            bad += np.int64(found)
        elif kind == _F16:
            codes, narrow = uint32s(work, count), uint16s(out + 2 * start, count)
            sums = floats(work + 4 * BLOCK, count)
            bad += _narrow(block, sums, 10, 15, 0x7C00, 0x7E00, codes)
            for i in range(count):
                narrow[i] = np.uint16(codes[i] | (bits[i] >> np.uint32(16)) & np.uint32(0x8000))
        elif kind == _I8:
            round_to_int8(block, int8s(out + start, count))
        elif kind == _F4:
            round_to_fp4(block, out + start // 2)
        elif kind == _E8M0:
            powers = uint8s(out + start, count)
            for i in range(count):
                powers[i] = np.uint8((bits[i] >> np.uint32(23)) & np.uint32(0xFF))
                bad += np.int64(powers[i] == np.uint8(255))
        else:
            codes, tiny = uint32s(work, count), uint8s(out + start, count)
            sums = floats(work + 4 * BLOCK, count)
            if kind == _E5M2:
                bad += _narrow(block, sums, 2, 15, 0x7C, 0x7F, codes)
            else:
                bad += _narrow(block, sums, 3, 7, 0x7F, 0x7F, codes)
            for i in range(count):
                tiny[i] = np.uint8(codes[i] | (bits[i] >> np.uint32(24)) & np.uint32(0x80))
    return bad
