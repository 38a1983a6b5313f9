"""The ledger: every byte of tensor data in memory is a block that it has granted.

Blocks are page-aligned and reused, because fresh anonymous memory costs a page fault for every
4 KiB. What is mapped, granted or idle, never exceeds the capacity: an idle block of the right
size is handed out again, and idle blocks of other sizes are given back to the system first when
a new one would not fit.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections import OrderedDict
from collections.abc import Callable

from mergeloom.engine.memory.pages import block_bytes

_HUGE = 4 << 20


class Block:
    """One page-aligned piece of memory; ``memory`` is its writable view, ``address`` its start.

    A device that has made its pages immovable, for its copies, leaves in ``unpin`` what undoes it.
    """

    __slots__ = ("_map", "address", "memory", "size", "unpin")

    def __init__(self, size: int) -> None:
        self._map = _anonymous(size)
        if size >= _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self.size = size
        self.memory = memoryview(self._map)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.unpin: Callable[[], None] | None = None

    def release_pages(self) -> None:
        """Make the pages movable again."""
        unpin, self.unpin = self.unpin, None
        if unpin is not None:
            unpin()

    def discard(self) -> None:
        """Give the pages back at once, even while a tensor still refers to the block."""
        self.release_pages()
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


def _anonymous(size: int) -> mmap.mmap:
    if hasattr(mmap, "MAP_ANONYMOUS"):
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return mmap.mmap(-1, size)


class Closed(Exception):
    """The ledger was closed while somebody waited for memory."""


class Ledger:
    """Grants blocks up to ``capacity`` bytes in total and never more.

    `grant` waits for memory and must be called from one thread only, in the order of the
    schedule: then everything granted earlier belongs to work that will finish and release it,
    and a schedule whose single steps fit cannot deadlock. `release` may be called anywhere.
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
        """Bytes in use now."""
        return self._granted

    @property
    def peak(self) -> int:
        """Most bytes that were ever mapped at once."""
        return self._peak

    def grant(self, nbytes: int) -> Block:
        """A block of at least ``nbytes``, as soon as the capacity allows it.

        Raises:
            Closed: the ledger was closed meanwhile.
            ValueError: the block could never fit.
        """
        size = block_bytes(nbytes)
        if size > self.capacity:
            raise ValueError(f"a block of {size} bytes exceeds the ledger's {self.capacity}")
        with self._changed:
            while True:
                if self._closed:
                    raise Closed
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
        """Take a block back; nothing may read or write it any more."""
        with self._changed:
            self._granted -= block.size
            self._idle.setdefault(block.size, []).append(block)
            self._idle.move_to_end(block.size)
            self._changed.notify()

    def close(self) -> None:
        """Wake all waiting threads with `Closed`, and give idle memory back."""
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
