"""The computing devices of this machine, found without importing torch.

NVIDIA devices are queried through the management library of their driver (NVML), which opens no
context on a device: the query takes milliseconds and no device memory.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from mergeloom.engine.base.errors import DeviceError
from mergeloom.engine.base.records import dataclass

CPU, AUTO = "cpu", "auto"

_CUDA_HOST_BYTES = 256 << 20
_MPS_HOST_BYTES = 512 << 20
_CUDA_START = 0.5
_MPS_START = 1.0


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A device other than the CPU, as described to the scheduler.

    ``name`` is kind and number (``cuda:0``), ``title`` the product name. ``memory_bytes`` is the
    device memory that may be used; ``has_float64`` says whether it computes in float64. Using it
    takes ``start_seconds`` once, and ``host_bytes`` of main memory.
    """

    name: str
    title: str
    memory_bytes: int
    has_float64: bool = True
    start_seconds: float = _CUDA_START
    host_bytes: int = _CUDA_HOST_BYTES

    @property
    def kind(self) -> str:
        """The part of the name before the number."""
        return self.name.partition(":")[0]


def found_devices(compiles: Callable[[], bool]) -> tuple[Accelerator, ...]:
    """The usable devices of this machine, with their free memory.

    NVIDIA devices need a compiler; ``compiles`` returns whether there is one.
    """
    if sys.platform == "darwin":
        return _apple()
    found = tuple(nvidia_devices(_load_nvml(), os.environ))
    return found if found and compiles() else ()


def choose(
    wanted: str, vram: int | None, found: Callable[[], tuple[Accelerator, ...]]
) -> tuple[Accelerator, ...]:
    """The devices that a run may use, each with its memory budget.

    ``wanted`` is ``auto``, ``cpu``, a kind (``cuda``) or a name (``cuda:1``); ``vram`` is the
    budget in bytes per device, by default 80% of the free memory.

    Raises:
        DeviceError: the device is not available or not known.
    """
    kind, colon, number = wanted.partition(":")
    known = kind in (AUTO, CPU, "cuda", "mps") and (number.isdigit() if colon else True)
    if not known or (colon and kind != "cuda"):
        raise DeviceError(
            f"--device '{wanted}' is unknown", remedy="choose auto, cpu, cuda, cuda:N or mps"
        )
    if kind == CPU:
        return ()
    devices = found()
    if kind != AUTO:
        matching = tuple(d for d in devices if wanted in (d.name, d.kind))
        if not matching:
            names = ", ".join(device.name for device in devices) or "none"
            raise DeviceError(
                f"--device '{wanted}' is not available; available devices: {names}",
                remedy="leave the option out to use what is available; NVIDIA devices need their "
                "driver, and NVIDIA's run-time compiler: pip install 'mergeloom[cuda]'",
            )
        devices = matching
    return tuple(
        replace(device, memory_bytes=device.memory_bytes * 4 // 5 if vram is None else vram)
        for device in devices
    )


def nvidia_devices(library: Any, environment: Mapping[str, str]) -> Iterator[Accelerator]:
    """The NVIDIA devices visible to this process, in CUDA's numbering.

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
    """Handles in CUDA's order: all, or those named in the environment up to an invalid one."""
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


def _apple() -> tuple[Accelerator, ...]:
    import psutil

    if platform.machine() != "arm64":
        return ()
    memory = psutil.virtual_memory()
    device = Accelerator(
        name="mps",
        title="Apple GPU",
        memory_bytes=min(memory.available, memory.total * 2 // 3),
        has_float64=False,
        start_seconds=_MPS_START,
        host_bytes=_MPS_HOST_BYTES,
    )
    return (device,)
