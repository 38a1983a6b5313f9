"""Encodes and decodes quantised blocks with the library of their format. Only workers import this.

Blocks are processed in small groups, so that the library's memory use does not depend on the tile
size. The values of a block depend on that block alone.
"""

from __future__ import annotations

from typing import Any

from mergeloom.engine.base.dtypes import DType

_CHUNK = 1 << 16
"""Elements encoded or decoded at once: a multiple of every block size."""

_MAX_SAFE = 65504.0
"""Magnitude below which no block scale, a float16, overflows."""


def decode(dtype: DType, blocks: Any, out: Any) -> None:
    """Decode whole blocks of quantised values.

    ``blocks`` is a flat numpy array of uint8, ``out`` a flat numpy array of float32 for the values.
    """
    import gguf
    import numpy as np

    kind = gguf.GGMLQuantizationType[dtype.code]
    step = dtype.nbytes(_CHUNK)
    with np.errstate(all="ignore"):  # non-finite scales give non-finite values
        for number, start in enumerate(range(0, len(blocks), step)):
            part = blocks[start : start + step].reshape(1, -1)
            values = gguf.dequantize(part, kind).reshape(-1)
            out[number * _CHUNK : number * _CHUNK + len(values)] = values


def encode(dtype: DType, values: Any, out: Any) -> int:
    """Quantise values to whole blocks by the rule of the library.

    ``values`` is a flat numpy array of float32, ``out`` a flat numpy array of uint8 for the blocks.
    Returns the number of values that are not finite, or may not be after decoding.
    """
    import gguf
    import numpy as np

    kind = gguf.GGMLQuantizationType[dtype.code]
    may_be_nonfinite = 0
    with np.errstate(all="ignore"):
        for start in range(0, len(values), _CHUNK):
            part = values[start : start + _CHUNK]
            may_be_nonfinite += int(np.count_nonzero(~(np.abs(part) < _MAX_SAFE)))
            blocks = gguf.quantize(part.reshape(1, -1), kind).reshape(-1)
            at = dtype.nbytes(start)
            out[at : at + len(blocks)] = blocks
    return may_be_nonfinite
