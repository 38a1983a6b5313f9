"""Element types as safetensors headers name them, without importing torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class DType:
    """One element type.

    ``code`` is its name in a safetensors header (``"BF16"``), ``name`` its name in torch
    (``"bfloat16"``), ``bits`` what one element takes. Of those with 4 bits two share a byte, the
    first in its lower half; torch has no name for them.
    """

    code: str
    name: str
    bits: int
    floating: bool

    @property
    def size(self) -> int:
        """Bytes of one element, of which it fills at least a part."""
        return -(-self.bits // 8)

    def nbytes(self, elements: int) -> int:
        """Bytes of a run of elements."""
        return -(-elements * self.bits // 8)

    @property
    def torch(self) -> torch.dtype:
        import torch

        dtype: Any = getattr(torch, self.name)
        return dtype  # type: ignore[no-any-return]  # getattr is untyped

    def __str__(self) -> str:
        return self.name


BF16 = DType("BF16", "bfloat16", 16, True)
F16 = DType("F16", "float16", 16, True)
F32 = DType("F32", "float32", 32, True)
F64 = DType("F64", "float64", 64, True)
U8 = DType("U8", "uint8", 8, False)
F8_E8M0 = DType("F8_E8M0", "float8_e8m0fnu", 8, True)
"""Powers of two: the scales of microscaling formats."""
F4 = DType("F4", "float4_e2m1", 4, True)
"""The elements of MXFP4 and NVFP4 (OCP Microscaling Formats, version 1.0): 0, 0.5, 1, 1.5, 2, 3,
4, 6 and their negatives."""
I4 = DType("I4", "int4", 4, False)
"""-8 to 7 in two's complement; no code of safetensors."""
U4 = DType("U4", "uint4", 4, False)
"""0 to 15; no code of safetensors."""

_ALL = (
    BF16,
    F16,
    F32,
    F64,
    DType("F8_E4M3", "float8_e4m3fn", 8, True),
    DType("F8_E5M2", "float8_e5m2", 8, True),
    F8_E8M0,
    F4,
    DType("I64", "int64", 64, False),
    DType("I32", "int32", 32, False),
    DType("I16", "int16", 16, False),
    DType("I8", "int8", 8, False),
    DType("U64", "uint64", 64, False),
    DType("U32", "uint32", 32, False),
    DType("U16", "uint16", 16, False),
    U8,
    DType("BOOL", "bool", 8, False),
)

BY_CODE = {dtype.code: dtype for dtype in _ALL}
BY_NAME = {dtype.name: dtype for dtype in _ALL}
