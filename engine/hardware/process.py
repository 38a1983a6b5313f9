"""Cores, memory and limits of this machine and process."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import psutil

from mergeloom.engine.base.units import MIB
from mergeloom.engine.base.versions import version_of
from mergeloom.engine.graph.arithmetic import Arithmetic
from mergeloom.engine.hardware.accelerators import Accelerator, found_devices
from mergeloom.engine.hardware.device_code import compiler
from mergeloom.engine.hardware.profile import load_section, save_section
from mergeloom.engine.hardware.spec import Machine

_ROUND = 16 * MIB

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8

_RUNTIME_BYTES = 288 * MIB
"""Minimum memory for importing and using torch. Smaller measurements are ignored: the kernel also
maps cached pages around a used page of a library, which varies by 70 MiB."""

_ACCELERATED_RUNTIME_BYTES = 1024 * MIB
"""The same for accelerator builds of torch, until it has been measured."""

_RUNTIME, _RATIOS = "runtime_bytes", "ratios"
"""Sections of the profile file."""
_MAX_RATIOS = 8
"""Number of runs whose ratios of actual to estimated time are remembered."""
_MIN_SECONDS = 2.0
"""Duration in seconds below which a run does not calibrate estimates."""


def available_threads() -> int:
    """Number of cores available to this process."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def resident_bytes() -> int:
    """Current resident memory of this process in bytes, as counted by the kernel."""
    return int(_process(os.getpid()).memory_info().rss)


@cache
def _process(number: int) -> psutil.Process:
    # Cached, because each new object looks up the start time of the process.
    return psutil.Process(number)


def peak_bytes() -> int:
    """Peak resident memory of this process in bytes, as counted by the kernel."""
    try:
        # On Linux, getrusage includes the peak of the process this one was forked from.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows: use psutil
        memory = _process(os.getpid()).memory_info()
        return int(getattr(memory, "peak_wset", memory.rss))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def storage_traffic() -> tuple[int, int] | None:
    """Bytes this process read from and wrote to storage; ``None`` if the kernel does not tell."""
    try:
        counters = psutil.Process().io_counters()
    except (AttributeError, psutil.Error, OSError):
        return None
    return int(counters.read_bytes), int(counters.write_bytes)


def bound_heap() -> None:
    """Make glibc return freed memory immediately, for the rest of the process.

    By default glibc adapts: once a large block was freed, blocks of that size come from the heap,
    which long-lived small blocks then keep from shrinking. That exceeded the budget by hundreds of
    megabytes. No effect with other C libraries.
    """
    mallopt = _of_glibc("mallopt")
    for option, value in (
        (_M_MMAP_THRESHOLD, 1 << 20),
        (_M_TRIM_THRESHOLD, 8 << 20),
        (_M_ARENA_MAX, 2),
    ):
        mallopt(option, value)


def trim_heap() -> None:
    """Return free memory between used blocks of the heap to the system.

    Arithmetic leaves gaps between long-lived small blocks, a hundred megabytes in one case. Takes
    a millisecond. No effect with other C libraries.
    """
    _of_glibc("malloc_trim")(0)


@cache
def _of_glibc(function: str) -> Callable[..., object]:
    """A function of glibc, or a no-op with other C libraries."""
    try:
        found: Callable[..., object] = getattr(ctypes.CDLL(None), function)
    except (AttributeError, OSError, TypeError):
        return lambda *_: None
    return found


def memory_limit() -> int:
    """Bytes of memory available to this process, respecting cgroup limits."""
    limits = [psutil.virtual_memory().available + resident_bytes()]
    limits += [limit for path in _cgroup_limit_files() if (limit := _read_limit(path))]
    return min(limits)


def machine_bytes() -> int:
    """Total bytes of memory of this machine, respecting cgroup limits."""
    limits = [psutil.virtual_memory().total]
    limits += [limit for path in _cgroup_limit_files() if (limit := _read_limit(path))]
    return min(limits)


def default_budget() -> int:
    """The default RAM budget: 80% of the available memory."""
    return memory_limit() * 4 // 5


def this_machine(arithmetic: Arithmetic, torch: Arithmetic, threads: int | None = None) -> Machine:
    """The machine as described to the scheduler, without devices.

    The CPU computes with ``arithmetic``, or with ``torch`` if that cannot.
    """
    occupied = -(-resident_bytes() // _ROUND) * _ROUND
    runtime = 0 if is_torch_loaded() else runtime_bytes()
    workers = threads or available_threads()
    return Machine(workers, occupied, runtime, arithmetic, torch)


def devices() -> tuple[Accelerator, ...]:
    """The usable devices other than the CPU, with their free memory."""
    return found_devices(lambda: compiler() is not None)


def is_torch_loaded() -> bool:
    """Whether torch has been imported."""
    return "torch" in sys.modules


def runtime_bytes() -> int:
    """Memory in bytes that torch will add to this process, measured by earlier runs or assumed."""
    remembered = _remembered_runtime()
    if remembered is not None:
        return remembered
    version = _torch_version()
    accelerated = not version.endswith("+cpu") and sys.platform == "linux"
    return _ACCELERATED_RUNTIME_BYTES if accelerated else _RUNTIME_BYTES


def remember_runtime_bytes(measured: int) -> None:
    """Record the memory that torch took in a run, for future plans.

    Plans are upper bounds, so the maximum ever measured is kept.
    """
    rounded = max(-(-measured // _ROUND) * _ROUND, _RUNTIME_BYTES)
    if rounded > (_remembered_runtime() or 0):
        save_section(_RUNTIME, {_torch_version(): rounded})


def remembered_ratios() -> tuple[float, ...]:
    """Ratios of actual to estimated time of the latest runs."""
    found = load_section(_RATIOS)
    if not isinstance(found, list):
        return ()
    good = (each for each in found if isinstance(each, float) and 1e-3 < each < 1e3)
    return tuple(good)[-_MAX_RATIOS:]


def remember_ratio(seconds: float, estimated: float) -> None:
    """Record actual and ``estimated`` seconds of a run. Short runs are ignored: most of their time
    is start-up and shutdown."""
    if min(seconds, estimated) >= _MIN_SECONDS:
        save_section(_RATIOS, [*remembered_ratios(), seconds / estimated][-_MAX_RATIOS:])


def _remembered_runtime() -> int | None:
    found = load_section(_RUNTIME)
    nbytes = found.get(_torch_version()) if isinstance(found, dict) else None
    return nbytes if isinstance(nbytes, int) and 0 < nbytes < 64 << 30 else None


def _torch_version() -> str:
    return version_of("torch") or "none"


def _cgroup_limit_files() -> list[Path]:
    """Limit files of every cgroup of this process, up to the root (versions 1 and 2)."""
    root = Path("/sys/fs/cgroup")
    files: list[Path] = []
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return files
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            base, name = root, "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = base / path.lstrip("/")
        for parent in (group, *group.parents):
            if parent == root.parent:
                break
            files.append(parent / name)
    return files


def _read_limit(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
