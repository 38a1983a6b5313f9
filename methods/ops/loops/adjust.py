"""Adjust the elements of a matrix by one number per block: subtract, multiply or divide."""

from __future__ import annotations

from typing import Any

import numpy as np

from mergeloom.methods.ops.loops.blocks import (
    Address,
    Array,
    Loop,
    blocks_at,
    compiled,
    floats,
    int32s,
    load,
)
from mergeloom.methods.ops.loops.convert import widen_run
from mergeloom.methods.ops.loops.packed import code_at, is_packed, values_of
from mergeloom.methods.ops.loops.sizes import BLOCK, ElementType

_SUBTRACT, _MULTIPLY = 0, 1
_BF16, _F16 = int(ElementType.BF16), int(ElementType.F16)
_F32, _F64, _I64, _I32 = (
    int(ElementType.F32),
    int(ElementType.F64),
    int(ElementType.I64),
    int(ElementType.I32),
)
_I16, _U64, _U32, _U16 = (
    int(ElementType.I16),
    int(ElementType.U64),
    int(ElementType.U32),
    int(ElementType.U16),
)


@compiled
def _size(kind: int) -> int:
    """Size in bytes of an element of a dtype that is not packed."""
    if kind in (_F64, _I64, _U64):
        return 8
    if kind in (_F32, _I32, _U32):
        return 4
    return 2 if kind in (_BF16, _F16, _I16, _U16) else 1


@compiled
def _read_numbers(record: Any, row: int, room: Address, work: Address) -> None:
    """Write the numbers of one row of blocks, as float32, to ``room``.

    ``room`` has 8 bytes per block: 4 for the number and 4 of working memory.
    """
    count, kind, place = record.across, record.kind, row * record.row_step
    numbers, codes = floats(room, count), int32s(room + 4 * count, count)
    if is_packed(kind):
        for j in range(count):
            codes[j] = code_at(record.numbers, kind, place + j * record.step)
        values_of(kind, codes, numbers)
    else:
        size = _size(kind)
        if record.step == 1:
            widen_run(record.numbers + size * place, kind, count, room, work)
        else:
            for j in range(count):
                at = record.numbers + size * (place + j * record.step)
                widen_run(at, kind, 1, room + 4 * j, work)
    if record.table:
        _decode(record, place, numbers)


@compiled
def _decode(record: Any, place: int, numbers: Array) -> None:
    """Decode numbers that are quantised themselves (`methods.ops.interface.Lookup`)."""
    table = floats(record.table, 256)
    for j in range(numbers.size):
        own = place + j * record.step
        value = table[np.int32(numbers[j])]
        value *= floats(record.nested + 4 * (own // record.nested_size), 1)[0]
        numbers[j] = value + np.float32(record.offset)


@compiled
def _apply(part: Array, how: int, number: float, zero: float, factor: float) -> None:
    """Adjust elements by one number, in place."""
    if how == _SUBTRACT:
        for i in range(part.size):
            part[i] = ((part[i] - zero) - number) * factor
    elif how == _MULTIPLY:
        for i in range(part.size):
            part[i] = ((part[i] - zero) * number) * factor
    else:
        for i in range(part.size):
            part[i] = ((part[i] - zero) / number) * factor


@compiled
def _apply_each(line: Array, how: int, numbers: Array, zero: float, factor: float) -> None:
    """Adjust each element by its own number, in place."""
    if how == _SUBTRACT:
        for i in range(line.size):
            line[i] = ((line[i] - zero) - numbers[i]) * factor
    elif how == _MULTIPLY:
        for i in range(line.size):
            line[i] = ((line[i] - zero) * numbers[i]) * factor
    else:
        for i in range(line.size):
            line[i] = ((line[i] - zero) / numbers[i]) * factor


@compiled
def _spread(numbers: Array, groups: Array, each: Array) -> None:
    """Write the number of each column to ``each``; NaN for columns of no group."""
    for i in range(each.size):
        group = groups[i]
        each[i] = numbers[group] if 0 <= group < numbers.size else np.float32(np.nan)


@Loop
def adjust(
    source: Address,
    size: int,
    record: Address,
    how: int,
    zero: float,
    factor: float,
    out: Address,
    rows: int,
    row: int,
    room: Address,
    work: Address,
) -> None:
    """Adjust a matrix by block numbers: `methods.ops.interface.Ops.adjust`.

    ``how`` is an `Adjustment`. ``room`` has 8 bytes per block of a row and, if there are groups, 4
    bytes per column.
    """
    blocks, current = blocks_at(record, 1)[0], -1
    across, columns = blocks.across, blocks.columns
    found, each = floats(room, across), floats(room + 8 * across, row)
    lowered, scaled = np.float32(zero), np.float32(factor)
    for number in range(rows):
        place = blocks.first + number
        wanted = place // blocks.height * blocks.down + place % blocks.height // blocks.rows
        if wanted != current:
            _read_numbers(blocks, wanted, room, work)
            current = wanted
        line = floats(out + 4 * number * row, row)
        for start in range(0, row, BLOCK):
            load(source, size, number * row + start, line[start : start + BLOCK])
        if blocks.groups:
            _spread(found, int32s(blocks.groups, row), each)
            _apply_each(line, how, each, lowered, scaled)
        elif columns == 1:
            _apply_each(line, how, found, lowered, scaled)
        else:
            for j in range(across):
                part = line[j * columns : (j + 1) * columns]
                _apply(part, how, found[j], lowered, scaled)


@Loop
def look_up(
    source: Address,
    size: int,
    table: Address,
    entries: int,
    out: Address,
    count: int,
    work: Address,
) -> None:
    """Replace indices by table entries: `methods.ops.interface.Ops.look_up`."""
    values, last = floats(table, entries), np.int32(entries - 1)
    for start in range(0, count, BLOCK):
        block = floats(out + 4 * start, min(BLOCK, count - start))
        load(source, size, start, block)
        for i in range(block.size):
            block[i] = values[min(max(np.int32(block[i]), np.int32(0)), last)]
