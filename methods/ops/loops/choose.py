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
from mergeloom.methods.ops.loops.keep import draw
from mergeloom.methods.ops.loops.ranks import decide_by_rank, room_for_ranks
from mergeloom.methods.ops.loops.sizes import BLOCK, NOTED, notes_bytes, whole_rows

_whole_rows, _notes_bytes = compiled(whole_rows), compiled(notes_bytes)


@compiled
def _note(numbers: Array, bound: int, start: int, notes: Array) -> None:
    """Note which numbers, of elements from ``start`` on, lie below ``bound``."""
    done = 0
    while done < numbers.size:
        place = start + done
        column = place % NOTED
        bit, first = np.uint8(place % BLOCK // NOTED), place // BLOCK * NOTED + column
        part = numbers[done : done + NOTED - column]
        own = notes[first : first + part.size]
        for j in range(part.size):
            own[j] |= np.uint8(np.uint8(part[j] < bound) << bit)
        done += part.size


@Loop
def choose_by_rank(
    vectors: Address,
    constants: Address,
    steps: Address,
    row: int,
    notes: Address,
    size: int,
    work: Address,
) -> None:
    """See `methods.ops.compiled_ops.Loops.choose_by_rank`; ``steps`` is int32, ``row`` of them."""
    vector, hashed, bounds = vectors_at(vectors, 1)[0], words(constants, 3), ints(steps, row)
    noted, length = bytes_(notes, _notes_bytes(size)), _whole_rows(row)
    step = 4 * length
    block, bits, other = floats(work, length), ints(work, length), floats(work + step, length)
    numbers, room = ints(work + 2 * step, length), room_for_ranks(work + 3 * step, row)
    fill(noted, 0)
    for start in range(0, size, length):
        count = min(length, size - start)
        drawn = numbers[:count]
        difference(vector, start, block[:count], other[:count])
        draw(vector, start, hashed, drawn)
        decide_by_rank(bits[:count], drawn, bounds, room)
        _note(drawn, bounds[0], start, noted)
