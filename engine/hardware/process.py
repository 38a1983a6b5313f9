"""What this machine and this process have: cores, memory, limits."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

import psutil

from mergeloom.engine.base.units import MIB
from mergeloom.engine.graph.kernel import Arithmetic
from mergeloom.engine.hardware.accelerators import Accelerator, found_devices
from mergeloom.engine.hardware.device_code import compiler
from mergeloom.engine.hardware.profile import keep, recall
from mergeloom.engine.hardware.rates import Rates, Sample
from mergeloom.engine.hardware.spec import Machine

_ROUND = 16 * MIB

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8

_RUNTIME_BYTES = 288 * MIB
"""Memory that importing and using torch adds at least. Less is not believed of any run: the kernel
maps what surrounds a page of a library where it is cached, which makes 70 MiB of difference."""

_ACCELERATED_RUNTIME_BYTES = 1024 * MIB
"""The same for builds of torch that carry an accelerator's libraries, until it was measured."""

_RUNTIME, _RATES, _RATIOS = "runtime_bytes", "rates", "ratios"
_MOST_RATIOS = 8
_TELLING = 2.0
"""Seconds of a run from which others can be judged."""
"""Sections of what is remembered."""


def available_threads() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def resident_bytes() -> int:
    """Memory that this process occupies now, as the kernel counts it."""
    return int(_process(os.getpid()).memory_info().rss)


@cache
def _process(number: int) -> psutil.Process:
    # Each new one looks up when the process began.
    return psutil.Process(number)


def peak_bytes() -> int:
    """The most memory that this process ever occupied, as the kernel counts it."""
    try:
        # What getrusage tells on Linux includes the process that this one was forked from.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows, where psutil asks the system
        memory = _process(os.getpid()).memory_info()
        return int(getattr(memory, "peak_wset", memory.rss))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_bytes() -> tuple[int, int] | None:
    """Bytes that this process read from and wrote to storage, as the kernel counts them."""
    try:
        counters = psutil.Process().io_counters()
    except (AttributeError, psutil.Error, OSError):
        return None
    return int(counters.read_bytes), int(counters.write_bytes)


def bound_heap() -> None:
    """Let glibc give freed memory back at once, for the rest of the process.

    Its defaults adapt: once a large piece was freed, pieces of that size come from the heap,
    which long-lived small ones then keep from shrinking. Hundreds of megabytes over the budget
    were seen so. Elsewhere than with glibc this does nothing.
    """
    mallopt = _of_glibc("mallopt")
    for option, value in (
        (_M_MMAP_THRESHOLD, 1 << 20),
        (_M_TRIM_THRESHOLD, 8 << 20),
        (_M_ARENA_MAX, 2),
    ):
        mallopt(option, value)


def trim_heap() -> None:
    """Give back what lies free between pieces of the heap that are in use.

    Arithmetic leaves gaps between long-lived small pieces: a hundred megabytes of
    them were seen. It takes a millisecond. Elsewhere than with glibc this does nothing.
    """
    _of_glibc("malloc_trim")(0)


@cache
def _of_glibc(function: str) -> Callable[..., object]:
    """A function of glibc, or one that does nothing where that is not the C library."""
    try:
        found: Callable[..., object] = getattr(ctypes.CDLL(None), function)
    except (AttributeError, OSError, TypeError):
        return lambda *_: None
    return found


def memory_limit() -> int:
    """Bytes of memory that this process may hope for: what is available, cgroups respected."""
    limits = [psutil.virtual_memory().available + resident_bytes()]
    limits += [limit for path in _cgroup_limit_files() if (limit := _read_limit(path))]
    return min(limits)


def machine_bytes() -> int:
    """Bytes of memory that this machine has for this process: all of it, cgroups respected."""
    limits = [psutil.virtual_memory().total]
    limits += [limit for path in _cgroup_limit_files() if (limit := _read_limit(path))]
    return min(limits)


def default_budget() -> int:
    """The RAM budget where none is given: four fifths of what is available."""
    return memory_limit() * 4 // 5


def this_machine(arithmetic: Arithmetic, torch: Arithmetic, threads: int | None = None) -> Machine:
    """What a schedule made in this process has to reckon with, devices apart.

    The CPU computes by ``arithmetic``, and what that cannot do by ``torch``.
    """
    occupied = -(-resident_bytes() // _ROUND) * _ROUND
    runtime = runtime_bytes() if runtime_is_ahead() else 0
    workers = threads or available_threads()
    return Machine(workers, occupied, runtime, arithmetic, torch, rates=remembered_rates())


def devices() -> tuple[Accelerator, ...]:
    """The devices that can compute beside the CPU, with the memory that is free there now."""
    return found_devices(lambda: compiler() is not None)


def runtime_is_ahead() -> bool:
    """Whether torch is still to be imported, and its memory to be taken."""
    return "torch" not in sys.modules


def runtime_bytes() -> int:
    """Memory that torch will add to this process: as measured by earlier runs, or assumed."""
    remembered = _remembered_runtime()
    if remembered is not None:
        return remembered
    version = _torch_version()
    accelerated = not version.endswith("+cpu") and sys.platform == "linux"
    return _ACCELERATED_RUNTIME_BYTES if accelerated else _RUNTIME_BYTES


def remember_runtime_bytes(measured: int) -> None:
    """Record what torch took in a run, for the plans to come.

    Plans are upper bounds, so the most that was ever measured counts.
    """
    rounded = max(-(-measured // _ROUND) * _ROUND, _RUNTIME_BYTES)
    if rounded > (_remembered_runtime() or 0):
        keep(_RUNTIME, {_torch_version(): rounded})


def remembered_rates() -> Rates:
    """How fast this machine was in earlier runs."""
    return Rates.of_record(recall(_RATES))


def remembered_ratios() -> tuple[float, ...]:
    """How much longer than estimated the latest runs took, as factors."""
    found = recall(_RATIOS)
    if not isinstance(found, list):
        return ()
    good = (each for each in found if isinstance(each, float) and 1e-3 < each < 1e3)
    return tuple(good)[-_MOST_RATIOS:]


def remember_ratio(seconds: float, estimated: float) -> None:
    """Keep how long a run took that was ``estimated`` to take some seconds; of short ones most is
    beginning and end, which say nothing of others."""
    if min(seconds, estimated) >= _TELLING:
        keep(_RATIOS, [*remembered_ratios(), seconds / estimated][-_MOST_RATIOS:])


def remember_rates(samples: Mapping[str, Sample]) -> None:
    """Record what a run has measured, for the plans to come."""
    if samples:
        keep(_RATES, dict(remembered_rates().learnt(samples).measured))


def _remembered_runtime() -> int | None:
    found = recall(_RUNTIME)
    nbytes = found.get(_torch_version()) if isinstance(found, dict) else None
    return nbytes if isinstance(nbytes, int) and 0 < nbytes < 64 << 30 else None


def _torch_version() -> str:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return "none"


def _cgroup_limit_files() -> list[Path]:
    """Limit files of every cgroup that this process is in, up to the root (versions 1 and 2)."""
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
