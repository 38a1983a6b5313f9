"""The values of blocks of codes, told by the library of their format. Only workers import this.

Codes are decoded a few at a time, so that what the library needs for it stays small whatever the
tile; a block's values depend on that block alone.
"""

from __future__ import annotations

from typing import Any

from mergeloom.engine.base.dtypes import DType

_CHUNK = 1 << 16
"""Elements that are decoded at once: a multiple of every block."""


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
