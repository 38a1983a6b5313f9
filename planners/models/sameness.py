"""Comparison of stored tensors: all bytes of small ones, a sample of large ones.

Apart from integer tensors, no other weights are read while planning.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.engine.run.arrange import read_content
from mergeloom.engine.storage.source import ReadOptions

SAMPLE_BYTES = 1 << 20
"""Tensors of up to this many bytes are compared completely, larger ones by a sample of this
size."""

_NUMBER_OF_BLOCKS = 64


def equal_bytes(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors are equal, based on `SAMPLE_BYTES` spread evenly over them."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    if one.bytes.nbytes <= SAMPLE_BYTES:
        return read_content(one, ReadOptions()) == read_content(other, ReadOptions())
    count = math.prod(one.shape)
    first, second = one.reshape((count,)), other.reshape((count,))
    return all(
        read_content(first.narrow(0, start, stop), ReadOptions())
        == read_content(second.narrow(0, start, stop), ReadOptions())
        for start, stop in _blocks(count, count * SAMPLE_BYTES // one.bytes.nbytes)
    )


def _blocks(count: int, sampled: int) -> Iterator[tuple[int, int]]:
    """Ranges with ``sampled`` of ``count`` elements in total, including the first and last."""
    length = sampled // _NUMBER_OF_BLOCKS
    for number in range(_NUMBER_OF_BLOCKS):
        start = (count - length) * number // (_NUMBER_OF_BLOCKS - 1)
        yield start, start + length
