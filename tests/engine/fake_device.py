"""A device without hardware: memory of its own that runs out, and queues that take their time.

It computes with the CPU, so its results are those of the CPU bit for bit, and everything but the
calls to a driver is as on a real one:

- copies are put off until they are waited for, so that code which forgets to wait works on
  rubbish, or overwrites what has not left yet;
- memory is counted, and is full of rubbish when it is handed out;
- any allocation may be made to fail, those that kernels make while they run too.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mergeloom.engine.hardware.accelerators import Accelerator
from mergeloom.engine.memory.ledger import Block
from mergeloom.engine.run.device import Mark, Queue
from mergeloom.engine.run.torch_device import TorchDevice

RUBBISH = 0xA5
_SMALL = 4096
"""Bytes of a result up to which an operation is not thought to allocate."""


def accelerator(memory: int, name: str = "fake:0", **changes: Any) -> Accelerator:
    return Accelerator(name, "a device of the tests", memory, host_bytes=0, **changes)


class FakeMark(Mark):
    def __init__(self, queue: FakeQueue, place: int) -> None:
        self._queue = queue
        self.place = place

    def wait(self) -> None:
        self._queue.advance(self.place)


class FakeQueue(Queue):
    """Copies wait here; operations of torch happen at once, when what they wait for has."""

    def __init__(self, device: FakeDevice) -> None:
        self._device = device
        self._given = 0
        self._put_off: list[tuple[int, Callable[[], object]]] = []
        self._computing: Allocations | None = None

    def __enter__(self) -> None:
        self.advance(self._given)
        self._computing = Allocations(self._device)
        self._computing.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._computing is not None
        self._computing.__exit__(kind, error, traceback)

    def wait_for(self, mark: Mark) -> None:
        self._put(mark.wait)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        assert target.dtype == source.dtype == torch.uint8
        assert target.numel() == source.numel()
        self._put(lambda: target.copy_(source))
        if self._device.has(target):
            self._device.uploaded_bytes += source.numel()
        else:
            self._device.downloaded_bytes += source.numel()

    def mark(self) -> Mark:
        return FakeMark(self, self._given)

    def advance(self, place: int) -> None:
        while self._put_off and self._put_off[0][0] <= place:
            self._put_off.pop(0)[1]()

    def synchronize(self) -> None:
        self.advance(self._given)

    def _put(self, work: Callable[[], object]) -> None:
        self._given += 1
        self._put_off.append((self._given, work))


class Allocations(TorchDispatchMode):
    """Counts what operations allocate as the device's memory, for as long as they hold it."""

    def __init__(self, device: FakeDevice) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {
            leaf.untyped_storage().data_ptr()
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, torch.Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage.data_ptr() not in given and storage.nbytes() > _SMALL:
                    self._device.take(storage)
        return result


class FakeDevice(TorchDevice):
    """``capacity`` is what there is; ``fails`` is asked at each allocation, by its number."""

    def __init__(
        self,
        accelerator: Accelerator,
        capacity: int | None = None,
        fails: Callable[[int], bool] = lambda number: False,
    ) -> None:
        self.name = accelerator.name
        self._device = torch.device("cpu")
        self._capacity = accelerator.memory_bytes if capacity is None else capacity
        self._fails = fails
        self._queues: list[FakeQueue] = []
        self.pinned: set[int] = set()
        self.allocations = 0
        self.peak = 0
        self._taken: list[tuple[StorageWeakRef, int]] = []
        self.uploaded_bytes = 0
        self.downloaded_bytes = 0
        self.closed = False

    def allocate(self, nbytes: int) -> torch.Tensor:
        memory = torch.full((nbytes,), RUBBISH, dtype=torch.uint8)
        self.take(memory.untyped_storage())
        return memory

    @property
    def used(self) -> int:
        self._taken = [taken for taken in self._taken if not taken[0].expired()]
        return sum(nbytes for _, nbytes in self._taken)

    def has(self, tensor: torch.Tensor) -> bool:
        """Whether ``tensor`` lies in its memory."""
        sought = StorageWeakRef(tensor.untyped_storage())
        return any(taken == sought for taken, _ in self._taken)

    def take(self, storage: torch.UntypedStorage) -> None:
        """Count ``storage`` as used for as long as it lives."""
        self.allocations += 1
        used = self.used + storage.nbytes()
        if self._fails(self.allocations - 1) or used > self._capacity:
            raise torch.cuda.OutOfMemoryError(f"{used} bytes of {self._capacity}")
        self._taken.append((StorageWeakRef(storage), storage.nbytes()))
        self.peak = max(self.peak, used)

    def synchronize(self) -> None:
        for queue in self._queues:
            queue.synchronize()

    def queue(self) -> Queue:
        self._queues.append(FakeQueue(self))
        return self._queues[-1]

    def pin(self, block: Block) -> None:
        if block.unpin is None:
            self.pinned.add(block.address)
            block.unpin = lambda: self.pinned.remove(block.address)

    def close(self) -> None:
        self.closed = True
