"""Which devices of this machine can compute, and how fast, without importing torch.

NVIDIA's are asked for through the management library that comes with their driver (NVML): it
opens no context on a device, so looking costs milliseconds and takes nothing. How fast
a device computes is assumed from its kind.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mergeloom.engine.base.errors import DeviceError

CPU, AUTO = "cpu", "auto"

_LANE_BYTES = 0.985e9
"""Bytes a second over one lane of PCI Express of the third generation; each later one doubles."""
_REACHED = 0.8
"""Share of a bus's rate that large copies reach."""
_USUAL_BUS = 12e9
_UNIFIED_BUS = 60e9

_CUDA_SPEED = 12.0
_MPS_SPEED = 6.0
_CUDA_HOST_BYTES = 256 << 20
_MPS_HOST_BYTES = 512 << 20
_CUDA_START = 0.5
_MPS_START = 1.0


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A device beside the CPU, as a schedule must know it.

    ``name`` is its kind and number (``cuda:0``), ``title`` its maker's. What is on it may occupy
    ``memory_bytes``. Bytes come and go at ``bus_rate`` a second, each way; arithmetic on grains
    runs ``speed`` times as fast as on one core. ``double`` says whether it has float64. Using it
    takes ``start_seconds`` once, and ``host_bytes`` of this machine's memory.
    """

    name: str
    title: str
    memory_bytes: int
    bus_rate: float
    speed: float
    double: bool = True
    start_seconds: float = _CUDA_START
    host_bytes: int = _CUDA_HOST_BYTES

    @property
    def kind(self) -> str:
        """The part of its name that it shares with others of its make."""
        return self.name.partition(":")[0]


def found_devices(compiles: Callable[[], bool]) -> tuple[Accelerator, ...]:
    """The devices of this machine that can be used; their memory is what is free now.

    NVIDIA's need a compiler: ``compiles`` says whether it is there.
    """
    if sys.platform == "darwin":
        return _apple()
    found = tuple(nvidia_devices(_load_nvml(), os.environ))
    return found if found and compiles() else ()


def choose(
    wanted: str, vram: int | None, found: Callable[[], tuple[Accelerator, ...]]
) -> tuple[Accelerator, ...]:
    """The devices that a run may use, each with the memory that it may use there.

    ``wanted`` is ``auto``, ``cpu``, a kind (``cuda``) or a name (``cuda:1``); ``vram`` the bytes
    on each device, by default four fifths of what is free.

    Raises:
        DeviceError: what is wanted is not there, or means nothing.
    """
    kind, colon, number = wanted.partition(":")
    known = kind in (AUTO, CPU, "cuda", "mps") and (number.isdigit() if colon else True)
    if not known or (colon and kind != "cuda"):
        raise DeviceError(f"--device '{wanted}' is unknown: choose auto, cpu, cuda, cuda:N or mps")
    if kind == CPU:
        return ()
    devices = found()
    if kind != AUTO:
        matching = tuple(d for d in devices if wanted in (d.name, d.kind))
        if not matching:
            names = ", ".join(device.name for device in devices) or "none"
            raise DeviceError(
                f"--device '{wanted}' is not there; devices that can be used here: {names}",
                remedy="leave the option out, and the merge runs on what there is; NVIDIA's need "
                "their driver, and the compiler that torch's builds for CUDA bring or the package "
                "nvidia-cuda-nvrtc",
            )
        devices = matching
    return tuple(
        replace(device, memory_bytes=device.memory_bytes * 4 // 5 if vram is None else vram)
        for device in devices
    )


def nvidia_devices(library: Any, environment: Mapping[str, str]) -> Iterator[Accelerator]:
    """The NVIDIA devices that CUDA shows to this process, numbered as it numbers them.

    ``library`` is NVML, or ``None``.
    """
    if library is None or library.nvmlInit_v2() != 0:
        return
    try:
        handles = _visible(library, environment.get("CUDA_VISIBLE_DEVICES"))
        for number, handle in enumerate(handles):
            memory = (ctypes.c_ulonglong * 3)()  # total, free, used
            if library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) == 0:
                yield Accelerator(
                    name=f"cuda:{number}",
                    title=_title(library, handle),
                    memory_bytes=int(memory[1]),
                    bus_rate=_bus_rate(library, handle),
                    speed=_CUDA_SPEED,
                )
    finally:
        library.nvmlShutdown()


def _load_nvml() -> Any:
    for name in ("libnvidia-ml.so.1", "libnvidia-ml.so"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _visible(library: Any, setting: str | None) -> Iterator[ctypes.c_void_p]:
    """Handles in CUDA's order: all, or those that the environment names, up to one it does not."""
    if setting is None:
        count = ctypes.c_uint()
        if library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return
        setting = ",".join(map(str, range(count.value)))
    for word in setting.split(","):
        name, handle = word.strip(), ctypes.c_void_p()
        if name.isdigit():
            failed = library.nvmlDeviceGetHandleByIndex_v2(
                ctypes.c_uint(int(name)), ctypes.byref(handle)
            )
        else:
            failed = library.nvmlDeviceGetHandleByUUID(name.encode(), ctypes.byref(handle))
        if failed:
            return
        yield handle


def _title(library: Any, handle: ctypes.c_void_p) -> str:
    name = ctypes.create_string_buffer(96)
    if library.nvmlDeviceGetName(handle, name, ctypes.c_uint(len(name))) != 0:
        return "NVIDIA device"
    return name.value.decode(errors="replace")


def _bus_rate(library: Any, handle: ctypes.c_void_p) -> float:
    generation, width = ctypes.c_uint(), ctypes.c_uint()
    failed = library.nvmlDeviceGetMaxPcieLinkGeneration(handle, ctypes.byref(generation))
    failed = failed or library.nvmlDeviceGetMaxPcieLinkWidth(handle, ctypes.byref(width))
    if failed or not generation.value or not width.value:
        return _USUAL_BUS
    return _LANE_BYTES * 2.0 ** (generation.value - 3) * width.value * _REACHED


def _apple() -> tuple[Accelerator, ...]:
    import psutil

    if platform.machine() != "arm64":
        return ()
    memory = psutil.virtual_memory()
    device = Accelerator(
        name="mps",
        title="Apple GPU",
        memory_bytes=min(memory.available, memory.total * 2 // 3),
        bus_rate=_UNIFIED_BUS,
        speed=_MPS_SPEED,
        double=False,
        start_seconds=_MPS_START,
        host_bytes=_MPS_HOST_BYTES,
    )
    return (device,)
