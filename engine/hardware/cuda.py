"""NVIDIA's devices by the library that comes with their driver: no other library is loaded.

Calls that only give orders keep the interpreter's lock, since to get it back may take longer than
the order; those that wait let go of it.
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
_BLOCKING_SYNC = 1
_MAJOR, _MINOR = 75, 76
"""Attributes of a device: its compute capability."""


class CudaError(RuntimeError):
    """The driver refused or failed; the message is one line."""


class CudaMemoryError(CudaError):
    """There is not enough memory on a device: out of memory."""


@cache
def _library(waits: bool) -> Any:
    """The driver's library, its calls with the interpreter's lock or, where one ``waits``, without.

    Raises:
        CudaError: it is not there.
    """
    load = ctypes.CDLL if waits else ctypes.PyDLL
    for name in _NAMES:
        try:
            return load(name)
        except OSError:
            continue
    raise CudaError("the driver's library is not there: install NVIDIA's driver")


def _call(name: str, *arguments: Any, waits: bool = False) -> None:
    status = getattr(_library(waits), name)(*arguments)
    if status:
        _raise(name, status)


def _raise(name: str, status: int) -> None:
    word = ctypes.c_char_p()
    _library(False).cuGetErrorName(status, ctypes.byref(word))
    told = (word.value or b"").decode() or f"error {status}"
    if status == _OUT_OF_MEMORY:
        raise CudaMemoryError(f"out of memory: {name} says {told}")
    raise CudaError(f"{name} says {told}")


def capability_of(number: int) -> tuple[int, int]:
    """The compute capability of a device, to which nothing is opened for that.

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
    """What a process has on one device, shared with all else in it that uses CUDA.

    Each thread that gives orders calls `enter` first.

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
        """Let this thread's orders go to this device."""
        _call("cuCtxSetCurrent", self._context)

    def release(self) -> None:
        """Let go of the device; what was made in it must not be used any more."""
        _call("cuDevicePrimaryCtxRelease_v2", self._device, waits=True)

    @staticmethod
    def settle() -> None:
        """Return when all orders have been carried out."""
        _call("cuCtxSynchronize", waits=True)


def allocate(nbytes: int) -> int:
    """Address of ``nbytes`` uninitialised bytes on the device.

    Raises:
        CudaMemoryError: there are not so many.
    """
    address = ctypes.c_uint64()
    _call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(nbytes, 1)), waits=True)
    return address.value


def free(address: int) -> None:
    """Give back what `allocate` gave; waits for orders that are under way."""
    _call("cuMemFree_v2", ctypes.c_uint64(address), waits=True)


def allocate_here(nbytes: int) -> int:
    """Address of ``nbytes`` bytes of main memory that the device too reads and writes there."""
    address = ctypes.c_void_p()
    flags = _PORTABLE | _MAPPED
    _call("cuMemHostAlloc", ctypes.byref(address), ctypes.c_size_t(nbytes), flags, waits=True)
    return int(address.value or 0)


def free_here(address: int) -> None:
    """Give back what `allocate_here` gave."""
    _call("cuMemFreeHost", ctypes.c_void_p(address), waits=True)


def pin(address: int, nbytes: int) -> bool:
    """Make pages of main memory immovable for copies; returns whether that was possible."""
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
        # Waiting leaves the core to others.
        _call("cuEventCreate", ctypes.byref(self._handle), _BLOCKING_SYNC)

    def __del__(self) -> None:
        if self._handle.value:
            _library(False).cuEventDestroy_v2(self._handle)

    @property
    def handle(self) -> ctypes.c_void_p:
        return self._handle

    def wait(self) -> None:
        """Return when it is reached."""
        if _library(False).cuEventQuery(self._handle):  # to be woken up takes its time
            _call("cuEventSynchronize", self._handle, waits=True)

    def seconds_since(self, earlier: Event) -> float:
        """Time from another that was reached before."""
        milliseconds = ctypes.c_float()
        found = ctypes.byref(milliseconds)
        _call("cuEventElapsedTime", found, earlier.handle, self._handle)
        return milliseconds.value / 1e3


class Stream:
    """Orders that are carried out one after the other."""

    def __init__(self) -> None:
        self._handle = ctypes.c_void_p()
        _call("cuStreamCreate", ctypes.byref(self._handle), _NOT_BLOCKING)

    def record(self, event: Event) -> None:
        """Let ``event`` be the point that is reached after all orders so far."""
        _call("cuEventRecord", event.handle, self._handle)

    def after(self, event: Event) -> None:
        """Let what follows wait for ``event``."""
        _call("cuStreamWaitEvent", self._handle, event.handle, 0)

    def settle(self) -> None:
        """Return when all orders so far have been carried out."""
        _call("cuStreamSynchronize", self._handle, waits=True)

    def upload(self, target: int, source: int, nbytes: int) -> None:
        """Copy bytes of main memory to the device."""
        here = ctypes.c_void_p(source)
        there = ctypes.c_uint64(target)
        _call("cuMemcpyHtoDAsync_v2", there, here, ctypes.c_size_t(nbytes), self._handle)

    def download(self, target: int, source: int, nbytes: int) -> None:
        """Copy bytes of the device to main memory."""
        here = ctypes.c_void_p(target)
        there = ctypes.c_uint64(source)
        _call("cuMemcpyDtoHAsync_v2", here, there, ctypes.c_size_t(nbytes), self._handle)

    def clear(self, address: int, nbytes: int) -> None:
        """Set bytes of the device to 0."""
        there = ctypes.c_uint64(address)
        _call("cuMemsetD8Async", there, ctypes.c_ubyte(0), ctypes.c_size_t(nbytes), self._handle)

    def launch(
        self, function: Any, grid: tuple[int, int], threads: int, given: Sequence[Any]
    ) -> None:
        """Start a function of a `Module`; ``given`` are its arguments, of types of ctypes."""
        places = (ctypes.c_void_p * len(given))(*map(ctypes.addressof, given))
        shape = *grid, 1, threads, 1, 1
        _call("cuLaunchKernel", function, *shape, 0, self._handle, places, None)


class Module:
    """Machine code of a device.

    Raises:
        CudaError: it cannot be loaded.
    """

    def __init__(self, code: bytes) -> None:
        self._handle = ctypes.c_void_p()
        _call("cuModuleLoadData", ctypes.byref(self._handle), ctypes.c_char_p(code), waits=True)

    def function(self, name: str) -> ctypes.c_void_p:
        """A function that it has."""
        found = ctypes.c_void_p()
        _call("cuModuleGetFunction", ctypes.byref(found), self._handle, name.encode())
        return found
