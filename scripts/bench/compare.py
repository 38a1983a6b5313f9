"""Compare run time and memory of mergeloom and mergekit on generated checkpoints.

    scripts/run compare --mergekit ENVIRONMENT --repeat 3
    scripts/run compare --work DIR --merges linear,ties --memory-limit 512MiB --floor
    scripts/run compare --merges all --device cuda --vram 2GiB --warm --mergekit ENVIRONMENT

Each run is a whole process, start-up included. It starts with the checkpoints out of the page
cache, or in it with --warm; the libraries of both programs are in it. Runs of the two programs, and
with --floor of raw I/O, alternate, and the fastest run of each counts. The settings of raw I/O are
those that were fastest for the first merge. Bytes read and written are counted by the kernel.

When mergeloom ends, its output is durable; mergekit's time to a durable output (column *durable*)
includes writing its files back right after its end. With --device cuda, mergekit runs with --cuda,
and the driver counts the peak memory of the device.

Checkpoints are generated once in the work directory and used again, unless --clean removes them.
Outputs are removed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scripts.bench.configurations import configuration, model_directories
from scripts.bench.device_memory import DeviceMemory
from scripts.bench.floor import RawIO
from scripts.bench.measure import Measured, cool, run, warm_up
from scripts.fixtures.environment import ROOT
from scripts.fixtures.shapes import SHAPES

USUAL = "passthrough,linear,slerp,ties,task_arithmetic"
VARIABLES = {
    "PYTHONPATH": str(ROOT),
    "HF_HUB_OFFLINE": "1",
    "PYTHONWARNINGS": "ignore",
    "PYTHONDONTWRITEBYTECODE": "",  # modules are compiled once, as where a package is installed
}
_OUR_IMPORTS = """
import numpy, mergeloom.cli, mergeloom.api
from mergeloom.methods.ops.arithmetic import LIBRARY
LIBRARY.open(LIBRARY.built())  # reads what loads machine code
"""
_THEIR_IMPORTS = "import mergekit.merge"
_TUNES = 3
_WORK = Path(tempfile.gettempdir()) / "mergeloom-bench"


@dataclass(frozen=True, slots=True)
class Plan:
    """Settings: paths, sizes in bytes, number of runs and threads."""

    shape: str
    work: Path
    mergekit: Path | None
    repeat: int
    ram: str | None
    limit: int | None
    io: str
    threads: int | None
    floor: bool
    device: str | None
    vram: str | None
    warm: bool


@dataclass(frozen=True, slots=True)
class Row:
    """The measurements of one merge; sizes in bytes, times in seconds."""

    merge: str
    seconds: list[float]
    peak_bytes: int
    read_bytes: int
    write_bytes: int
    predicted_read_bytes: int
    predicted_write_bytes: int
    predicted_peak_bytes: int
    group_peak_bytes: int | None
    group_limit_hits: int | None
    group_killed: int | None
    mergekit_seconds: list[float]
    mergekit_durable_seconds: list[float]
    mergekit_peak_bytes: int | None
    mergekit_read_bytes: int | None
    mergekit_write_bytes: int | None
    device_peak_bytes: int | None
    mergekit_device_peak_bytes: int | None
    floor_seconds: list[float]
    failures: list[str]

    @property
    def ratio(self) -> float | None:
        """The speed-up over mergekit."""
        if not (self.seconds and self.mergekit_seconds):
            return None
        return min(self.mergekit_seconds) / min(self.seconds)

    @property
    def above_floor(self) -> float | None:
        """The time, start-up included, as a multiple of the time of raw I/O."""
        if not (self.seconds and self.floor_seconds):
            return None
        return min(self.seconds) / min(self.floor_seconds)


def directories(work: Path, shape: str) -> tuple[Path, list[Path]]:
    """The paths of a base and its fine-tunes."""
    return work / f"{shape}-base", [work / f"{shape}-tune{n}" for n in range(1, _TUNES + 1)]


def checkpoints(
    work: Path, shape: str, needed: Collection[Path] | None = None
) -> tuple[Path, list[Path]]:
    """Generate a base and three fine-tunes, or those in ``needed``, unless they exist in this
    shape.

    Raises:
        OSError: they cannot be written.
    """
    base, tunes = directories(work, shape)
    for number, target in enumerate([base, *tunes]):
        if needed is not None and target not in needed:
            continue
        stamp = _stamp(target)
        wanted = json.dumps(asdict(SHAPES[shape]) | {"seed": number})
        if not stamp.exists() or stamp.read_text() != wanted:
            # In another process: memory of this one would be part of its children's peaks.
            command = [sys.executable, str(ROOT / "scripts" / "run"), "checkpoints", shape]
            command += [str(target), "--force", "--seed", str(number)]
            stamp.unlink(missing_ok=True)
            made = run(command + (["--finetune-of", "0"] if number else []))
            if made.status != 0:
                raise OSError(made.complaints.strip())
            stamp.write_text(wanted)
    return base, tunes


def clean(made: Sequence[Path]) -> None:
    """Remove the checkpoints that :func:`checkpoints` generated."""
    for directory in made:
        _stamp(directory).unlink(missing_ok=True)
        shutil.rmtree(directory, ignore_errors=True)


def _stamp(directory: Path) -> Path:
    """The file that describes how a complete checkpoint was generated."""
    return directory.with_name(f"{directory.name}.made")


def methods(names: str) -> list[dict[str, Any]]:
    """Descriptions of the methods named in a comma-separated list; ``all`` means every method.

    Raises:
        ValueError: a name is unknown.
    """
    listed = run([sys.executable, "-m", "mergeloom", "methods", "--json"], variables=VARIABLES)
    known = {method["name"]: method for method in json.loads(listed.output)["methods"]}
    chosen = list(known) if names == "all" else names.split(",")
    for name in chosen:
        if name not in known:
            raise ValueError(f"no merge method '{name}': choose from {', '.join(known)}, or all")
    return [known[name] for name in chosen]


def measure(
    method: dict[str, Any],
    plan: Plan,
    base: Path,
    tunes: Sequence[Path],
    raw: RawIO | None = None,
    theirs: int | None = None,
) -> Row:
    """Run one merge ``plan.repeat`` times with each program, but mergekit ``theirs`` times."""
    document = configuration(method, base, tunes, SHAPES[plan.shape].layers)
    config = plan.work / f"{method['name']}.yml"
    config.write_text(json.dumps(document, indent=2) + "\n")
    files = [
        file
        for model in model_directories(document)
        for file in sorted(model.glob("*.safetensors"))
    ]
    runs: dict[str, list[_Run]] = {"mergeloom": [], "mergekit": []}
    failures: list[str] = []
    lowest: list[float] = []
    for number in range(plan.repeat):
        commands = {"mergeloom": _ours(plan, config)}
        if plan.mergekit is not None and number < (plan.repeat if theirs is None else theirs):
            commands["mergekit"] = _theirs(plan.mergekit, plan, config)
        for program, command in commands.items():
            limit = plan.limit if program == "mergeloom" else None
            result = _fresh(command, plan.work / "merged", files, limit, plan.warm)
            if result.measured.status == 0:
                runs[program].append(result)
            else:
                failures.append(_failure(program, result.measured))
        if raw is not None and runs["mergeloom"]:
            told = json.loads(runs["mergeloom"][-1].measured.output)
            lowest.append(raw.seconds(files, told["io"]))
    return _row(method, runs["mergeloom"], runs["mergekit"], lowest, failures)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; the result is its exit status."""
    from mergeloom.engine.base.errors import LoomError
    from mergeloom.report.units import parse_size

    options = _parser().parse_args(arguments)
    try:
        limit = None if options.memory_limit is None else parse_size(options.memory_limit)
        plan = Plan(
            options.shape,
            options.work.resolve(),
            options.mergekit,
            options.repeat,
            options.ram or options.memory_limit,
            limit,
            options.io,
            options.threads,
            options.floor,
            options.device,
            options.vram,
            options.warm,
        )
        if plan.mergekit is not None and not (plan.mergekit / "bin" / "mergekit-yaml").exists():
            raise ValueError(f"'{plan.mergekit}' has no bin/mergekit-yaml: name an environment")
        chosen = methods(options.merges)
        plan.work.mkdir(parents=True, exist_ok=True)
        base, tunes = directories(plan.work, plan.shape)
        layers = SHAPES[plan.shape].layers
        documents = (configuration(method, base, tunes, layers) for method in chosen)
        needed = {model for document in documents for model in model_directories(document)}
        checkpoints(plan.work, plan.shape, needed)
        rows = []
        raw = RawIO(plan.work / "floor.bin") if plan.floor else None
        print(_HEADING)
        for method in chosen:
            rows.append(measure(method, plan, base, tunes, raw))
            print(_line(rows[-1]), flush=True)
        if options.clean:
            clean([base, *tunes])
    except (OSError, ValueError, LoomError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 1
    if raw is not None and raw.settings is not None:
        print(f"raw I/O: {raw.settings}")
    for failure in (failure for row in rows for failure in row.failures):
        print(f"compare: {failure}", file=sys.stderr)
    target = options.json or plan.work / "bench.json"
    _write(target, plan, rows)
    return 1 if any(row.failures for row in rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--shape", choices=list(SHAPES), default="1b", help="shape of the models [default: 1b]"
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=_WORK,
        metavar="DIR",
        help=f"directory for checkpoints and outputs [default: {_WORK}]",
    )
    parser.add_argument(
        "--merges",
        default=USUAL,
        metavar="NAMES",
        help=f"merge methods, separated by commas, or all [default: {USUAL}]",
    )
    parser.add_argument(
        "--mergekit", type=Path, metavar="DIR", help="a Python environment with mergekit"
    )
    parser.add_argument(
        "--repeat", type=int, default=1, metavar="N", help="runs of each program [default: 1]"
    )
    parser.add_argument("--ram", metavar="SIZE", help="mergeloom's budget [default: memory limit]")
    parser.add_argument(
        "--memory-limit", metavar="SIZE", help="run mergeloom in a memory cgroup of this size"
    )
    parser.add_argument(
        "--io",
        choices=["auto", "direct", "buffered"],
        default="auto",
        help="mergeloom's --io [default: auto]",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="mergeloom's --threads")
    parser.add_argument("--device", metavar="NAME", help="mergeloom's --device")
    parser.add_argument("--vram", metavar="SIZE", help="mergeloom's --vram")
    parser.add_argument(
        "--warm", action="store_true", help="start with the inputs in the page cache"
    )
    parser.add_argument(
        "--floor", action="store_true", help="also measure raw I/O of the same bytes"
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write the results there [default: DIR/bench.json]",
    )
    after = parser.add_mutually_exclusive_group()
    after.add_argument("--keep", action="store_true", help="keep the checkpoints (the default)")
    after.add_argument("--clean", action="store_true", help="remove the checkpoints at the end")
    return parser


def _ours(plan: Plan, config: Path) -> list[str]:
    command = [sys.executable, "-m", "mergeloom", "merge", str(config), str(plan.work / "merged")]
    command += ["--quiet", "--json", "--io", plan.io]
    if plan.ram is not None:
        command += ["--ram", plan.ram]
    if plan.threads is not None:
        command += ["--threads", str(plan.threads)]
    if plan.device is not None:
        command += ["--device", plan.device]
    if plan.vram is not None:
        command += ["--vram", plan.vram]
    return command


def _theirs(environment: Path, plan: Plan, config: Path) -> list[str]:
    program = environment / "bin" / "mergekit-yaml"
    command = [str(program), str(config), str(plan.work / "merged"), "--quiet"]
    return [*command, "--cuda"] if (plan.device or "").startswith("cuda") else command


@dataclass(frozen=True, slots=True)
class _Run:
    """One run of a program, the seconds from its end until its output was durable, and the peak
    memory of the device, if there is one.
    """

    measured: Measured
    sync_seconds: float
    device_peak_bytes: int | None


def _fresh(
    command: list[str], output: Path, files: list[Path], limit: int | None, warm: bool
) -> _Run:
    """Run a command with its libraries in the page cache, and its inputs too with --warm."""
    shutil.rmtree(output, ignore_errors=True)
    cool(files)
    if warm:
        warm_up(files)
    python = Path(command[0]).parent / "python"
    imports = _THEIR_IMPORTS if "mergekit" in command[0] else _OUR_IMPORTS
    run([str(python), "-c", imports], variables=VARIABLES)
    try:
        with DeviceMemory() as device:
            measured = run(command, limit=limit, variables=VARIABLES)
        began = time.perf_counter()
        for path in output.glob("*.safetensors"):
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        return _Run(measured, time.perf_counter() - began, device.peak_bytes)
    finally:
        shutil.rmtree(output, ignore_errors=True)


def _most(runs: Sequence[_Run]) -> int | None:
    """The peak device memory over all runs."""
    found = [run.device_peak_bytes for run in runs if run.device_peak_bytes is not None]
    return max(found, default=None)


def _failure(program: str, result: Measured) -> str:
    lines = result.complaints.strip().splitlines()
    return f"{program} ended with status {result.status}: {lines[-1] if lines else 'no message'}"


def _row(
    method: dict[str, Any],
    our_runs: list[_Run],
    their_runs: list[_Run],
    lowest: list[float],
    failures: list[str],
) -> Row:
    ours = [each.measured for each in our_runs]
    theirs = [each.measured for each in their_runs]
    document = json.loads(ours[-1].output) if ours else {"io": {}, "memory": {}}
    groups = [result.group for result in ours if result.group is not None]
    reads, writes = document["io"].get("read_bytes", 0), document["io"].get("write_bytes", 0)
    return Row(
        merge=method["name"],
        seconds=[result.seconds for result in ours],
        peak_bytes=max((result.peak_bytes for result in ours), default=0),
        read_bytes=max((result.read_bytes for result in ours), default=0),
        write_bytes=max((result.write_bytes for result in ours), default=0),
        predicted_read_bytes=reads,
        predicted_write_bytes=writes,
        predicted_peak_bytes=document["memory"].get("peak_bytes", 0),
        group_peak_bytes=max((group.peak_bytes for group in groups), default=None),
        group_limit_hits=max((group.limit_hits for group in groups), default=None),
        group_killed=sum(group.killed for group in groups) if groups else None,
        mergekit_seconds=[result.seconds for result in theirs],
        mergekit_durable_seconds=[each.measured.seconds + each.sync_seconds for each in their_runs],
        mergekit_peak_bytes=max((result.peak_bytes for result in theirs), default=None),
        mergekit_read_bytes=max((result.read_bytes for result in theirs), default=None),
        mergekit_write_bytes=max((result.write_bytes for result in theirs), default=None),
        device_peak_bytes=_most(our_runs),
        mergekit_device_peak_bytes=_most(their_runs),
        floor_seconds=lowest,
        failures=[f"{method['name']}: {failure}" for failure in failures],
    )


_COLUMNS = {
    "seconds": 7,
    "memory": 8,
    "in group": 8,
    "hits": 5,
    "read": 8,
    "of plan": 7,
    "written": 8,
    "of plan ": 7,
    "mergekit": 8,
    "durable": 8,
    "memory ": 9,
    "device": 9,
    "device ": 9,
    "ratio": 6,
    "floor": 6,
    "above": 6,
}
_HEADING = "merge".ljust(16) + "".join(
    f"  {name.strip():>{width}}" for name, width in _COLUMNS.items()
)


def _line(row: Row) -> str:
    """A line of the table: seconds, MiB, decimal GB, per cent, ratios."""
    ours, theirs = min(row.seconds, default=None), min(row.mergekit_seconds, default=None)
    cells = (
        _cell("{:.2f}", ours),
        _cell("{:.0f} MiB", row.peak_bytes, 2**20),
        _cell("{:.0f} MiB", row.group_peak_bytes, 2**20),
        _cell("{:.0f}", row.group_limit_hits),
        _cell("{:.2f} GB", row.read_bytes, 1e9),
        _cell("{:.1%}", row.read_bytes, row.predicted_read_bytes),
        _cell("{:.2f} GB", row.write_bytes, 1e9),
        _cell("{:.1%}", row.write_bytes, row.predicted_write_bytes),
        _cell("{:.1f} s", theirs),
        _cell("{:.1f} s", min(row.mergekit_durable_seconds, default=None)),
        _cell("{:.0f} MiB", row.mergekit_peak_bytes, 2**20),
        _cell("{:.0f} MiB", row.device_peak_bytes, 2**20),
        _cell("{:.0f} MiB", row.mergekit_device_peak_bytes, 2**20),
        _cell("{:.1f}x", row.ratio),
        _cell("{:.2f}", min(row.floor_seconds, default=None)),
        _cell("{:.2f}x", row.above_floor),
    )
    widths = _COLUMNS.values()
    aligned = (f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    return row.merge.ljust(16) + "".join(aligned)


def _cell(text: str, value: float | None, unit: float = 1) -> str:
    """``value / unit`` in the format ``text``; a dash if it was not measured."""
    return "-" if value is None or not unit else text.format(value / unit)


def _write(path: Path, plan: Plan, rows: list[Row]) -> None:
    settings = asdict(plan) | {"work": None, "mergekit": plan.mergekit is not None}
    machine = {"cores": len(os.sched_getaffinity(0)), "python": sys.version.split()[0]}
    document = {
        "settings": settings,
        "machine": machine,
        "merges": [
            asdict(row) | {"ratio": row.ratio, "above_floor": row.above_floor} for row in rows
        ],
    }
    path.write_text(json.dumps(document, indent=2) + "\n")
