"""What `engine.run.device_worker` asks of a device.

A device has memory of its own and queues of work. What is given to one queue happens in order;
queues run beside each other and beside this program, and wait for each other by marks. A device
without queues, and the base class here, does everything at once, in the order in which it is
told.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

from mergeloom.engine.memory.ledger import Block

Memory = Any
"""Bytes of a device or of this machine that follow each other; slices of it are such, and
``numel()`` says how many they are. Who holds it keeps it."""


class Mark:
    """A point in a queue."""

    def wait(self) -> None:
        """Return when everything before it has happened."""

    def seconds_since(self, earlier: Mark) -> float:
        """Time from ``earlier``, a mark of the same queue; NaN if the device does not tell.

        Both must have been reached.
        """
        return math.nan


class Queue:
    """Work of a device, in order. Inside of its context arithmetic goes to it."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def after(self, mark: Mark) -> None:
        """Let what follows wait for ``mark``, which may be one of another queue."""

    def copy(self, target: Memory, source: Memory) -> None:
        """Copy bytes between memory of the device and of this machine."""
        raise NotImplementedError

    def mark(self) -> Mark:
        """The point that is reached when everything so far has happened."""
        return Mark()


class Device:
    """One device, opened; used by one thread, but for `close` and what undoes `pin`."""

    name: str

    def working(self) -> AbstractContextManager[Any]:
        """What the thread that uses it has to be in."""
        return nullcontext()

    def allocate(self, nbytes: int) -> Memory:
        """Uninitialised memory.

        Raises:
            RuntimeError: there is not enough: one of which `is_out_of_memory` says so.
        """
        raise NotImplementedError

    def here(self, block: Block, offset: int, nbytes: int) -> Memory:
        """Bytes of a block, from ``offset`` on, for copies."""
        raise NotImplementedError

    def numbers(self, found: Sequence[Any]) -> list[float]:
        """What arithmetic has found, once all of it has happened; plain numbers stay."""
        raise NotImplementedError

    def settle(self) -> None:
        """Return when everything has happened."""

    def reclaim(self) -> None:
        """Give memory back that nothing holds."""

    def queue(self) -> Queue:
        """A new queue."""
        return Queue()

    def pin(self, block: Block) -> None:
        """Let copies from and to ``block`` run at full speed and beside everything else, if that
        is possible; may be called again and again."""

    def close(self) -> None:
        """Let go of all pinned blocks; no copy may run any more, on any device."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that a device's memory did not suffice."""
    text = str(error).lower()
    says = "out of memory" in text or "alloc_failed" in text
    return isinstance(error, RuntimeError) and (says or type(error).__name__ == "OutOfMemoryError")


def is_incapable(error: BaseException) -> bool:
    """Whether ``error`` says that a device, or a kernel on it, cannot do what was asked."""
    if isinstance(error, NotImplementedError):
        return True
    text = str(error)
    no_double = isinstance(error, TypeError) and "float64" in text
    # A kernel that was written without devices in mind mixes their tensors with the CPU's.
    return no_double or (isinstance(error, RuntimeError) and "on the same device" in text)
