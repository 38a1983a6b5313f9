"""Access to NVIDIA devices through the driver's library; no other library is loaded.

Calls that only enqueue work keep the interpreter's lock, because reacquiring it may take longer
than the call; calls that wait release it.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

_NAMES = ("nvcuda.dll",) if sys.platform == "win32" else ("libcuda.so.1", "libcuda.so")
_OUT_OF_MEMORY = 2
_PORTABLE, _MAPPED = 1, 2
_NOT_BLOCKING = 1
_BLOCKING_SYNC, _UNTIMED = 1, 2
_MAJOR, _MINOR = 75, 76
"""Device attributes: major and minor compute capability."""


class CudaError(RuntimeError):
    """A call of the driver failed; the message is one line."""


class CudaMemoryError(CudaError):
    """A device is out of memory."""


@cache
def _library(waits: bool) -> Any:
    """The driver's library; its calls keep the interpreter's lock unless ``waits``.

    Raises:
        CudaError: it is not installed.
    """
    load = ctypes.CDLL if waits else ctypes.PyDLL
    for name in _NAMES:
        try:
            return load(name)
        except OSError:
            continue
    raise CudaError("NVIDIA's driver library cannot be loaded: install the driver")


def _call(name: str, *arguments: Any, waits: bool = False) -> None:
    status = getattr(_library(waits), name)(*arguments)
    if status:
        _raise(name, status)


def _raise(name: str, status: int) -> None:
    found = ctypes.c_char_p()
    _library(False).cuGetErrorName(status, ctypes.byref(found))
    reason = (found.value or b"").decode() or f"error {status}"
    if status == _OUT_OF_MEMORY:
        raise CudaMemoryError(f"out of memory: {name} returned {reason}")
    raise CudaError(f"{name} returned {reason}")


def capability_of(number: int) -> tuple[int, int]:
    """The compute capability of a device, without opening a context.

    Raises:
        CudaError: there is no such device.
    """
    _call("cuInit", 0, waits=True)
    device, found = ctypes.c_int(), []
    _call("cuDeviceGet", ctypes.byref(device), number)
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        _call("cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
        found.append(value.value)
    return found[0], found[1]


class Context:
    """The primary context of one device, which all users of CUDA in this process share.

    Each thread that uses the device calls `enter` first.

    Raises:
        CudaError: there is no such device, or it cannot be used.
    """

    def __init__(self, number: int) -> None:
        self.capability = capability_of(number)
        self._device, self._context = ctypes.c_int(), ctypes.c_void_p()
        _call("cuDeviceGet", ctypes.byref(self._device), number)
        retained = ctypes.byref(self._context)
        _call("cuDevicePrimaryCtxRetain", retained, self._device, waits=True)
        self.enter()

    def enter(self) -> None:
        """Make this the current device of the calling thread."""
        _call("cuCtxSetCurrent", self._context)

    def release(self) -> None:
        """Release the device; objects created in the context must not be used afterwards."""
        _call("cuDevicePrimaryCtxRelease_v2", self._device, waits=True)

    @staticmethod
    def synchronize() -> None:
        """Wait until all enqueued work is done."""
        _call("cuCtxSynchronize", waits=True)


def allocate(nbytes: int) -> int:
    """Address of ``nbytes`` uninitialised bytes on the device.

    Raises:
        CudaMemoryError: there is not enough memory.
    """
    address = ctypes.c_uint64()
    _call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(nbytes, 1)), waits=True)
    return address.value


def free(address: int) -> None:
    """Free memory from `allocate`; waits for work in progress."""
    _call("cuMemFree_v2", ctypes.c_uint64(address), waits=True)


def allocate_main_memory(nbytes: int) -> int:
    """Address of ``nbytes`` bytes of main memory that the device can access directly."""
    address = ctypes.c_void_p()
    flags = _PORTABLE | _MAPPED
    _call("cuMemHostAlloc", ctypes.byref(address), ctypes.c_size_t(nbytes), flags, waits=True)
    return int(address.value or 0)


def free_main_memory(address: int) -> None:
    """Free memory from `allocate_main_memory`."""
    _call("cuMemFreeHost", ctypes.c_void_p(address), waits=True)


def pin(address: int, nbytes: int) -> bool:
    """Pin pages of main memory for copies; returns whether that was possible."""
    library = _library(True)
    place = ctypes.c_void_p(address), ctypes.c_size_t(nbytes)
    return int(library.cuMemHostRegister_v2(*place, _PORTABLE)) == 0


def unpin(address: int) -> None:
    """Undo `pin`."""
    _library(True).cuMemHostUnregister(ctypes.c_void_p(address))


class Event:
    """A point in a stream."""

    __slots__ = ("_handle",)

    def __init__(self) -> None:
        self._handle = ctypes.c_void_p()
        # Block instead of spinning, to leave the core to other threads.
        _call("cuEventCreate", ctypes.byref(self._handle), _BLOCKING_SYNC | _UNTIMED)

    def __del__(self) -> None:
        if self._handle.value:
            _library(False).cuEventDestroy_v2(self._handle)

    @property
    def handle(self) -> ctypes.c_void_p:
        return self._handle

    def wait(self) -> None:
        """Wait until it is reached."""
        if _library(False).cuEventQuery(self._handle):  # query first: being woken up takes time
            _call("cuEventSynchronize", self._handle, waits=True)


class Stream:
    """A queue of work that is executed in order."""

    def __init__(self) -> None:
        self._handle = ctypes.c_void_p()
        _call("cuStreamCreate", ctypes.byref(self._handle), _NOT_BLOCKING)

    def record(self, event: Event) -> None:
        """Let ``event`` be reached when all work enqueued so far is done."""
        _call("cuEventRecord", event.handle, self._handle)

    def wait_for(self, event: Event) -> None:
        """Make subsequent work wait for ``event``."""
        _call("cuStreamWaitEvent", self._handle, event.handle, 0)

    def synchronize(self) -> None:
        """Wait until all work enqueued so far is done."""
        _call("cuStreamSynchronize", self._handle, waits=True)

    def upload(self, target: int, source: int, nbytes: int) -> None:
        """Copy bytes from main memory to the device."""
        memory, place = ctypes.c_void_p(source), ctypes.c_uint64(target)
        _call("cuMemcpyHtoDAsync_v2", place, memory, ctypes.c_size_t(nbytes), self._handle)

    def download(self, target: int, source: int, nbytes: int) -> None:
        """Copy bytes from the device to main memory."""
        memory, place = ctypes.c_void_p(target), ctypes.c_uint64(source)
        _call("cuMemcpyDtoHAsync_v2", memory, place, ctypes.c_size_t(nbytes), self._handle)

    def clear(self, address: int, nbytes: int) -> None:
        """Set bytes on the device to 0."""
        place = ctypes.c_uint64(address)
        _call("cuMemsetD8Async", place, ctypes.c_ubyte(0), ctypes.c_size_t(nbytes), self._handle)

    def launch(
        self, function: Any, grid: tuple[int, int], threads: int, given: Sequence[Any]
    ) -> None:
        """Launch a function of a `Module`; ``given`` are its arguments, as ctypes values."""
        places = (ctypes.c_void_p * len(given))(*map(ctypes.addressof, given))
        shape = *grid, 1, threads, 1, 1
        _call("cuLaunchKernel", function, *shape, 0, self._handle, places, None)


class Module:
    """Device code loaded into the current context.

    Raises:
        CudaError: it cannot be loaded.
    """

    def __init__(self, code: bytes) -> None:
        self._handle = ctypes.c_void_p()
        _call("cuModuleLoadData", ctypes.byref(self._handle), ctypes.c_char_p(code), waits=True)

    def function(self, name: str) -> ctypes.c_void_p:
        """The function called ``name``."""
        found = ctypes.c_void_p()
        _call("cuModuleGetFunction", ctypes.byref(found), self._handle, name.encode())
        return found
