"""Plan, explain and merge checkpoints with very many tensors; print the time per tensor.

    scripts/run many --work DIR                   plan 60,609 tensors, merge 3,147 small ones
    scripts/run many --work DIR --layers 8        plan 7,800 tensors
    scripts/run many --work DIR --methods ties

The inputs are three mixtures of experts. For planning they are headers with holes instead of data;
for merging, real tensors of 16 kB. CPU seconds (user and system) are printed as well, because they
hardly depend on other programs. The time per tensor is the difference between merging and planning.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scripts.bench.compare import methods
from scripts.bench.configurations import configuration
from scripts.bench.measure import Measured, run
from scripts.fixtures.checkpoints import make
from scripts.fixtures.shapes import SHAPES, Shape, tensors

SMALL = Shape("qwen3_moe", 8, 128, 64, 4, 2, 32, 512, experts=128, experts_per_token=4)
"""Experts of 64 by 128 elements: 16 kB each."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; the result is its exit status."""
    parser = argparse.ArgumentParser(
        prog="run many", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, required=True, metavar="DIR", help="directory for the checkpoints"
    )
    parser.add_argument(
        "--layers", type=int, metavar="N", help="layers of the planned model [default: 78]"
    )
    parser.add_argument(
        "--methods",
        default="linear,ties",
        metavar="NAMES",
        help="merge methods, separated by commas [default: linear,ties]",
    )
    options = parser.parse_args(arguments)
    large = SHAPES["moe60k"]
    large = replace(large, layers=options.layers or large.layers)
    try:
        for row in rows(options.work / "many", methods(options.methods), large):
            print(_line(row), flush=True)
    except (OSError, ValueError) as error:
        print(f"many: {error}", file=sys.stderr)
        return 1
    return 0


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement of ``tensors`` output tensors: wall and CPU seconds, peak resident bytes, and
    CPU seconds for each tensor of a merge.
    """

    method: str
    what: str
    tensors: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    each_seconds: float | None = None


def rows(folder: Path, described: Sequence[dict[str, Any]], large: Shape) -> Iterator[Row]:
    """Measure each method; ``folder`` is for the checkpoints and removed at the end.

    Raises:
        OSError: a checkpoint cannot be made, or a command failed.
    """
    try:
        headers = [_checkpoint(folder / f"headers-{n}", large, None) for n in range(3)]
        models = [_checkpoint(folder / f"model-{n}", SMALL, n) for n in range(3)]
        for method in described:
            yield from _planned(folder, method, headers, large)
            yield _merged(folder, method, models)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _planned(
    folder: Path, method: dict[str, Any], models: Sequence[Path], shape: Shape
) -> Iterator[Row]:
    """Measure planning a merge, and explaining one tensor of it."""
    config = _written(folder, method, models, shape)
    names = [tensor.name for tensor in tensors(shape)]
    for what, command in (
        ("plan", ["plan", str(config)]),
        ("explain", ["explain", str(config), names[len(names) * 9 // 10]]),
    ):
        found = _run(command)
        times = found.seconds, found.cpu_seconds
        yield Row(method["name"], what, len(names), *times, found.peak_bytes)


def _merged(folder: Path, method: dict[str, Any], models: Sequence[Path]) -> Row:
    """Measure the time per tensor of a merge of many small tensors."""
    config = _written(folder, method, models, SMALL)
    output = folder / "merged"
    planned = _run(["plan", str(config)])
    merged = _run(["merge", str(config), str(output), "--device", "cpu"])
    shutil.rmtree(output)
    count = len(tensors(SMALL))
    each = (merged.cpu_seconds - planned.cpu_seconds) / count
    times = merged.seconds, merged.cpu_seconds
    return Row(method["name"], "merge", count, *times, merged.peak_bytes, each)


def _run(arguments: Sequence[str]) -> Measured:
    found = run([sys.executable, "-m", "mergeloom", *arguments])
    if found.status:
        raise OSError(found.complaints.strip())
    return found


def _line(row: Row) -> str:
    what = f"{row.method}: {row.what} of {row.tensors:,} tensors"
    what += "" if row.each_seconds is None else f", {row.each_seconds * 1e3:.2f} ms each"
    peak = row.peak_bytes / (1 << 20)
    return f"{what:60} {row.cpu_seconds:6.2f} CPU s  {row.seconds:6.2f} s  {peak:5.0f} MiB"


def _checkpoint(directory: Path, shape: Shape, seed: int | None) -> Path:
    """Generate a checkpoint; without a ``seed`` only its headers."""
    if seed is None:
        return make(directory, shape, sparse=True)
    return make(directory, shape, seed=seed, finetune_of=0 if seed else None)


def _written(folder: Path, method: dict[str, Any], models: Sequence[Path], shape: Shape) -> Path:
    document = configuration(method, models[0], models[1:], shape.layers)
    if method["base_model"] == "not used" and "slices" not in document:
        document["models"] = [
            {"model": str(model), "parameters": {"weight": 0.3}} for model in models
        ]
    path = folder / f"{method['name']}.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main())
