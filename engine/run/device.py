"""The interface of a device for `engine.run.device_worker`.

A device has its own memory and queues of work. The work of one queue runs in order; queues run
concurrently with each other and with this program, and wait for each other through marks. A device
without queues, like the base class here, does everything synchronously.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

from mergeloom.engine.memory.ledger import Block

Memory = Any
"""A contiguous range of bytes in device or main memory; it can be sliced, and ``numel()`` is its
size. A reference keeps it alive."""


class Mark:
    """A point in a queue."""

    def wait(self) -> None:
        """Wait until everything before it is done."""


class Queue:
    """An ordered queue of work; inside its context, arithmetic is queued on it."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def wait_for(self, mark: Mark) -> None:
        """Make later work wait for ``mark``, which may belong to another queue."""

    def copy(self, target: Memory, source: Memory) -> None:
        """Copy bytes between device and main memory."""
        raise NotImplementedError

    def mark(self) -> Mark:
        """A mark that is reached when everything queued so far is done."""
        return Mark()


class Device:
    """An open device, used by one thread, except for `close` and unpinning."""

    name: str

    def thread_context(self) -> AbstractContextManager[Any]:
        """The context in which a thread uses the device."""
        return nullcontext()

    def allocate(self, nbytes: int) -> Memory:
        """Uninitialised memory.

        Raises:
            RuntimeError: out of memory; `is_out_of_memory` recognises it.
        """
        raise NotImplementedError

    def main_memory(self, block: Block, offset: int, nbytes: int) -> Memory:
        """``nbytes`` bytes of a block at ``offset``, for copies."""
        raise NotImplementedError

    def numbers(self, found: Sequence[Any]) -> list[float]:
        """The results of arithmetic as numbers, once all work is done."""
        raise NotImplementedError

    def synchronize(self) -> None:
        """Wait until all work is done."""

    def reclaim(self) -> None:
        """Free cached memory that is not in use."""

    def queue(self) -> Queue:
        """A new queue."""
        return Queue()

    def pin(self, block: Block) -> None:
        """Pin ``block``, if possible, so that its copies are fast and asynchronous; may be called
        repeatedly."""

    def close(self) -> None:
        """Unpin all blocks; no copy may be running on any device."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that a device ran out of memory."""
    text = str(error).lower()
    says = "out of memory" in text or "alloc_failed" in text
    return isinstance(error, RuntimeError) and (says or type(error).__name__ == "OutOfMemoryError")


def is_incapable(error: BaseException) -> bool:
    """Whether ``error`` says that a device, or a kernel on it, does not support an operation."""
    if isinstance(error, NotImplementedError):
        return True
    text = str(error)
    no_double = isinstance(error, TypeError) and "float64" in text
    # A kernel not written for devices mixes device tensors with CPU tensors.
    return no_double or (isinstance(error, RuntimeError) and "on the same device" in text)
