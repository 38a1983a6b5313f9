"""What this process occupies."""

from __future__ import annotations

import ctypes

import pytest

from mergeloom.engine.base.units import MIB
from mergeloom.engine.hardware import process as machine


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="no glibc here")
def test_gaps_in_the_heap_are_returned_to_the_kernel() -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
    pieces, between = [], []
    for _ in range(1000):  # of a size that comes from the heap, with small ones between that stay
        pieces.append(libc.malloc(100_000))
        ctypes.memset(pieces[-1], 1, 100_000)
        between.append(libc.malloc(1000))
    for piece in pieces:
        libc.free(piece)
    before = machine.resident_bytes()
    machine.trim_heap()
    assert machine.resident_bytes() < before - 50 * MIB
    for piece in between:
        libc.free(piece)
