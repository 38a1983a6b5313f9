"""Finds NaN and infinity among stored elements."""

from __future__ import annotations

from typing import Any

from mergeloom.engine.base.dtypes import DType
from mergeloom.engine.run.codecs import decode

_EXPONENTS = {
    "BF16": 0x7F80,
    "F16": 0x7C00,
    "F32": 0x7F800000,
    "F64": 0x7FF0000000000000,
    "F8_E4M3": 0x7F,
    "F8_E5M2": 0x7C,
    "F8_E8M0": 0xFF,
}
"""Exponent bits, all 1 in NaN and infinity."""

_ONLY_NAN = {"F8_E4M3FNUZ": 0x80, "F8_E5M2FNUZ": 0x80}
"""The one bit pattern that is not finite, in types that have a NaN and no infinity."""


def all_finite(content: memoryview, dtype: DType) -> bool:
    """Whether all elements are finite. Runs at memory speed: among numbers of one sign, non-finite
    ones have the largest bit patterns.
    """
    import numpy as np

    bits = np.frombuffer(content, f"u{dtype.size}")
    if dtype.code in _ONLY_NAN:
        return _ONLY_NAN[dtype.code] not in bits
    exponent = _EXPONENTS[dtype.code]
    if not bits.size:
        return True
    negative = exponent | 1 << (8 * dtype.size - 1)
    return bool(bits.max() < negative and bits.view(f"i{dtype.size}").max() < exponent)


def not_finite(content: memoryview, dtype: DType, count: int) -> Any:
    """A numpy mask of the ``count`` elements that are not finite."""
    import numpy as np

    if dtype.codec:
        values = np.empty(count, np.float32)
        decode(dtype, np.frombuffer(content, np.uint8), values)
        return ~np.isfinite(values)
    stored = dtype.stored or dtype
    if stored.block > 1:
        return np.zeros(count, bool)
    bits = np.frombuffer(content, f"u{stored.size}")
    if stored.code in _ONLY_NAN:
        return bits == _ONLY_NAN[stored.code]
    mask = bits.dtype.type(_EXPONENTS.get(stored.code, 0))
    return (bits & mask == mask) if mask else np.zeros(bits.size, bool)
