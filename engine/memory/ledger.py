"""The ledger, which grants every block of memory for tensor data.

Blocks are page-aligned and reused, because fresh anonymous memory costs a page fault for every 4
KiB. Mapped memory, granted or idle, never exceeds the capacity: an idle block of the right size is
reused, and idle blocks of other sizes are returned to the system if a new one would not fit.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections import OrderedDict
from collections.abc import Callable

from mergeloom.engine.memory.pages import block_bytes

_HUGE_PAGES_FROM = 4 << 20
"""Bytes from which a block asks the kernel for huge pages, which take fewer page faults."""


class Block:
    """One page-aligned block of memory; ``memory`` is a writable view, ``address`` its start.

    A device that pins its pages sets ``unpin`` to a function that undoes it.
    """

    __slots__ = ("_map", "address", "memory", "size", "unpin")

    def __init__(self, size: int) -> None:
        self._map = _anonymous_map(size)
        if size >= _HUGE_PAGES_FROM and hasattr(mmap, "MADV_HUGEPAGE"):
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self.size = size
        self.memory = memoryview(self._map)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.unpin: Callable[[], None] | None = None

    def unpin_pages(self) -> None:
        """Undo the pinning of the pages, if a device has pinned them."""
        unpin, self.unpin = self.unpin, None
        if unpin is not None:
            unpin()

    def discard(self) -> None:
        """Return the pages to the system immediately, even if a tensor still refers to the
        block."""
        self.unpin_pages()
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


def _anonymous_map(size: int) -> mmap.mmap:
    if hasattr(mmap, "MAP_ANONYMOUS"):
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return mmap.mmap(-1, size)


class LedgerClosed(Exception):
    """The ledger was closed while a caller waited for memory."""


class Ledger:
    """Grants blocks of at most ``capacity`` bytes in total.

    `grant` waits for memory and must be called from one thread only, in schedule order: then all
    blocks granted earlier belong to work that will finish and release them, and a schedule whose
    steps fit one by one cannot deadlock. `release` may be called from any thread.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._mapped = 0
        self._granted = 0
        self._peak = 0
        self._idle: OrderedDict[int, list[Block]] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False

    @property
    def granted(self) -> int:
        """Bytes currently granted."""
        return self._granted

    @property
    def peak(self) -> int:
        """Maximum number of bytes mapped at once."""
        return self._peak

    def grant(self, nbytes: int) -> Block:
        """Wait for and return a block of at least ``nbytes``.

        Raises:
            LedgerClosed: the ledger was closed while waiting.
            ValueError: the block exceeds the capacity.
        """
        size = block_bytes(nbytes)
        if size > self.capacity:
            raise ValueError(f"a block of {size} bytes exceeds the ledger's {self.capacity}")
        with self._changed:
            while True:
                if self._closed:
                    raise LedgerClosed
                if self._idle.get(size):
                    block = self._take_idle(size)
                    break
                if self._make_room(size):
                    block = Block(size)
                    self._mapped += size
                    self._peak = max(self._peak, self._mapped)
                    break
                self._changed.wait()
            self._granted += size
            return block

    def release(self, block: Block) -> None:
        """Take a block back; the caller must not use it afterwards."""
        with self._changed:
            self._granted -= block.size
            self._idle.setdefault(block.size, []).append(block)
            self._idle.move_to_end(block.size)
            self._changed.notify()

    def close(self) -> None:
        """Raise `LedgerClosed` in all waiting threads, and free idle memory."""
        with self._changed:
            self._closed = True
            while self._idle:
                self._drop_idle()
            self._changed.notify_all()

    def _take_idle(self, size: int) -> Block:
        blocks = self._idle[size]
        block = blocks.pop()
        if not blocks:
            del self._idle[size]
        return block

    def _make_room(self, size: int) -> bool:
        if self._granted + size > self.capacity:
            return False
        while self._mapped + size > self.capacity:
            self._drop_idle()
        return True

    def _drop_idle(self) -> None:
        block = self._take_idle(next(iter(self._idle)))
        block.discard()
        self._mapped -= block.size
