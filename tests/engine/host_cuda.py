"""A CUDA device without hardware: its code compiled for this machine, its queues at once.

The arithmetic's own code runs (one thread of it) and everything but the driver's calls. Memory is
counted and full of rubbish when it is handed out.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import weakref
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from mergeloom.engine.hardware.accelerators import Accelerator
from mergeloom.engine.memory.ledger import Block
from mergeloom.engine.run.cuda_device import CudaMemory
from mergeloom.engine.run.device import Device, Queue
from mergeloom.methods.ops.cuda.arithmetic import SOURCE
from mergeloom.methods.ops.cuda.ops import SIGNATURES, TYPES

RUBBISH = 0xA5
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")


@cache
def library() -> Any:
    """The device's code for this machine."""
    assert COMPILER is not None
    target = Path(mkdtemp(prefix="mergeloom-cuda-")) / "operations.so"
    options = ["-O2", "-ffp-contract=off", "-mfma", "-shared", "-fPIC", "-DMERGELOOM_HOST"]
    command = [COMPILER, *options, "-x", "c++", str(SOURCE), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:  # an older processor or another kind
        command.remove("-mfma")
        subprocess.run(command, capture_output=True, text=True, check=True)
    found = ctypes.CDLL(str(target))
    for name, signature in SIGNATURES.items():
        function = getattr(found, name)
        function.argtypes, function.restype = [TYPES[kind] for kind in signature.types], None
    shutil.rmtree(target.parent)
    return found


class HostQueue(Queue):
    """Everything happens when it is ordered."""

    def copy(self, target: CudaMemory, source: CudaMemory) -> None:
        assert target.size == source.size
        ctypes.memmove(target.address, source.address, source.size)


class HostDevice(Device):
    """`engine.run.cuda_device.CudaDevice` without its driver."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.name = accelerator.name
        self.capability = (9, 0)
        self.memory = accelerator.memory_bytes
        self.used = 0
        self.peak = 0
        self.launches = 0

    def allocate(self, nbytes: int) -> CudaMemory:
        if self.used + nbytes > self.memory:
            raise RuntimeError("out of memory")
        self.used += nbytes
        self.peak = max(self.peak, self.used)
        room = ctypes.create_string_buffer(nbytes + 4096)
        ctypes.memset(room, RUBBISH, nbytes + 4096)
        address = -(-ctypes.addressof(room) // 4096) * 4096
        found = CudaMemory(address, nbytes, room)
        weakref.finalize(found, self._free, nbytes)
        return found

    def _free(self, nbytes: int) -> None:
        self.used -= nbytes

    def here(self, block: Block, offset: int, nbytes: int) -> CudaMemory:
        return CudaMemory(block.address + offset, nbytes, block)

    def numbers(self, found: Sequence[Any]) -> list[float]:
        return [float(number) for number in found]

    def queue(self) -> Queue:
        return HostQueue()

    def load(self, code: bytes, names: Sequence[str]) -> None:
        pass

    def launch(self, name: str, grid: tuple[int, int], threads: int, given: Sequence[Any]) -> None:
        assert all(part > 0 for part in grid)
        self.launches += 1
        getattr(library(), name)(*given)

    def upload(self, address: int, content: Any) -> None:
        ctypes.memmove(address, content, ctypes.sizeof(content))

    def finish(self) -> None:
        pass

    def cells(self, count: int) -> tuple[int, object]:
        cells = (ctypes.c_double * count)()
        return ctypes.addressof(cells), cells

    def table(self, nbytes: int) -> CudaMemory:
        found = self.allocate(nbytes)
        ctypes.memset(found.address, 0, nbytes)
        return found

    def bring(self, memory: CudaMemory) -> CudaMemory:
        copy = ctypes.create_string_buffer(memory.size)
        ctypes.memmove(copy, memory.address, memory.size)
        return CudaMemory(ctypes.addressof(copy), memory.size, copy)
