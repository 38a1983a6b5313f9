"""A CUDA device without hardware: its code compiled for this machine, its queues at once.

`emulated_device.h` runs the device's code, with all threads of a block; everything but the
driver's calls is as on a device. Device memory is counted, full of rubbish when it is handed out,
and at addresses that are not this process's.
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
from mergeloom.methods.ops.cuda.arithmetic import source_code
from mergeloom.methods.ops.cuda.ops import SIGNATURES, TYPES

RUBBISH = 0xA5
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
DEVICE_BIT = 1 << 60
"""Part of every address on the device."""
_HEADERS = Path(__file__).parent
_MAPPED = 64 << 20
_MOST_BLOCKS = 3
"""Every function works with any number of blocks: few are enough, and faster."""
_CPP = {"V": "Vectors", "T": "Tables", "K": "Keys", "q": "i64", "d": "double"}

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")


@cache
def library() -> Any:
    """The device's code for this machine."""
    assert COMPILER is not None
    folder = Path(mkdtemp(prefix="mergeloom-operations-"))
    target, source = folder / "operations.so", folder / "operations.cpp"
    source.write_text(source_code().decode() + "".join(map(_launcher, SIGNATURES)))
    options = [
        "-O3",
        "-march=native",
        "-ffp-contract=off",
        "-shared",
        "-fPIC",
        "-U_FORTIFY_SOURCE",
        "-w",
    ]
    options += ["-DMERGELOOM_EMULATED", f"-I{_HEADERS}"]
    command = [COMPILER, *options, str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:  # not all compilers know the processor
        command.remove("-march=native")
        subprocess.run(command, capture_output=True, text=True, check=True)
    found = ctypes.CDLL(str(target))
    for name, signature in SIGNATURES.items():
        function = getattr(found, f"launch_{name}")
        given = [TYPES[kind] for kind in signature.types]
        function.argtypes, function.restype = [ctypes.c_int, ctypes.c_int, *given], None
    found.map_memory.argtypes = [ctypes.c_int64, ctypes.c_int64]
    shutil.rmtree(folder)
    return found


def _launcher(name: str) -> str:
    """A function that runs one of the device's for every thread of a grid."""
    types = [_CPP[kind] for kind in SIGNATURES[name].types]
    declared = "".join(f", {kind} a{i}" for i, kind in enumerate(types))
    given = ", ".join(f"a{i}" for i in range(len(types)))
    return f"""
extern "C" void launch_{name}(int width, int height{declared}) {{
  auto work = [&] {{ {name}({given}); }};
  emulated::run(width, height, [](void *data) {{ (*(decltype(work) *)data)(); }}, &work);
}}
"""


class Mapped:
    """Main memory that devices can access."""

    def __init__(self) -> None:
        self._memory = (ctypes.c_char * _MAPPED)()
        self._used = 0
        library().map_memory(ctypes.addressof(self._memory), _MAPPED)

    def take(self, nbytes: int) -> int:
        """The address of ``nbytes`` more bytes, all 0."""
        at, self._used = self._used, self._used + -(-nbytes // 8) * 8
        assert self._used <= _MAPPED
        return ctypes.addressof(self._memory) + at


@cache
def mapped() -> Mapped:
    return Mapped()


def here(address: int) -> int:
    """Where the emulator keeps what is at an address."""
    return address & ~DEVICE_BIT


class HostQueue(Queue):
    """Everything happens when it is ordered."""

    def copy(self, target: CudaMemory, source: CudaMemory) -> None:
        assert target.size == source.size
        ctypes.memmove(here(target.address), here(source.address), source.size)


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
        found = CudaMemory(address | DEVICE_BIT, nbytes, room)
        weakref.finalize(found, self._free, nbytes)
        return found

    def _free(self, nbytes: int) -> None:
        self.used -= nbytes

    def main_memory(self, block: Block, offset: int, nbytes: int) -> CudaMemory:
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
        width, height = grid
        getattr(library(), f"launch_{name}")(min(width, _MOST_BLOCKS), height, *given)

    def upload(self, address: int, content: Any) -> None:
        ctypes.memmove(here(address), content, ctypes.sizeof(content))

    def finish(self) -> None:
        pass

    def cells(self, count: int) -> tuple[int, object]:
        return mapped().take(8 * count), mapped()

    def table(self, nbytes: int) -> CudaMemory:
        found = self.allocate(nbytes)
        ctypes.memset(here(found.address), 0, nbytes)
        return found

    def bring(self, memory: CudaMemory) -> CudaMemory:
        copy = ctypes.create_string_buffer(memory.size)
        ctypes.memmove(copy, here(memory.address), memory.size)
        return CudaMemory(ctypes.addressof(copy), memory.size, copy)
