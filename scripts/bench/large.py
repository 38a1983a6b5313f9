"""Merge 70B-shaped checkpoints in small memory cgroups on a small disk.

    scripts/run large --work DIR                       linear and ties in 4 GiB, linear in 1 GiB
    scripts/run large --work DIR --runs ties:4GiB --layers 8

Checkpoints of repeating values lie on a compressed volume in a sparse file, which is removed at the
end, also after an error. Methods without a base merge two of them; methods with a base merge the
base and two fine-tunes (--models 4: three fine-tunes). The program stops when the disk below the
volume runs low. Needs root.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from scripts.bench.compare import VARIABLES, methods
from scripts.bench.configurations import configuration
from scripts.bench.measure import cool, run
from scripts.fixtures.checkpoints import parameters
from scripts.fixtures.environment import ROOT
from scripts.fixtures.shapes import SHAPES
from scripts.fixtures.volume import CompressedVolume

USUAL = "linear:4GiB,ties:4GiB,linear:1GiB"
GB = 10**9
_SLACK = 1.3


@dataclass(frozen=True, slots=True)
class Run:
    """One merge: the description of its method, and the size of its memory cgroup as text and in
    bytes.
    """

    method: dict[str, Any]
    ram: str
    limit: int


def runs(text: str) -> list[Run]:
    """Parse runs such as ``linear:4GiB,ties:4GiB``.

    Raises:
        ValueError: the syntax is wrong, or a method is unknown.
        LoomError: a size is wrong.
    """
    from mergeloom.report.units import parse_size

    result = []
    for item in text.split(","):
        name, colon, ram = item.partition(":")
        if not colon:
            raise ValueError(f"'{item}' is not a run: write METHOD:SIZE")
        result.append(Run(methods(name)[0], ram, parse_size(ram)))
    return result


def guard(directory: Path, reserve: int) -> Callable[[], str | None]:
    """A function that returns a reason to stop once fewer than ``reserve`` bytes of the disk are
    free.
    """

    def check() -> str | None:
        directory.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(directory).free
        if free >= reserve:
            return None
        return (
            f"only {free / GB:.1f} GB of the disk are free; --reserve keeps {reserve / GB:.1f} GB"
        )

    return check


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; the result is its exit status."""
    from mergeloom.engine.base.errors import LoomError
    from mergeloom.report.units import parse_size

    options = _parser().parse_args(arguments)
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        asked = runs(options.runs)
        check = guard(options.work, parse_size(options.reserve))
        layers = options.layers or SHAPES[options.shape].layers
        print(_HEADING, flush=True)
        results = []
        for result in merges(options.work, asked, options.shape, layers, options.models, check):
            results.append(result)
            print(_line(result), flush=True)
        if options.json is not None:
            options.json.write_text(json.dumps(results, indent=2) + "\n")
    except (OSError, ValueError, LoomError) as error:
        print(f"large: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("large: interrupted", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def merges(
    work: Path,
    asked: Sequence[Run],
    shape: str,
    layers: int,
    models: int,
    check: Callable[[], str | None],
) -> Iterator[dict[str, Any]]:
    """Run the merges one after another; ``check`` returns a reason to stop.

    Raises:
        OSError: a program or permission is missing, or a run failed or was stopped.
    """
    count = models if any(_has_base(each) for each in asked) else 2
    size = 2 * parameters(shape, layers)
    work.mkdir(parents=True, exist_ok=True)
    with CompressedVolume(work.resolve(), int(_SLACK * size * (count + 1)) + GB) as mounted:
        made = [_checkpoint(mounted, shape, layers, number, check) for number in range(count)]
        for each in asked:
            yield _merged(each, mounted, made, layers, check)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run large", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, required=True, metavar="DIR", help="directory for the volume"
    )
    parser.add_argument(
        "--runs",
        default=USUAL,
        metavar="METHOD:SIZE,...",
        help=f"methods and the sizes of their memory cgroups [default: {USUAL}]",
    )
    parser.add_argument(
        "--shape", choices=list(SHAPES), default="70b", help="shape of the models [default: 70b]"
    )
    parser.add_argument("--layers", type=int, metavar="N", help="number of layers, for a short run")
    parser.add_argument(
        "--models", type=int, default=3, metavar="N", help="base and fine-tunes [default: 3]"
    )
    parser.add_argument(
        "--reserve", default="8GB", metavar="SIZE", help="disk space to leave free [default: 8GB]"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    return parser


def _has_base(each: Run) -> bool:
    return bool(each.method["base_model"] == "required")


def _checkpoint(
    directory: Path, shape: str, layers: int, number: int, check: Callable[[], str | None]
) -> Path:
    target = directory / f"model{number}"
    command = [sys.executable, str(ROOT / "scripts" / "run"), "checkpoints", shape, str(target)]
    command += ["--compressible", "--seed", str(number), "--layers", str(layers)]
    made = run(command + (["--finetune-of", "0"] if number else []), check=check)
    if made.status != 0:
        raise OSError(made.complaints.strip())
    return target


def _merged(
    each: Run, directory: Path, models: list[Path], layers: int, check: Callable[[], str | None]
) -> dict[str, Any]:
    """Run one merge with a cold page cache; times in seconds, sizes in bytes."""
    tunes = models[1:] if _has_base(each) else models
    document = configuration(each.method, models[0], tunes, layers)
    config, output = directory / "merge.yml", directory / "merged"
    config.write_text(json.dumps(document, indent=2) + "\n")
    command = [sys.executable, "-m", "mergeloom", "merge", str(config), str(output)]
    # Direct writes and preallocated files are not compressed.
    command += ["--io", "buffered", "--ram", each.ram, "--quiet", "--json"]
    cool([file for model in models for file in model.glob("*.safetensors")])
    result = run(command, limit=each.limit, variables=VARIABLES, check=check)
    shutil.rmtree(output, ignore_errors=True)
    if result.status != 0:
        lines = result.complaints.strip().splitlines() or [f"status {result.status}"]
        raise OSError(f"{each.method['name']} in {each.ram}: {lines[-1]}")
    told, group = json.loads(result.output), result.group
    assert group is not None
    return {
        "merge": each.method["name"],
        "limit_bytes": each.limit,
        "seconds": result.seconds,
        "peak_bytes": result.peak_bytes,
        "group_peak_bytes": group.peak_bytes,
        "group_limit_hits": group.limit_hits,
        "group_killed": group.killed,
        "read_bytes": told["io"]["read_bytes"],
        "write_bytes": told["io"]["write_bytes"],
        "measured": told["measured"],
    }


_HEADING = (
    f"{'merge':<16}{'limit':>10}{'seconds':>9}{'resident':>10}{'in group':>10}{'hits':>9}"
    f"{'read':>10}{'written':>10}{'rate':>10}"
)


def _line(result: dict[str, Any]) -> str:
    """A line of the table: MiB of memory, decimal GB of data, MB/s read and written."""
    moved = result["read_bytes"] + result["write_bytes"]
    return (
        f"{result['merge']:<16}"
        f"{result['limit_bytes'] / 2**20:>6.0f} MiB"
        f"{result['seconds']:>9.1f}"
        f"{result['peak_bytes'] / 2**20:>6.0f} MiB"
        f"{result['group_peak_bytes'] / 2**20:>6.0f} MiB"
        f"{result['group_limit_hits']:>9}"
        f"{result['read_bytes'] / GB:>7.1f} GB"
        f"{result['write_bytes'] / GB:>7.1f} GB"
        f"{moved / result['seconds'] / 1e6:>5.0f} MB/s"
    )


def interrupt(number: int, frame: FrameType | None) -> None:
    """Handle a signal as an interruption from the keyboard, so that volumes are removed."""
    raise KeyboardInterrupt
