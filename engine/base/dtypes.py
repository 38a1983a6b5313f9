"""Element types, under their names in safetensors headers; does not import torch."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

from mergeloom.engine.base.records import dataclass

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class DType:
    """One element type.

    ``code`` is the name in a safetensors header (``"BF16"``), ``name`` the name in torch
    (``"bfloat16"``), ``bits`` the size of one element. ``block`` elements share whole bytes and are
    read and written together, the first in the lowest bits unless stated otherwise; torch has no
    name for such types. Larger blocks contain their own scales and are decoded by the library
    ``codec``.
    """

    code: str
    name: str
    bits: int | Fraction
    floating: bool
    block: int = 1
    codec: str = ""
    stored: DType | None = None
    """The type of the stored numbers, for types with a few numbers for each ``block`` elements, and
    for types that are stored as another type."""

    @property
    def holds(self) -> str:
        """What the elements are, for messages."""
        if self.floating:
            return "numbers"
        return "complex numbers" if self.name.startswith("complex") else "integers"

    @property
    def size(self) -> int:
        """Bytes of one element, rounded up."""
        return -(-self.bits // 8)

    def nbytes(self, elements: int) -> int:
        """Bytes of a run of elements, in whole blocks."""
        if self.block > 1:
            elements = -(-elements // self.block) * self.block
        return -(-elements * self.bits // 8)

    def numbers(self, elements: int) -> int:
        """Number of stored numbers (`stored`) for a run of elements."""
        return (
            elements if self.stored is None else self.nbytes(elements) * 8 // int(self.stored.bits)
        )

    def for_blocks(self, count: int, block: int) -> DType:
        """A type with ``count`` elements of this type for every ``block`` elements, also for a last
        partial block."""
        bits, code = Fraction(count * self.bits, block), f"{self.code} {count}/{block}"
        return DType(code, self.name, bits, self.floating, block=block, stored=self)

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
"""Powers of two, the scales of microscaling formats."""
F4 = DType("F4", "float4_e2m1", 4, True, block=2)
"""The elements of MXFP4 and NVFP4 (OCP Microscaling Formats, version 1.0): 0, 0.5, 1, 1.5, 2, 3,
4, 6 and their negatives."""
F4_BYTES = DType("F4 in U8", "uint8", 4, True, block=2, stored=F4)
"""The same, stored in bytes."""
I4 = DType("I4", "int4", 4, False, block=2)
"""-8 to 7 in two's complement; not a safetensors code."""
U4 = DType("U4", "uint4", 4, False, block=2)
"""0 to 15; not a safetensors code."""
U4_UPPER = DType("U4_UPPER", "uint4_upper_first", 4, False, block=2)
"""0 to 15, the first of two in the upper half of their byte, as bitsandbytes packs them."""
U4_EVEN = DType("U4_EVEN", "uint4_even_first", 4, False, block=8)
"""0 to 15, packed as by AWQ: of eight elements in a word, those at even positions come first, then
those at odd positions (element 1 is in bits 16 to 19)."""
U2 = DType("U2", "uint2", 2, False, block=4)
"""0 to 3; not a safetensors code."""

_ALL = (
    BF16,
    F16,
    F32,
    F64,
    DType("F8_E4M3", "float8_e4m3fn", 8, True),
    DType("F8_E5M2", "float8_e5m2", 8, True),
    DType("F8_E4M3FNUZ", "float8_e4m3fnuz", 8, True),
    DType("F8_E5M2FNUZ", "float8_e5m2fnuz", 8, True),
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
    DType("C64", "complex64", 64, False),
)

BY_CODE = {dtype.code: dtype for dtype in _ALL}
BY_NAME = {dtype.name: dtype for dtype in _ALL}


def _ggml(name: str, block: int, nbytes: int) -> DType:
    """A block type of ``block`` elements in ``nbytes`` bytes."""
    return DType(name, name.lower(), Fraction(8 * nbytes, block), True, block, codec="gguf")


GGML = {
    number: _ggml(name, block, nbytes)
    for number, name, block, nbytes in (
        *((2, "Q4_0", 32, 18), (3, "Q4_1", 32, 20), (6, "Q5_0", 32, 22), (7, "Q5_1", 32, 24)),
        *((8, "Q8_0", 32, 34), (10, "Q2_K", 256, 84), (11, "Q3_K", 256, 110)),
        *((12, "Q4_K", 256, 144), (13, "Q5_K", 256, 176), (14, "Q6_K", 256, 210)),
        *((16, "IQ2_XXS", 256, 66), (17, "IQ2_XS", 256, 74), (18, "IQ3_XXS", 256, 98)),
        *((19, "IQ1_S", 256, 50), (20, "IQ4_NL", 32, 18), (21, "IQ3_S", 256, 110)),
        *((22, "IQ2_S", 256, 82), (23, "IQ4_XS", 256, 136), (29, "IQ1_M", 256, 56)),
        *((34, "TQ1_0", 256, 54), (35, "TQ2_0", 256, 66), (39, "MXFP4", 32, 17)),
        (40, "NVFP4", 64, 36),
    )
}
"""Block types of GGUF files by type number, with elements and bytes per block as in ggml."""
