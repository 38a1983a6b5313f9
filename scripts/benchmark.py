"""Time mergeloom on generated checkpoints, beside mergekit where it is there.

    scripts/bench --work DIR --mergekit ENVIRONMENT --repeat 3
    scripts/bench --work DIR --merges linear,ties --memory-limit 512MiB --floor

Every run is a whole process, start-up included, and begins with the checkpoints out of the page
cache; the libraries of both programs are in it. Runs alternate between the programs. The least
time of each counts. Checkpoints are made in DIR once and stay there; outputs are removed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scripts.environment import ROOT
from scripts.floor import Floor, floor
from scripts.measuring import Measured, cool, run
from scripts.merges import configuration, model_directories
from scripts.shapes import SHAPES

USUAL = "passthrough,linear,slerp,ties,task_arithmetic"
VARIABLES = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
_TUNES = 3


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do: paths, sizes in bytes, numbers of runs and threads."""

    shape: str
    work: Path
    mergekit: Path | None
    repeat: int
    ram: str | None
    limit: int | None
    io: str
    threads: int | None
    floor: bool


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured of one merge; sizes in bytes, times in seconds."""

    merge: str
    seconds: list[float]
    peak_bytes: int
    read_bytes: int
    write_bytes: int
    device_read_bytes: int | None
    device_write_bytes: int | None
    predicted_peak_bytes: int
    group_peak_bytes: int | None
    group_limit_hits: int | None
    group_killed: int | None
    mergekit_seconds: list[float]
    mergekit_peak_bytes: int | None
    floor_seconds: float | None
    floor_settings: str | None
    startup_seconds: float | None
    failures: list[str]

    @property
    def ratio(self) -> float | None:
        """How many times faster than mergekit."""
        if not (self.seconds and self.mergekit_seconds):
            return None
        return min(self.mergekit_seconds) / min(self.seconds)

    @property
    def above_floor(self) -> float | None:
        """Time after start-up as a multiple of the floor."""
        if not self.seconds or self.floor_seconds is None or self.startup_seconds is None:
            return None
        return (min(self.seconds) - self.startup_seconds) / self.floor_seconds


def checkpoints(work: Path, shape: str) -> tuple[Path, list[Path]]:
    """A base and three fine-tunes of it; made once.

    Raises:
        OSError: they cannot be written.
    """
    directories = []
    for number in range(_TUNES + 1):
        target = work / f"{shape}-{'base' if number == 0 else f'tune{number}'}"
        stamp = target.with_name(f"{target.name}.made")
        if not stamp.exists():
            # In a process of its own: this one's memory would show in its children's peaks.
            command = [sys.executable, str(ROOT / "scripts" / "make_checkpoint"), shape]
            command += [str(target), "--force", "--seed", str(number)]
            made = run(command + (["--finetune-of", "0"] if number else []))
            if made.status != 0:
                raise OSError(made.complaints.strip())
            stamp.touch()
        directories.append(target)
    return directories[0], directories[1:]


def methods(names: str) -> list[dict[str, Any]]:
    """Descriptions of the methods named, separated by commas; ``all`` means every one.

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


def measure(method: dict[str, Any], plan: Plan, base: Path, tunes: Sequence[Path]) -> Row:
    """Run one merge as often as planned, by each program."""
    document = configuration(method, base, tunes, SHAPES[plan.shape].layers)
    config = plan.work / f"{method['name']}.yml"
    config.write_text(json.dumps(document, indent=2) + "\n")
    files = [
        file
        for model in model_directories(document)
        for file in sorted(model.glob("*.safetensors"))
    ]
    runs: dict[str, list[Measured]] = {"mergeloom": [], "mergekit": []}
    failures: list[str] = []
    for _ in range(plan.repeat):
        commands = {"mergeloom": _ours(plan, config)}
        if plan.mergekit is not None:
            commands["mergekit"] = _theirs(plan.mergekit, plan, config)
        for program, command in commands.items():
            limit = plan.limit if program == "mergeloom" else None
            result = _cold(command, plan.work / "merged", files, limit)
            if result.status == 0:
                runs[program].append(result)
            else:
                failures.append(_failure(program, result))
    return _row(method, plan, runs["mergeloom"], runs["mergekit"], failures, files)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; the result is its exit status."""
    from engine.errors import LoomError
    from mergeloom.sizes import parse_size

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
        )
        if plan.mergekit is not None and not (plan.mergekit / "bin" / "mergekit-yaml").exists():
            raise ValueError(f"'{plan.mergekit}' is no environment with mergekit in it")
        chosen = methods(options.merges)
        plan.work.mkdir(parents=True, exist_ok=True)
        base, tunes = checkpoints(plan.work, plan.shape)
        rows = []
        print(_HEADING)
        for method in chosen:
            rows.append(measure(method, plan, base, tunes))
            print(_line(rows[-1]), flush=True)
    except (OSError, ValueError, LoomError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    for failure in (failure for row in rows for failure in row.failures):
        print(f"bench: {failure}", file=sys.stderr)
    target = options.json or plan.work / "bench.json"
    _write(target, plan, rows)
    return 1 if any(row.failures for row in rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=list(SHAPES), default="1b")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="for all files")
    parser.add_argument("--merges", default=USUAL, metavar="NAMES", help=f"or all; default {USUAL}")
    parser.add_argument("--mergekit", type=Path, metavar="DIR", help="an environment that has it")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="runs of each program")
    parser.add_argument("--ram", metavar="SIZE", help="budget of mergeloom")
    parser.add_argument(
        "--memory-limit", metavar="SIZE", help="run mergeloom in a memory cgroup of that size"
    )
    parser.add_argument("--io", choices=["auto", "direct", "buffered"], default="auto")
    parser.add_argument("--threads", type=int, metavar="N")
    parser.add_argument("--floor", action="store_true", help="find the raw floor of each merge")
    parser.add_argument("--json", type=Path, metavar="FILE", help="default DIR/bench.json")
    return parser


def _ours(plan: Plan, config: Path) -> list[str]:
    command = [sys.executable, "-m", "mergeloom", "merge", str(config), str(plan.work / "merged")]
    command += ["--quiet", "--json", "--io", plan.io]
    if plan.ram is not None:
        command += ["--ram", plan.ram]
    if plan.threads is not None:
        command += ["--threads", str(plan.threads)]
    return command


def _theirs(environment: Path, plan: Plan, config: Path) -> list[str]:
    program = environment / "bin" / "mergekit-yaml"
    return [str(program), str(config), str(plan.work / "merged"), "--quiet"]


def _cold(command: list[str], output: Path, files: list[Path], limit: int | None) -> Measured:
    """Run a command with its input files out of the page cache and its libraries in it."""
    shutil.rmtree(output, ignore_errors=True)
    cool(files)
    imports = "import mergekit.merge" if "mergekit" in command[0] else "import torch, mergeloom.cli"
    python = Path(command[0]).parent / "python"
    run([str(python), "-c", imports], variables=VARIABLES)
    try:
        return run(command, limit=limit, variables=VARIABLES)
    finally:
        shutil.rmtree(output, ignore_errors=True)


def _failure(program: str, result: Measured) -> str:
    words = result.complaints.strip().splitlines()
    return f"{program} ended with status {result.status}: {words[-1] if words else 'no words'}"


def _row(
    method: dict[str, Any],
    plan: Plan,
    ours: list[Measured],
    theirs: list[Measured],
    failures: list[str],
    files: list[Path],
) -> Row:
    document = json.loads(ours[-1].output) if ours else {"measured": {}, "io": {}, "memory": {}}
    groups = [result.group for result in ours if result.group is not None]
    reads, writes = document["io"].get("read_bytes", 0), document["io"].get("write_bytes", 0)
    lowest: Floor | None = None
    startup = None
    if plan.floor and ours:
        lowest = floor(files, plan.work / "floor.bin", reads, writes, repeat=plan.repeat)
        startup = _startup(method["name"])
    return Row(
        merge=method["name"],
        seconds=[result.seconds for result in ours],
        peak_bytes=max((result.peak_bytes for result in ours), default=0),
        read_bytes=reads,
        write_bytes=writes,
        device_read_bytes=document["measured"].get("device_read_bytes"),
        device_write_bytes=document["measured"].get("device_write_bytes"),
        predicted_peak_bytes=document["memory"].get("peak_bytes", 0),
        group_peak_bytes=max((group.peak_bytes for group in groups), default=None),
        group_limit_hits=max((group.limit_hits for group in groups), default=None),
        group_killed=sum(group.killed for group in groups) if groups else None,
        mergekit_seconds=[result.seconds for result in theirs],
        mergekit_peak_bytes=max((result.peak_bytes for result in theirs), default=None),
        floor_seconds=None if lowest is None else lowest.seconds,
        floor_settings=None if lowest is None else str(lowest.settings),
        startup_seconds=startup,
        failures=[f"{method['name']}: {failure}" for failure in failures],
    )


def _startup(merge: str) -> float:
    """Seconds that the interpreter and the imports of a merge take; copying needs no torch."""
    imports = "import mergeloom.cli" if merge == "passthrough" else "import torch"
    command = [sys.executable, "-c", imports]
    return statistics.median(run(command, variables=VARIABLES).seconds for _ in range(5))


_HEADING = (
    f"{'merge':<16}{'seconds':>8}{'peak':>9}{'in group':>9}{'hits':>6}{'read':>8}{'written':>8}"
    f"{'mergekit':>10}{'peak':>9}{'ratio':>7}{'floor':>7}{'above':>7}"
)


def _line(row: Row) -> str:
    """A line of the table: seconds, MiB, decimal GB, ratios."""

    def cell(value: float | None, width: int, text: str) -> str:
        return "-".rjust(width) if value is None else text.format(value).rjust(width)

    def mib(value: int | None) -> float | None:
        return None if value is None else value / 2**20

    def least(values: list[float]) -> float | None:
        return min(values, default=None)

    return row.merge.ljust(16) + "".join(
        (
            cell(least(row.seconds), 8, "{:.2f}"),
            cell(mib(row.peak_bytes), 9, "{:.0f} MiB"),
            cell(mib(row.group_peak_bytes), 9, "{:.0f} MiB"),
            cell(row.group_limit_hits, 6, "{:.0f}"),
            cell(row.read_bytes / 1e9, 8, "{:.2f} GB"),
            cell(row.write_bytes / 1e9, 8, "{:.2f} GB"),
            cell(least(row.mergekit_seconds), 10, "{:.1f} s"),
            cell(mib(row.mergekit_peak_bytes), 9, "{:.0f} MiB"),
            cell(row.ratio, 7, "{:.1f}x"),
            cell(row.floor_seconds, 7, "{:.2f}"),
            cell(row.above_floor, 7, "{:.2f}x"),
        )
    )


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
