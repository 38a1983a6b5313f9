"""Tables of a merge, read block by block from memory or from their source."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mergeloom.engine.base.dtypes import DType
from mergeloom.engine.graph.arithmetic import Ops
from mergeloom.engine.graph.graph import Load
from mergeloom.engine.graph.kernel import Array, table_buffer_bytes, table_rows
from mergeloom.engine.memory.ledger import Block
from mergeloom.engine.memory.pages import page_offset

ReadBytes = Callable[[Load, int, int, Block, int], None]
"""Reads bytes ``[start, stop)`` of a load to a byte of a block."""


class LoadedTable:
    """The rows of a load in blocks; see `engine.graph.kernel.Table`.

    The load is ``held`` in memory (a block, and its first byte there), or each block is read when
    needed by ``read``. Blocks are the same in both cases.
    """

    def __init__(
        self, ops: Ops, load: Load, read: ReadBytes, held: tuple[Block, int] | None
    ) -> None:
        self.count, self.width = load.shape
        self.dtype: DType = load.dtype
        self._ops = ops
        self._load = load
        self._read = read
        self._held = held
        self._buffer: Block | None = None

    def blocks(self, first: int = 0, stop: int | None = None) -> Iterator[tuple[int, int, Array]]:
        """See `engine.graph.kernel.Table`."""
        stop = self.count if stop is None else stop
        step = table_rows(self.width, self.dtype)
        while first < stop:
            number = min(step, stop - first)
            block, at = self._rows(first, number)
            yield first, number, self._ops.view(block, at, self.dtype, number * self.width)
            first += number

    def content(self) -> Iterator[memoryview]:
        """The bytes of all blocks; see `blocks`."""
        step = table_rows(self.width, self.dtype)
        for first in range(0, self.count, step):
            number = min(step, self.count - first)
            block, at = self._rows(first, number)
            yield block.memory[at : at + self.dtype.nbytes(number * self.width)]

    def _rows(self, first: int, number: int) -> tuple[Block, int]:
        """The block with these rows, and the byte where they begin; reads them if necessary."""
        start, stop = (self.dtype.nbytes(row * self.width) for row in (first, first + number))
        if self._held is not None:
            block, at = self._held
            return block, at + start
        if self._buffer is None:
            self._buffer = Block(table_buffer_bytes(self._load.shape, self.dtype))
        at = page_offset(self._load.bytes.position(start))
        self._read(self._load, start, stop, self._buffer, at)
        return self._buffer, at
