"""The values of blocks of codes, told by the library of their format. Only workers import it.

Codes are made and read a few at a time, so that what the library needs for it stays small whatever
the tile; a block's values depend on that block alone.
"""

from __future__ import annotations

from typing import Any

from mergeloom.engine.base.dtypes import DType

_CHUNK = 1 << 16
"""Elements that are decoded or encoded at once: a multiple of every block."""

_SAFE = 65504.0
"""Below this no scale of a block, which is a float16, becomes infinite."""


def decode(dtype: DType, codes: Any, out: Any) -> None:
    """Write the values of whole blocks.

    ``codes`` is a flat array of numpy of uint8, ``out`` one of float32 with room for them.
    """
    import gguf
    import numpy as np

    kind = gguf.GGMLQuantizationType[dtype.code]
    step = dtype.nbytes(_CHUNK)
    with np.errstate(all="ignore"):  # scales that are not finite give values that are not
        for number, start in enumerate(range(0, len(codes), step)):
            part = codes[start : start + step].reshape(1, -1)
            values = gguf.dequantize(part, kind).reshape(-1)
            out[number * _CHUNK : number * _CHUNK + len(values)] = values


def encode(dtype: DType, values: Any, out: Any) -> int:
    """Write values as whole blocks: the nearest that blocks can hold, by the library's rule.

    ``values`` is a flat array of numpy of float32, ``out`` one of uint8 with room for the blocks.
    Returns how many values are not finite, or may not be when they are taken back.
    """
    import gguf
    import numpy as np

    kind = gguf.GGMLQuantizationType[dtype.code]
    doubtful = 0
    with np.errstate(all="ignore"):
        for start in range(0, len(values), _CHUNK):
            part = values[start : start + _CHUNK]
            doubtful += int(np.count_nonzero(~(np.abs(part) < _SAFE)))
            codes = gguf.quantize(part.reshape(1, -1), kind).reshape(-1)
            at = dtype.nbytes(start)
            out[at : at + len(codes)] = codes
    return doubtful
