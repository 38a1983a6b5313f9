"""Random choices that hang on the rank of an element in its row."""

from __future__ import annotations

import numpy as np

from mergeloom.methods.ops.loops.blocks import (
    Address,
    Array,
    Loop,
    bytes_,
    compiled,
    difference,
    fill,
    floats,
    ints,
    vectors_at,
    words,
)
from mergeloom.methods.ops.loops.keep import draw, trim
from mergeloom.methods.ops.loops.ranks import decide_by_rank, room_for_ranks
from mergeloom.methods.ops.loops.sizes import BLOCK, MARKED, marks_bytes, whole_rows

_whole_rows, _marks_bytes = compiled(whole_rows), compiled(marks_bytes)


@compiled
def _mark(numbers: Array, bound: int, start: int, marks: Array) -> None:
    """Mark which numbers, of elements from ``start`` on, lie below ``bound``."""
    done = 0
    while done < numbers.size:
        place = start + done
        column = place % MARKED
        bit, first = np.uint8(place % BLOCK // MARKED), place // BLOCK * MARKED + column
        part = numbers[done : done + MARKED - column]
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
    """See `methods.ops.words.Ops.choose_by_rank`; ``steps`` (int32) are as many as ``row``."""
    vector, hashed, bounds = vectors_at(vectors, 1)[0], words(constants, 3), ints(steps, row)
    marked, length = bytes_(marks, _marks_bytes(size)), _whole_rows(row)
    step = 4 * length
    block, bits, other = floats(work, length), ints(work, length), floats(work + step, length)
    numbers, room = ints(work + 2 * step, length), room_for_ranks(work + 3 * step, row)
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
    """Mark the elements that are not zero once a vector is trimmed; see `trim`."""
    vector, hashed = vectors_at(vectors, 1)[0], words(constants, 3)
    marked, step = bytes_(marks, _marks_bytes(size)), 4 * BLOCK
    block, bits = floats(work, BLOCK), ints(work, BLOCK)
    other, numbers = floats(work + step, BLOCK), ints(work + 2 * step, BLOCK)
    fill(marked, 0)
    for start in range(0, size, BLOCK):
        count = min(BLOCK, size - start)
        difference(vector, start, block[:count], other[:count])
        trim(vector, start, block[:count], numbers[:count], hashed)
        for i in range(count):
            numbers[i] = np.int32(0) if bits[i] & 0x7FFFFFFF else np.int32(1)
        _mark(numbers[:count], 1, start, marked)
