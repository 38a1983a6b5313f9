"""NVIDIA devices through the CUDA driver alone (`engine.hardware.cuda`). Only workers import
this."""

from __future__ import annotations

import contextlib
import ctypes
import threading
import weakref
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from mergeloom.engine.hardware import cuda
from mergeloom.engine.hardware.accelerators import Accelerator
from mergeloom.engine.memory.ledger import Block
from mergeloom.engine.run.device import Device, Mark, Queue

_PAGE = 1 << 16
"""Bytes of one page of pinned main memory for numbers that a device writes."""
_PINNING = threading.Lock()
"""Two devices may pin the same block at the same time."""


class CudaMemory:
    """``size`` bytes at ``address``, kept alive by ``owner``; see `engine.run.device.Memory`."""

    __slots__ = ("__weakref__", "address", "owner", "size")

    def __init__(self, address: int, size: int, owner: object = None) -> None:
        self.address = address
        self.size = size
        self.owner = owner

    def __getitem__(self, part: slice) -> CudaMemory:
        start, stop, _ = part.indices(self.size)
        return CudaMemory(self.address + start, max(stop - start, 0), self)

    def numel(self) -> int:
        return self.size


class CudaMark(Mark):
    def __init__(self, stream: cuda.Stream) -> None:
        self.event = cuda.Event()
        stream.record(self.event)

    def wait(self) -> None:
        self.event.wait()


class CudaQueue(Queue):
    """A CUDA stream; inside its context the device launches kernels on it."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self.stream = cuda.Stream()

    def __enter__(self) -> None:
        self._device.stream = self.stream

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._device.stream = None

    def wait_for(self, mark: Mark) -> None:
        assert isinstance(mark, CudaMark)
        self.stream.wait_for(mark.event)

    def copy(self, target: CudaMemory, source: CudaMemory) -> None:
        if isinstance(source, _MainMemory):
            self.stream.upload(target.address, source.address, source.size)
        else:
            self.stream.download(target.address, source.address, source.size)

    def mark(self) -> Mark:
        return CudaMark(self.stream)


class _MainMemory(CudaMemory):
    """Bytes of main memory."""

    __slots__ = ()

    def __getitem__(self, part: slice) -> CudaMemory:
        start, stop, _ = part.indices(self.size)
        return _MainMemory(self.address + start, max(stop - start, 0), self)


class CudaDevice(Device):
    """A CUDA device; its allocations never exceed its memory budget.

    Raises:
        CudaError: it cannot be used.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.name = accelerator.name
        self._context = cuda.Context(int(accelerator.name.partition(":")[2] or 0))
        self._memory = accelerator.memory_bytes
        self._used = 0
        self.stream: cuda.Stream | None = None
        self._functions: dict[str, Any] = {}
        self._tables: dict[int, list[CudaMemory]] = {}
        self._copies: dict[int, list[int]] = {}
        self._pages: list[int] = []
        self._all_pages: list[int] = []
        self._page: _Page | None = None
        self._pinned: dict[int, Block] = {}
        self._can_pin = True

    # --- memory and copies ----------------------------------------------------------------

    def allocate(self, nbytes: int) -> CudaMemory:
        if self._used + nbytes > self._memory:
            raise cuda.CudaMemoryError(
                f"out of memory: {self._used + nbytes} bytes of {self._memory}"
            )
        found = CudaMemory(cuda.allocate(nbytes), nbytes)
        self._used += nbytes
        weakref.finalize(found, self._free, found.address, nbytes).atexit = False
        return found

    def _free(self, address: int, nbytes: int) -> None:
        self._used -= nbytes
        with contextlib.suppress(cuda.CudaError):  # a failed device has already reported it
            cuda.free(address)

    def main_memory(self, block: Block, offset: int, nbytes: int) -> CudaMemory:
        return _MainMemory(block.address + offset, nbytes, block)

    def numbers(self, found: Sequence[Any]) -> list[float]:
        return [float(number) for number in found]

    def synchronize(self) -> None:
        self._context.synchronize()

    def queue(self) -> Queue:
        return CudaQueue(self)

    def pin(self, block: Block) -> None:
        if block.unpin is not None or not self._can_pin:
            return
        with _PINNING:
            if block.unpin is None:
                # Blocks are reused, so each is pinned only once.
                self._can_pin = cuda.pin(block.address, block.size)
                if self._can_pin:
                    block.unpin = self._unpin_of(block)
                    self._pinned[block.address] = block

    def _unpin_of(self, block: Block) -> Callable[[], None]:
        address = block.address

        def unpin() -> None:
            with contextlib.suppress(cuda.CudaError):
                self._context.enter()
            cuda.unpin(address)
            self._pinned.pop(address, None)

        return unpin

    def close(self) -> None:
        with contextlib.suppress(cuda.CudaError):
            self._context.enter()
            for block in list(self._pinned.values()):
                block.unpin_pages()
            self._tables.clear()
            self._page = None
            for address in self._all_pages:
                cuda.free_main_memory(address)
            self._context.release()

    # --- for arithmetic -------------------------------------------------------------------

    @property
    def capability(self) -> tuple[int, int]:
        """The compute capability."""
        return self._context.capability

    def load(self, code: bytes, names: Sequence[str]) -> None:
        """Load functions from machine code.

        Raises:
            CudaError: they cannot be loaded.
        """
        module = cuda.Module(code)
        self._functions = {name: module.function(name) for name in names}

    def launch(self, name: str, grid: tuple[int, int], threads: int, given: Sequence[Any]) -> None:
        """Launch a function on the current queue."""
        assert self.stream is not None
        self.stream.launch(self._functions[name], grid, threads, given)

    def upload(self, address: int, content: Any) -> None:
        """Copy a ctypes buffer to the device on the current queue."""
        assert self.stream is not None
        self.stream.upload(address, ctypes.addressof(content), ctypes.sizeof(content))

    def finish(self) -> None:
        """Wait for everything on the current queue."""
        assert self.stream is not None
        self.stream.synchronize()

    def cells(self, count: int) -> tuple[int, object]:
        """``count`` float64 numbers in main memory, all 0, that kernels can write.

        Returns their address and the object that keeps them alive.
        """
        nbytes = 8 * count
        if nbytes > _PAGE:
            alone = self._main_memory_for(nbytes)
            ctypes.memset(alone.address, 0, nbytes)
            return alone.address, alone
        page = self._page
        if page is None or page.used + nbytes > _PAGE:
            if not self._pages:
                self._pages.append(self._new_page(_PAGE))
            page = self._page = _Page(self._pages.pop(), self._pages)
        address = page.address + page.used
        page.used += nbytes
        return address, page

    def table(self, nbytes: int) -> CudaMemory:
        """Device memory that is all 0 for later work on the current queue.

        Memory without references is reused: keep a reference until that work is done.
        """
        assert self.stream is not None
        free = self._tables.setdefault(nbytes, [])
        whole = free.pop() if free else self.allocate(nbytes)
        self.stream.clear(whole.address, nbytes)
        found = CudaMemory(whole.address, nbytes, whole)
        weakref.finalize(found, free.append, whole).atexit = False
        return found

    def bring(self, memory: CudaMemory) -> CudaMemory:
        """Copy bytes to main memory; they have arrived when all work queued so far is done."""
        assert self.stream is not None
        found = self._main_memory_for(memory.size)
        self.stream.download(found.address, memory.address, memory.size)
        return found

    def _main_memory_for(self, nbytes: int) -> CudaMemory:
        """Main memory that the device can access; memory without references is reused."""
        free = self._copies.setdefault(nbytes, [])
        address = free.pop() if free else self._new_page(nbytes)
        found = _MainMemory(address, nbytes)
        weakref.finalize(found, free.append, address).atexit = False
        return found

    def _new_page(self, nbytes: int) -> int:
        self._all_pages.append(cuda.allocate_main_memory(nbytes))
        return self._all_pages[-1]


class _Page:
    """A page of main memory for numbers; it is freed when no number is referenced."""

    def __init__(self, address: int, free: list[int]) -> None:
        self.address = address
        self.used = 0
        self._free = free
        ctypes.memset(address, 0, _PAGE)

    def __del__(self) -> None:
        self._free.append(self.address)
