"""Apply keep rules (`methods.ops.interface.KeepRule`): set the dropped elements to zero."""

from __future__ import annotations

from typing import Any

import numpy as np

from mergeloom.methods.ops.loops.blocks import Array, compiled, uint8s
from mergeloom.methods.ops.loops.sizes import BLOCK, MARK_BYTES


@compiled
def _hash(first: np.uint32, second: np.uint32, constants: Array, out: Array) -> None:
    """Write the random numbers of `methods.ops.draws` with these key words, as uint32."""
    weyl, factor, other = constants
    for place in range(out.size):
        x = np.uint32(first + np.uint32(np.uint32(place) * weyl))
        x ^= x >> np.uint32(16)
        x = np.uint32(x * factor) ^ second
        x ^= x >> np.uint32(15)
        out[place] = np.uint32(x * other)


@compiled
def draw(vector: Any, start: int, constants: Array, numbers: Array) -> None:
    """Write the random numbers (int32) of a vector's elements from ``start`` on."""
    out, weyl = numbers.view(np.uint32), constants[0]
    end = min(max(vector.word_end - start, 0), out.size)
    first = np.uint32(vector.first + np.uint32(np.uint32(start) * weyl))
    _hash(first, vector.second, constants, out[:end])
    if end < out.size:
        place = np.uint32(start + end - vector.word_end)
        first = np.uint32(vector.next_first + np.uint32(place * weyl))
        _hash(first, vector.next_second, constants, out[end:])


@compiled
def _keep_above(part: Array, limit: np.float32) -> None:
    """Set to zero, in place, magnitudes of at most ``limit``; NaN is kept."""
    for i in range(part.size):
        part[i] = np.float32(0.0) if abs(part[i]) <= limit else part[i]


@compiled
def _keep_upto(part: Array, limit: np.float32) -> None:
    """Set to zero, in place, magnitudes above ``limit`` and NaN."""
    for i in range(part.size):
        part[i] = part[i] if abs(part[i]) <= limit else np.float32(0.0)


@compiled
def _drop_unmarked(bits: Array, marks: Array) -> None:
    """Set to zero the unmarked elements of a block; `sizes.marks_bytes` has the layout of marks."""
    for bit in range(8):
        part = bits[min(bit * MARK_BYTES, bits.size) : (bit + 1) * MARK_BYTES]
        own, mask = marks[: part.size], np.uint8(1 << bit)  # a selection vectorises, a branch not
        for j in range(part.size):
            part[j] = part[j] if own[j] & mask else np.int32(0)


@compiled
def trim(vector: Any, start: int, block: Array, numbers: Array, constants: Array) -> None:
    """Set to zero the dropped elements of a block of a vector, which begins at element ``start``.

    ``start`` is a multiple of `BLOCK`. ``numbers`` (int32) is working memory of the same length.
    """
    count, bits = block.size, block.view(np.int32)
    if vector.above:
        end = min(max(vector.above_end - start, 0), count)
        _keep_above(block[:end], vector.above_until_end)
        _keep_above(block[end:], vector.above_from_end)
    if vector.upto:
        end = min(max(vector.upto_end - start, 0), count)
        _keep_upto(block[:end], vector.upto_until_end)
        _keep_upto(block[end:], vector.upto_from_end)
    if vector.draws:
        draw(vector, start, constants, numbers)
        for i in range(count):
            bits[i] = bits[i] if numbers[i] < vector.bound else 0
    if vector.marks:
        _drop_unmarked(bits, uint8s(vector.marks + start // BLOCK * MARK_BYTES, MARK_BYTES))
