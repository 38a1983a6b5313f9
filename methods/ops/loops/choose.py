"""Mark elements: by random choice that depends on rank, and by keep rules."""

from __future__ import annotations

import numpy as np

from mergeloom.methods.ops.loops.blocks import (
    Address,
    Array,
    Loop,
    compiled,
    difference,
    fill,
    floats,
    int32s,
    uint8s,
    uint32s,
    vectors_at,
)
from mergeloom.methods.ops.loops.keep import draw, trim
from mergeloom.methods.ops.loops.ranks import decide_by_rank, room_for_ranks
from mergeloom.methods.ops.loops.sizes import BLOCK, MARK_BYTES, marks_bytes, whole_rows

_whole_rows, _marks_bytes = compiled(whole_rows), compiled(marks_bytes)


@compiled
def _mark(numbers: Array, bound: int, start: int, marks: Array) -> None:
    """Set the marks of elements, from ``start`` on, whose number is below ``bound``."""
    done = 0
    while done < numbers.size:
        place = start + done
        column = place % MARK_BYTES
        bit, first = np.uint8(place % BLOCK // MARK_BYTES), place // BLOCK * MARK_BYTES + column
        part = numbers[done : done + MARK_BYTES - column]
        own = marks[first : first + part.size]
        for j in range(part.size):
            own[j] |= np.uint8(np.uint8(part[j] < bound) << bit)
        done += part.size


@Loop
def choose_by_rank(
    vectors: Address,
    constants: Address,
    steps: Address,
    row: int,
    marks: Address,
    size: int,
    work: Address,
) -> None:
    """Mark by random number and rank: `methods.ops.interface.Ops.choose_by_rank`.

    ``steps`` (int32) has ``row`` elements.
    """
    vector, hashed, bounds = vectors_at(vectors, 1)[0], uint32s(constants, 3), int32s(steps, row)
    marked, length = uint8s(marks, _marks_bytes(size)), _whole_rows(row)
    step = 4 * length
    block, bits, other = floats(work, length), int32s(work, length), floats(work + step, length)
    numbers, room = int32s(work + 2 * step, length), room_for_ranks(work + 3 * step, row)
    fill(marked, 0)
    for start in range(0, size, length):
        count = min(length, size - start)
        drawn = numbers[:count]
        difference(vector, start, block[:count], other[:count])
        draw(vector, start, hashed, drawn)
        decide_by_rank(bits[:count], drawn, bounds, room)
        _mark(drawn, bounds[0], start, marked)


@Loop
def mark(vectors: Address, constants: Address, marks: Address, size: int, work: Address) -> None:
    """Mark the nonzero elements of a trimmed vector (`methods.ops.loops.keep.trim`)."""
    vector, hashed = vectors_at(vectors, 1)[0], uint32s(constants, 3)
    marked, step = uint8s(marks, _marks_bytes(size)), 4 * BLOCK
    block, bits = floats(work, BLOCK), int32s(work, BLOCK)
    other, numbers = floats(work + step, BLOCK), int32s(work + 2 * step, BLOCK)
    fill(marked, 0)
    for start in range(0, size, BLOCK):
        count = min(BLOCK, size - start)
        difference(vector, start, block[:count], other[:count])
        trim(vector, start, block[:count], numbers[:count], hashed)
        for i in range(count):
            numbers[i] = np.int32(0) if bits[i] & 0x7FFFFFFF else np.int32(1)
        _mark(numbers[:count], 1, start, marked)
