"""Devices that tensors can be computed on, for `engine.run.device_worker`. Only workers import this
module.

A device has memory of its own and queues of work. What is given to one queue happens in order;
queues run beside each other and beside this program, and wait for each other by marks. A device
without queues, and the base class here, does everything at once, in the order in which it is
told.
"""

from __future__ import annotations

import contextlib
import math
import threading
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from mergeloom.engine.hardware.accelerators import Accelerator
from mergeloom.engine.memory.ledger import Block

_cuda: Any = torch.cuda  # part of it has no types
_PORTABLE = 1
"""Pinned for all devices (cudaHostRegisterPortable)."""
_PINNING = threading.Lock()
"""Two devices may meet the same block for the first time at once."""


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
    """Work of a device, in order. Inside of its context torch's operations go to it."""

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

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Copy bytes between memory of the device and of this machine; both are flat uint8."""
        target.copy_(source)

    def mark(self) -> Mark:
        """The point that is reached when everything so far has happened."""
        return Mark()


class Device:
    """One device, opened; used by one thread, but for `close`.

    Raises:
        RuntimeError: torch cannot use it.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.name = accelerator.name
        self._device = torch.device(accelerator.name)
        torch.empty(1, device=self._device)

    def allocate(self, nbytes: int) -> Tensor:
        """Uninitialised memory: flat uint8.

        Raises:
            torch.OutOfMemoryError: there is not enough, or what `is_out_of_memory` recognises.
        """
        return torch.empty(nbytes, dtype=torch.uint8, device=self._device)

    def settle(self) -> None:
        """Return when everything has happened."""

    def reclaim(self) -> None:
        """Give memory back that no tensor holds."""

    def queue(self) -> Queue:
        """A new queue."""
        return Queue()

    def pin(self, block: Block) -> None:
        """Let copies from and to ``block`` run at full speed and beside everything else, if that
        is possible; may be called again and again."""

    def close(self) -> None:
        """Let go of all pinned blocks; no copy may run any more, on any device."""


class CudaMark(Mark):
    def __init__(self, stream: torch.cuda.Stream) -> None:
        # Waiting leaves the core to others.
        self.event = _cuda.Event(enable_timing=True, blocking=True)
        self.event.record(stream)

    def wait(self) -> None:
        self.event.synchronize()

    def seconds_since(self, earlier: Mark) -> float:
        assert isinstance(earlier, CudaMark)
        return float(earlier.event.elapsed_time(self.event)) / 1e3


class CudaQueue(Queue):
    """A stream."""

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream = _cuda.Stream(device)
        self._entered = contextlib.ExitStack()

    def __enter__(self) -> None:
        self._entered.enter_context(torch.cuda.stream(self._stream))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._entered.close()

    def after(self, mark: Mark) -> None:
        assert isinstance(mark, CudaMark)
        self._stream.wait_event(mark.event)

    def copy(self, target: Tensor, source: Tensor) -> None:
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)

    def mark(self) -> Mark:
        return CudaMark(self._stream)


class CudaDevice(Device):
    """A device of CUDA; what torch reserves on it never exceeds its memory budget."""

    def __init__(self, accelerator: Accelerator) -> None:
        if not torch.cuda.is_available():
            raise RuntimeError("torch finds no CUDA device: its build or the driver does not fit")
        torch.cuda.set_device(accelerator.name)  # of this thread, and no other is ever touched
        super().__init__(accelerator)
        total = torch.cuda.get_device_properties(self._device).total_memory
        self._share_before = float(torch.cuda.get_per_process_memory_fraction(self._device))
        share = min(accelerator.memory_bytes / total, 1.0)
        torch.cuda.set_per_process_memory_fraction(share, self._device)
        self._pinned: dict[int, Block] = {}
        self._can_pin = True

    def settle(self) -> None:
        torch.cuda.synchronize(self._device)

    def reclaim(self) -> None:
        torch.cuda.empty_cache()

    def queue(self) -> Queue:
        return CudaQueue(self._device)

    def pin(self, block: Block) -> None:
        if block.unpin is not None or not self._can_pin:
            return
        with _PINNING:
            if block.unpin is None:
                self._register(block)

    def close(self) -> None:
        with torch.cuda.device(self._device):
            for block in list(self._pinned.values()):
                block.release_pages()
            # Who called the run may go on using torch, and did not ask for the cap.
            with contextlib.suppress(RuntimeError):  # a broken device has said so before
                torch.cuda.empty_cache()
                torch.cuda.set_per_process_memory_fraction(self._share_before, self._device)

    def _register(self, block: Block) -> None:
        # Blocks are reused, so that the time this takes is spent once for each.
        if int(_cuda.cudart().cudaHostRegister(block.address, block.size, _PORTABLE)) == 0:
            block.unpin = lambda: self._unregister(block.address)
            self._pinned[block.address] = block
            return
        # Copies work without, only slower. The failure is still noted in the CUDA runtime, and
        # would be taken for one of the next kernel that is started: so that is this one.
        self._can_pin = False
        with contextlib.suppress(RuntimeError):
            torch.zeros(1, device=self._device)

    def _unregister(self, address: int) -> None:
        with torch.cuda.device(self._device):
            _cuda.cudart().cudaHostUnregister(address)
        self._pinned.pop(address, None)


class MpsDevice(Device):
    """Apple's; memory is shared with the CPU, and everything happens in order.

    Tensors never exceed its memory budget. torch does not say what cap it had before, so that one
    stays.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        if not torch.backends.mps.is_available():
            raise RuntimeError("torch cannot use Metal here")
        super().__init__(accelerator)
        share = accelerator.memory_bytes / max(torch.mps.recommended_max_memory(), 1)
        torch.mps.set_per_process_memory_fraction(min(share, 1.0))

    def settle(self) -> None:
        torch.mps.synchronize()

    def reclaim(self) -> None:
        torch.mps.empty_cache()


_KINDS: dict[str, type[Device]] = {"cuda": CudaDevice, "mps": MpsDevice}


def open_device(accelerator: Accelerator) -> Device:
    """Open a device, for this thread.

    Raises:
        RuntimeError: torch cannot use it.
    """
    return _KINDS[accelerator.kind](accelerator)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that a device's memory did not suffice."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "alloc_failed" in text)


def is_incapable(error: BaseException) -> bool:
    """Whether ``error`` says that a device, or a kernel on it, cannot do what was asked."""
    if isinstance(error, NotImplementedError):
        return True
    text = str(error)
    no_double = isinstance(error, TypeError) and "float64" in text
    # A kernel that was written without devices in mind mixes their tensors with the CPU's.
    return no_double or (isinstance(error, RuntimeError) and "on the same device" in text)
