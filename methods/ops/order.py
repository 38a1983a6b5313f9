"""Sorted magnitudes of a few elements in plain memory.

For a small tensor, sorting finds the element of a rank faster than walking through tables of
counters.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from mergeloom.engine.base.dtypes import BF16
from mergeloom.engine.memory.elements import Elements
from mergeloom.methods.ops.interface import Vector

if TYPE_CHECKING:
    import numpy as np

_INFINITY = 0x7F800000
"""The float32 bits of infinity; larger magnitudes are NaN."""


def in_order(vector: Vector) -> np.ndarray[Any, Any] | None:
    """The float32 bits of the magnitudes of a vector, ascending: int32.

    ``None`` if the vector has factors or contains NaN.
    """
    import numpy as np

    if vector.factors is not None:
        return None
    values = _floats(vector.array)
    if vector.minus is not None:
        with np.errstate(invalid="ignore", over="ignore"):
            values = values - _floats(vector.minus)
    bits = values.view(np.int32) & 0x7FFFFFFF
    bits.sort()
    return None if bits.size and bits[-1] > _INFINITY else bits


def _floats(elements: Elements) -> np.ndarray[Any, Any]:
    """bfloat16 or float32 elements as float32; valid as long as the elements."""
    import numpy as np

    if elements.dtype.code != BF16.code:
        memory: Any = (ctypes.c_float * elements.count).from_address(elements.address)
        return np.frombuffer(memory, np.float32)
    halves: Any = (ctypes.c_uint16 * elements.count).from_address(elements.address)
    bits: np.ndarray[Any, Any] = np.frombuffer(halves, np.uint16).astype(np.uint32)
    bits <<= 16
    return bits.view(np.float32)
