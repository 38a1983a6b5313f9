"""What the softmax of rows is made of, but for exponentials and sums."""

from __future__ import annotations

from typing import Any

import numpy as np

from methods.loops.blocks import Address, Array, Loop, compiled, doubles, floats, load
from methods.loops.sizes import BLOCK


@compiled
def _raise(highest: Array, others: Array) -> None:
    """Raise elements, in place, to those of ``others`` that are higher."""
    for i in range(others.size):
        own, other = highest[i], others[i]
        highest[i] = max(own, other)


@compiled
def _highest(address: Address, size: int, start: int, count: int, top: Array, block: Array) -> Any:
    """The highest of elements at an address, or any where one is NaN; two blocks are work."""
    width = min(count, BLOCK)
    load(address, size, start, top[:width])
    for first in range(width, count, BLOCK):
        part = block[: min(BLOCK, count - first)]
        load(address, size, start + first, part)
        _raise(top, part)
    while width > 1:
        half = (width + 1) // 2
        _raise(top, top[half:width])
        width = half
    return top[0]


@Loop
def subtract_highest(
    address: Address,
    bytes_: int,
    rows: int,
    row: int,
    out: Address,
    highest: Address,
    work: Address,
) -> None:
    """Write rows of elements of so many bytes, less their highest elements, to ``out`` (float64).

    ``highest`` (float64) gets those elements.
    """
    block, other = floats(work, BLOCK), floats(work + 4 * BLOCK, BLOCK)
    tops = doubles(highest, rows)
    for number in range(rows):
        begin = number * row
        top = np.float64(_highest(address, bytes_, begin, row, block, other))
        tops[number] = top
        for start in range(begin, begin + row, BLOCK):
            part = doubles(out + 8 * start, min(BLOCK, begin + row - start))
            load(address, bytes_, start, block[: part.size])
            for i in range(part.size):
                part[i] = np.float64(block[i]) - top


@Loop
def weigh(
    address: Address,
    bytes_: int,
    minus: Address,
    minus_bytes: int,
    out: Address,
    size: int,
    work: Address,
) -> None:
    """Multiply ``out`` (float64), in place, by the differences of elements at two addresses."""
    block, other = floats(work, BLOCK), floats(work + 4 * BLOCK, BLOCK)
    for start in range(0, size, BLOCK):
        part = doubles(out + 8 * start, min(BLOCK, size - start))
        load(address, bytes_, start, block[: part.size])
        load(minus, minus_bytes, start, other[: part.size])
        for i in range(part.size):
            part[i] *= np.float64(block[i]) - np.float64(other[i])
