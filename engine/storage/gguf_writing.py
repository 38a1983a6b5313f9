"""Build the header of a GGUF file; `engine.storage.gguf` describes the format."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from mergeloom.engine.base.dtypes import DType
from mergeloom.engine.storage.gguf import ALIGNMENT, DEFAULT_ALIGNMENT, MAGIC, TYPES

_VERSION = 3
_U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_NUMBERS = {dtype: number for number, dtype in TYPES.items()}


def build_gguf(
    values: Mapping[str, Any], tensors: Sequence[tuple[str, DType, tuple[int, ...]]]
) -> tuple[bytes, list[int]]:
    """The bytes before the data of ``tensors``, and the file offset of each tensor.

    Tensors are contiguous, in this order. Values are non-negative integers (u32), floats (f32),
    bools, strings, and lists of strings, of integers (i32) or of floats (f32).

    Raises:
        ValueError: the size of a tensor would misalign the next one.
    """
    sizes = [dtype.nbytes(math.prod(shape)) for _, dtype, shape in tensors]
    alignment = DEFAULT_ALIGNMENT
    while any(size % alignment for size in sizes[:-1]):
        alignment //= 2
        if alignment < 8:
            odd = next(number for number, size in enumerate(sizes) if size % 8)
            raise ValueError(f"'{tensors[odd][0]}' has {sizes[odd]} bytes, not a multiple of 8")
    if alignment != DEFAULT_ALIGNMENT:
        values = {**values, ALIGNMENT: alignment}
    parts = [MAGIC + struct.pack("<IQQ", _VERSION, len(tensors), len(values))]
    parts += [_text(key) + _value(value) for key, value in values.items()]
    offset = 0
    starts = []
    for (name, dtype, shape), size in zip(tensors, sizes, strict=True):
        dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        place = struct.pack("<IQ", _NUMBERS[dtype], offset)
        parts.append(_text(name) + dimensions + place)
        starts.append(offset)
        offset += size
    header = b"".join(parts)
    header += bytes(-len(header) % alignment)
    return header, [len(header) + start for start in starts]


def _value(value: Any) -> bytes:
    if isinstance(value, list):
        items = b"".join(_content(item, True)[1] for item in value)
        kind = _content(value[0], True)[0] if value else _STRING
        return struct.pack("<IIQ", _ARRAY, kind, len(value)) + items
    kind, content = _content(value, False)
    return struct.pack("<I", kind) + content


def _content(value: Any, in_list: bool) -> tuple[int, bytes]:
    """Type and bytes of a value, or of an item of a list."""
    if isinstance(value, str):
        return _STRING, _text(value)
    if isinstance(value, bool):
        return _BOOL, struct.pack("<?", value)
    if isinstance(value, float):
        return _F32, struct.pack("<f", value)
    return (_I32, struct.pack("<i", value)) if in_list else (_U32, struct.pack("<I", value))


def _text(value: str) -> bytes:
    content = value.encode("utf-8", "replace")
    return struct.pack("<Q", len(content)) + content
