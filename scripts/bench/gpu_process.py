"""Processes started by `scripts/run gpu`: a traced merge, and measurements of rates.

python -m scripts.bench.gpu_process facts
python -m scripts.bench.gpu_process merge --without-hardware BYTES CONFIG OUT ...
python -m scripts.bench.gpu_process trace [--without-hardware BYTES] CONFIG OUT DEVICE
python -m scripts.bench.gpu_process profile [--without-hardware BYTES] CONFIG OUT DEVICE
python -m scripts.bench.gpu_process compare ONE OTHER

All but a merge print one JSON document as their last line.
"""

from __future__ import annotations

import cProfile
import json
import pstats
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from scripts.bench.gpu_trace import traffic

_PIECE = 1 << 28
_REPEAT = 20
_FUNCTIONS = 40
_BLOCK = 1 << 24
"""Elements compared at once."""


def facts() -> dict[str, Any]:
    """Torch's description of the device, and its rates of copying and launching."""
    torch: Any = import_module("torch")
    found: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    if not torch.cuda.is_available():
        return found
    began = time.perf_counter()
    torch.cuda.init()
    torch.empty(1, device="cuda")
    found["start_seconds"] = time.perf_counter() - began
    found["title"] = torch.cuda.get_device_name()
    there = torch.empty(_PIECE, dtype=torch.uint8, device="cuda")
    plain = torch.zeros(_PIECE, dtype=torch.uint8)
    began = time.perf_counter()
    status = torch.cuda.cudart().cudaHostRegister(plain.data_ptr(), _PIECE, 0)
    found["pin_seconds_per_gib"] = (time.perf_counter() - began) * (1 << 30) / _PIECE
    pageable = torch.zeros(_PIECE, dtype=torch.uint8)
    for name, here in (("pinned", plain), ("pageable", pageable)):
        up = _seconds(partial(there.copy_, here, non_blocking=True))
        down = _seconds(partial(here.copy_, there, non_blocking=True))
        found[f"{name}_up_bytes_per_second"] = _PIECE / up
        found[f"{name}_down_bytes_per_second"] = _PIECE / down
    if int(status) == 0:
        torch.cuda.cudart().cudaHostUnregister(plain.data_ptr())
    small = torch.zeros(1, device="cuda")
    found["launch_seconds"] = _seconds(lambda: [small.add_(1) for _ in range(1000)]) / 1000
    other = torch.empty_like(there)
    found["device_copy_bytes_per_second"] = 2 * _PIECE / _seconds(lambda: other.copy_(there))
    return found


def _seconds(do: Callable[[], object]) -> float:
    """The shortest measured time of an operation on the device."""
    torch: Any = import_module("torch")
    best = float("inf")
    for _ in range(_REPEAT):
        torch.cuda.synchronize()
        began = time.perf_counter()
        do()
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return best


def merge(arguments: Sequence[str]) -> NoReturn:
    """A merge as the command line runs it, which ends the process."""
    given = list(arguments)
    fake = _option(given, "--without-hardware")
    if fake is not None:
        without_hardware(int(fake))
    sys.argv = ["mergeloom", "merge", *given, "--quiet"]
    import_module("mergeloom.cli").main()
    raise AssertionError("the command line's program ends the process")


def trace(arguments: Sequence[str]) -> dict[str, Any]:
    """A merge of a configuration into a directory, and what the device did meanwhile.

    That is nothing where torch has no CUDA.
    """
    given = list(arguments)
    fake = _option(given, "--without-hardware")
    if fake is not None:
        without_hardware(int(fake))
    config, output, device = given
    profiler: Any = import_module("torch.profiler")
    on_device = profiler.ProfilerActivity.CUDA
    traced = on_device in profiler.supported_activities()
    tracer: Any = profiler.profile(activities=[on_device]) if traced else nullcontext()
    began = time.perf_counter()
    with tracer:
        import_module("mergeloom").merge(Path(config), output, device=device)
    seconds = time.perf_counter() - began
    if not traced:
        return {"seconds": seconds, "traffic": None}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        tracer.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return {"seconds": seconds, "traffic": asdict(traffic(events))}


def profile(arguments: Sequence[str]) -> dict[str, Any]:
    """A merge of a configuration into a directory, and what the thread that launches did meanwhile:
    when it began and ended, in seconds after the start of the program, and the functions in which
    it spent most time."""
    given = list(arguments)
    fake = _option(given, "--without-hardware")
    if fake is not None:
        without_hardware(int(fake))
    config, output, device = given
    worker: Any = import_module("mergeloom.engine.run.device_worker").DeviceWorker
    opening: Any = import_module("mergeloom.engine.run.devices")
    began, profiler, moments = time.perf_counter(), cProfile.Profile(), dict[str, float]()

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            moments[f"{name} begins"] = time.perf_counter() - began
            try:
                return function(*given)
            finally:
                moments[f"{name} ends"] = time.perf_counter() - began

        return call

    run = worker.run
    worker.run = timed("worker", lambda self: profiler.runcall(run, self))
    opening.open_device = timed("opening", opening.open_device)
    opening.start_early(device)
    import_module("mergeloom").merge(Path(config), output, device=device)
    moments["merged"] = time.perf_counter() - began
    stats: Any = pstats.Stats(profiler)
    functions = sorted(stats.stats.items(), key=lambda item: -item[1][2])[:_FUNCTIONS]
    rows = [
        [f"{Path(file).name}:{line} {name}", calls, round(own, 3), round(total, 3)]
        for (file, line, name), (_, calls, own, total, _) in functions
    ]
    return {"moments": moments, "functions": rows}


def without_hardware(memory: int) -> None:
    """Present this machine's processor to this process as a device with ``memory`` bytes."""
    fake: Any = import_module("tests.engine.fake_device")
    host: Any = import_module("tests.engine.host_cuda")
    found = (fake.accelerator(memory, "cuda:0"),)
    for module, name, value in (
        ("mergeloom.engine.hardware.process", "devices", lambda: found),
        ("mergeloom.engine.hardware.device_code", "device_code", lambda *_: b""),
        ("mergeloom.engine.run.devices", "open_device", host.HostDevice),
    ):
        setattr(import_module(module), name, value)


def _option(arguments: list[str], name: str) -> str | None:
    """Take an option and its value out of ``arguments``."""
    if name not in arguments:
        return None
    place = arguments.index(name)
    value = arguments[place + 1]
    del arguments[place : place + 2]
    return value


def compare(one: Path, other: Path) -> dict[str, Any]:
    """The distance of two bfloat16 outputs, in steps between adjacent numbers."""
    import numpy as np

    from mergeloom.engine.output.manifest import DIRECTORY, NAME

    records = [
        json.loads((each / DIRECTORY / NAME).read_text())["tensors"] for each in (one, other)
    ]
    worst, differing, beyond, elements, where = 0, 0, 0, 0, ""
    for first, second in zip(*records, strict=True):
        assert first["name"] == second["name"]
        if first["digest"] == second["digest"] and first["digest"]:
            elements += first["nbytes"] // 2
            continue
        sides = [
            np.memmap(folder / each["file"], np.int16, "r", each["offset"], (each["nbytes"] // 2,))
            for folder, each in ((one, first), (other, second))
        ]
        for start in range(0, sides[0].size, _BLOCK):
            steps = [_ordered(np.asarray(side[start : start + _BLOCK], np.int32)) for side in sides]
            apart = np.abs(steps[0] - steps[1])
            elements, differing = elements + apart.size, differing + int(np.count_nonzero(apart))
            beyond += int(np.count_nonzero(apart > 1))
            most = int(apart.max(initial=0))
            if most > worst:
                worst, where = most, first["name"]
    counts = {"elements": elements, "differing": differing, "beyond_one_step": beyond}
    return {**counts, "most_steps": worst, "where": where}


def _ordered(bits: Any) -> Any:
    """The bits of bfloat16 numbers, as integers in the same order."""
    import numpy as np

    return np.where(bits < 0, -(bits & 0x7FFF), bits)


def main(arguments: Sequence[str]) -> None:
    what, *rest = arguments
    if what == "merge":
        merge(rest)
    result = (
        facts()
        if what == "facts"
        else trace(rest)
        if what == "trace"
        else profile(rest)
        if what == "profile"
        else compare(Path(rest[0]), Path(rest[1]))
    )
    print("\n" + json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
