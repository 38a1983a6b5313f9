"""Check that every merge method keeps a small memory limit and writes the same bytes as without.

    scripts/run same_bytes --memory-limit 768MiB
    scripts/run same_bytes --shape small --merges ties,sce --memory-limit 512MiB

Each method merges as many fine-tunes as it accepts, up to three, and a base where allowed. It runs
once in a memory cgroup of the given size, page cache included, with this size as budget; and once
with all memory of the machine. The SHA-256 of all files are compared. Exit status 1 if any differ,
or a merge fails or is killed. If no cgroup can be created, only the budget limits the first run,
and its peak resident memory is checked instead.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from scripts.bench.cgroup import MemoryGroup
from scripts.bench.compare import VARIABLES, checkpoints, clean, methods
from scripts.bench.configurations import configuration
from scripts.bench.measure import Measured, run
from scripts.fixtures.shapes import SHAPES

_WORK = Path(tempfile.gettempdir()) / "mergeloom-bench"
_BLOCK = 8 << 20


@dataclass(frozen=True, slots=True)
class Row:
    """Results of one method: seconds and bytes of both runs, and whether their outputs are the
    same.
    """

    merge: str
    seconds: float
    peak_bytes: int
    group_peak_bytes: int | None
    free_seconds: float
    free_peak_bytes: int
    read_bytes: int
    digest: str
    failure: str | None


def compare(config: Path, output: Path, limit: int, grouped: bool) -> Row:
    """Merge with a limit of ``limit`` bytes and without a limit, and compare the outputs."""
    little, digests = _merged(config, output, limit, grouped)
    plenty, others = _merged(config, output, None, False)
    failure = _failure(little) or _failure(plenty)
    if failure is None and digests != others:
        names = sorted(name for name, _ in digests.items() ^ others.items())
        failure = f"{', '.join(sorted(set(names)))} differ"
    if failure is None and not grouped and little.peak_bytes > limit:
        failure = f"used {little.peak_bytes} bytes, more than the limit"
    whole = hashlib.sha256(repr(sorted(digests.items())).encode()).hexdigest()
    read = json.loads(little.output)["io"]["read_bytes"] if little.status == 0 else 0
    return Row(
        config.stem,
        little.seconds,
        little.peak_bytes,
        little.group.peak_bytes if little.group is not None else None,
        plenty.seconds,
        plenty.peak_bytes,
        read,
        whole,
        failure,
    )


def _merged(
    config: Path, output: Path, limit: int | None, grouped: bool
) -> tuple[Measured, dict[str, str]]:
    """Run a merge and return the SHA-256 of each output file; the files are removed."""
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "mergeloom", "merge", str(config), str(output)]
    command += ["--quiet", "--json"]
    command += [] if limit is None else ["--ram", str(limit)]
    try:
        measured = run(command, limit=limit if grouped else None, variables=VARIABLES)
        files = sorted(output.glob("*.safetensors")) if measured.status == 0 else []
        return measured, {file.name: _digest(file) for file in files}
    finally:
        shutil.rmtree(output, ignore_errors=True)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _failure(measured: Measured) -> str | None:
    if measured.status == 0:
        return None
    lines = measured.complaints.strip().splitlines()
    return f"ended with status {measured.status}: {lines[-1] if lines else 'no message'}"


def can_group() -> bool:
    """Whether memory cgroups can be created here."""
    try:
        with MemoryGroup(64 << 20):
            return True
    except OSError:
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; the result is its exit status."""
    from mergeloom.engine.base.errors import LoomError
    from mergeloom.report.units import parse_size

    parser = argparse.ArgumentParser(
        prog="run same_bytes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--shape", choices=list(SHAPES), default="1b", help="shape of the models [default: 1b]"
    )
    parser.add_argument(
        "--merges",
        default="all",
        metavar="NAMES",
        help="merge methods, separated by commas [default: all]",
    )
    parser.add_argument(
        "--memory-limit",
        default="768MiB",
        metavar="SIZE",
        help="size of the memory cgroup [default: 768MiB]",
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=_WORK,
        metavar="DIR",
        help=f"directory for checkpoints and outputs [default: {_WORK}]",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--clean", action="store_true", help="remove the checkpoints at the end")
    options = parser.parse_args(arguments)
    rows: list[Row] = []
    try:
        limit = parse_size(options.memory_limit)
        chosen = methods(options.merges)
        work = options.work.resolve()
        work.mkdir(parents=True, exist_ok=True)
        base, tunes = checkpoints(work, options.shape)
        grouped = can_group()
        limited_by = "cgroup" if grouped else "budget only, as no cgroup can be created"
        print(f"{options.shape}, {options.memory_limit} ({limited_by})")
        print(_HEADING, flush=True)
        for method in chosen:
            layers = SHAPES[options.shape].layers
            document = configuration(method, base, tunes, layers, everything=True)
            config = work / f"{method['name']}.yml"
            config.write_text(json.dumps(document, indent=2) + "\n")
            rows.append(compare(config, work / "merged", limit, grouped))
            print(_line(rows[-1]), flush=True)
        if options.clean:
            clean([base, *tunes])
    except (OSError, ValueError, LoomError) as error:
        print(f"same_bytes: {error}", file=sys.stderr)
        return 1
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    return 1 if any(row.failure for row in rows) else 0


_HEADING = (
    f"{'merge':<18}{'seconds':>8}{'resident':>10}{'in group':>10}{'read':>10}"
    f"{'unlimited':>11}{'resident':>10}  bytes"
)


def _line(row: Row) -> str:
    """A line of the table: MiB of memory, decimal GB of data."""
    group = "-" if row.group_peak_bytes is None else f"{row.group_peak_bytes / 2**20:.0f} MiB"
    return (
        f"{row.merge:<18}{row.seconds:>8.1f}{row.peak_bytes / 2**20:>6.0f} MiB{group:>10}"
        f"{row.read_bytes / 1e9:>7.1f} GB{row.free_seconds:>11.1f}"
        f"{row.free_peak_bytes / 2**20:>6.0f} MiB  "
        f"{row.failure or f'the same, {row.digest[:12]}'}"
    )
