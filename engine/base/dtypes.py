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
    (``"bfloat16"``), ``size`` the bytes of one element.
    """

    code: str
    name: str
    size: int
    floating: bool

    @property
    def torch(self) -> torch.dtype:
        import torch

        dtype: Any = getattr(torch, self.name)
        return dtype  # type: ignore[no-any-return]  # getattr is untyped

    def __str__(self) -> str:
        return self.name


BF16 = DType("BF16", "bfloat16", 2, True)
F16 = DType("F16", "float16", 2, True)
F32 = DType("F32", "float32", 4, True)
F64 = DType("F64", "float64", 8, True)

_ALL = (
    BF16,
    F16,
    F32,
    F64,
    DType("F8_E4M3", "float8_e4m3fn", 1, True),
    DType("F8_E5M2", "float8_e5m2", 1, True),
    DType("I64", "int64", 8, False),
    DType("I32", "int32", 4, False),
    DType("I16", "int16", 2, False),
    DType("I8", "int8", 1, False),
    DType("U64", "uint64", 8, False),
    DType("U32", "uint32", 4, False),
    DType("U16", "uint16", 2, False),
    DType("U8", "uint8", 1, False),
    DType("BOOL", "bool", 1, False),
)

BY_CODE = {dtype.code: dtype for dtype in _ALL}
BY_NAME = {dtype.name: dtype for dtype in _ALL}
