"""Move elements: rows selected from several tensors, and transposed matrices."""

from __future__ import annotations

import numpy as np

from mergeloom.methods.ops.loops.blocks import (
    Address,
    Loop,
    doubles,
    fill,
    floats,
    load,
    uint8s,
    vectors_at,
)
from mergeloom.methods.ops.loops.sizes import BLOCK

_TILE = 32
"""Rows and columns of the tile that is transposed at once."""


@Loop
def mean_rows(
    vectors: Address,
    count_of_vectors: int,
    table: Address,
    rows: int,
    row: int,
    out: Address,
    work: Address,
) -> None:
    """Write means of selected rows: `methods.ops.interface.Ops.mean_rows`.

    ``table`` begins with the entry of the first row.
    """
    given = vectors_at(vectors, count_of_vectors)
    chosen = uint8s(table, rows * count_of_vectors)
    total, block = doubles(work, BLOCK), floats(work + 8 * BLOCK, BLOCK)
    for number in range(rows):
        own = chosen[number * count_of_vectors : (number + 1) * count_of_vectors]
        count = last = 0
        for each in range(count_of_vectors):
            if own[each]:
                count, last = count + 1, each
        end = (number + 1) * row
        for start in range(number * row, end, BLOCK):
            length = min(BLOCK, end - start)
            part = floats(out + 4 * start, length)
            if count == 0:
                fill(part, np.float32(0.0))
                continue
            if count == 1:
                load(given[last].address, given[last].bytes, start, part)
                continue
            sums, values = total[:length], block[:length]
            fill(sums, 0.0)
            for each in range(count_of_vectors):
                if own[each]:
                    load(given[each].address, given[each].bytes, start, values)
                    for i in range(length):
                        sums[i] += np.float64(values[i])
            for i in range(length):
                part[i] = np.float32(sums[i] / count)


@Loop
def transpose(
    source: Address, size: int, matrices: int, rows: int, columns: int, out: Address, work: Address
) -> None:
    """Write matrices (rows, columns) as (columns, rows); input elements have ``size`` bytes."""
    tile = floats(work, _TILE * _TILE)
    for matrix in range(matrices):
        base = matrix * rows * columns
        for top in range(0, rows, _TILE):
            height = min(_TILE, rows - top)
            for left in range(0, columns, _TILE):
                width = min(_TILE, columns - left)
                for i in range(height):
                    start = base + (top + i) * columns + left
                    load(source, size, start, tile[i * _TILE : i * _TILE + width])
                for j in range(width):
                    part = floats(out + 4 * (base + (left + j) * rows + top), height)
                    for i in range(height):
                        part[i] = tile[i * _TILE + j]
