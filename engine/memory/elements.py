"""Arrays of elements in main memory, and scratch memory used as a stack, without numpy or torch."""

from __future__ import annotations

from mergeloom.engine.base.dtypes import F32, DType
from mergeloom.engine.memory.ledger import Block
from mergeloom.engine.memory.pages import PAGE


class Elements:
    """``count`` contiguous elements of a dtype at an address.

    They are valid while the block that contains the address is granted.
    """

    __slots__ = ("address", "count", "dtype")

    def __init__(self, address: int, dtype: DType, count: int) -> None:
        self.address = address
        self.dtype = dtype
        self.count = count


class ScratchArena:
    """The scratch memory of a worker: one block, allocated like a stack."""

    def __init__(self, block: Block) -> None:
        self._block = block  # kept alive
        self._next = block.address
        self._end = block.address + block.size

    def take_bytes(self, nbytes: int) -> int:
        """Address of ``nbytes`` uninitialised bytes, valid until an earlier `top` is released."""
        start = self._next
        self._next = start + -(-nbytes // PAGE) * PAGE
        if self._next > self._end:
            raise AssertionError("a kernel took more scratch than it declares")
        return start

    def take(self, count: int) -> Elements:
        """``count`` uninitialised float32 elements; see `take_bytes`."""
        return Elements(self.take_bytes(count * 4), F32, count)

    def top(self) -> int:
        """Address after the last allocated byte."""
        return self._next

    def release(self, top: int) -> None:
        """Free everything allocated since the call of `top` that returned ``top``."""
        self._next = top
