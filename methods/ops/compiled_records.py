"""The records that describe vectors, keep rules and blocks to machine code."""

from __future__ import annotations

import ctypes
from typing import Any

from mergeloom.engine.base.dtypes import BF16, F32
from mergeloom.engine.memory.elements import Elements
from mergeloom.methods.ops.draws import WORD, key_words
from mergeloom.methods.ops.interface import Blocks, KeepRule
from mergeloom.methods.ops.loops.record import BLOCKS, VECTOR
from mergeloom.methods.ops.loops.sizes import ElementType

_CTYPES: dict[str, Any] = {
    "q": ctypes.c_int64,
    "i": ctypes.c_int32,
    "I": ctypes.c_uint32,
    "f": ctypes.c_float,
    "?": ctypes.c_bool,
}


class VectorRecord(ctypes.Structure):
    """The C layout of `methods.ops.loops.record.VECTOR`."""

    _fields_ = [(name, _CTYPES[kind]) for name, kind in VECTOR]


class BlocksRecord(ctypes.Structure):
    """The C layout of `methods.ops.loops.record.BLOCKS`."""

    _fields_ = [(name, _CTYPES[kind]) for name, kind in BLOCKS]


SIZES = {BF16.code: 2, F32.code: 4}
"""Bytes of an element of the dtypes that machine code reads without conversion, by code."""


def address_and_size(elements: Elements) -> tuple[int, int]:
    """The address of the elements, and the bytes of each."""
    return elements.address, SIZES[elements.dtype.code]


def describe_blocks(blocks: Blocks) -> BlocksRecord:
    """The record of block numbers; valid as long as their arrays."""
    matrices, down, across = blocks.grid
    record = BlocksRecord()
    numbers = blocks.numbers
    record.numbers, record.kind = numbers.address, ElementType[numbers.dtype.code]
    record.across, record.columns, record.rows = across, blocks.columns, blocks.rows
    record.first, record.height, record.down = blocks.first, blocks.height, down
    record.row_step, record.step = (1, matrices * down) if blocks.across_first else (across, 1)
    if blocks.groups is not None:
        record.groups = blocks.groups.address
    lookup = blocks.lookup
    if lookup is not None:
        record.table, record.nested = lookup.values.address, lookup.scales.address
        record.nested_size, record.offset = lookup.size, lookup.offset
    return record


def describe_rule(record: Any, rule: KeepRule, count: int) -> None:
    """Write a rule into the record of its vector of ``count`` elements."""
    if rule.above is not None:
        above = rule.above
        record.above, record.above_end = True, above.end
        record.above_until_end, record.above_from_end = above.until_end, above.from_end
    if rule.upto is not None:
        upto = rule.upto
        record.upto, record.upto_end = True, upto.end
        record.upto_until_end, record.upto_from_end = upto.until_end, upto.from_end
    if rule.draw is not None:
        draw = rule.draw
        end = WORD - draw.start % WORD
        record.draws, record.word_end, record.bound = True, end, draw.bound
        record.first, record.second = key_words(draw.key, draw.start)
        if end < count:
            record.next_first, record.next_second = key_words(draw.key, draw.start + end)
    if rule.marks is not None:
        record.marks = rule.marks
