"""Plan, explain and merge checkpoints of very many tensors, and print what a tensor takes.

    scripts/run many --work DIR                   60,609 tensors to plan, 3,147 small ones to merge
    scripts/run many --work DIR --layers 8        7,800 tensors to plan
    scripts/run many --work DIR --methods ties

Three inputs each, mixtures of experts: to plan, headers with holes instead of data; to merge, real
tensors of 16 kB. Seconds are those of processors (user and system), so that other programs on the
machine count little; what a tensor takes is the difference between merging and planning.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
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
    parser.add_argument("--work", type=Path, required=True, help="a directory for what is made")
    parser.add_argument("--layers", type=int, help="of what is planned, instead of all 78")
    parser.add_argument("--methods", default="linear,ties", metavar="NAMES")
    options = parser.parse_args(arguments)
    large = SHAPES["moe60k"]
    large = replace(large, layers=options.layers or large.layers)
    folder: Path = options.work / "many"
    try:
        described = methods(options.methods)
        headers = [_checkpoint(folder / f"headers-{n}", large, None) for n in range(3)]
        models = [_checkpoint(folder / f"model-{n}", SMALL, n) for n in range(3)]
        for method in described:
            _planned(folder, method, headers, large)
            _merged(folder, method, models)
    except (OSError, ValueError) as error:
        print(f"many: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _planned(folder: Path, method: dict[str, Any], models: Sequence[Path], shape: Shape) -> None:
    """Print what it takes to plan a merge, and to explain one tensor of it."""
    config = _written(folder, method, models, shape)
    names = [tensor.name for tensor in tensors(shape)]
    for what, command in (
        ("plan", ["plan", str(config)]),
        ("explain", ["explain", str(config), names[len(names) * 9 // 10]]),
    ):
        _line(f"{method['name']}: {what} of {len(names):,} tensors", _run(command))


def _merged(folder: Path, method: dict[str, Any], models: Sequence[Path]) -> None:
    """Print what each of many small tensors takes."""
    config = _written(folder, method, models, SMALL)
    output = folder / "merged"
    planned = _run(["plan", str(config)])
    merged = _run(["merge", str(config), str(output), "--device", "cpu"])
    shutil.rmtree(output)
    count = len(tensors(SMALL))
    each = (merged.cpu_seconds - planned.cpu_seconds) / count * 1e3
    _line(f"{method['name']}: merge of {count:,} tensors, {each:.2f} ms each", merged)


def _run(arguments: Sequence[str]) -> Measured:
    found = run([sys.executable, "-m", "mergeloom", *arguments])
    if found.status:
        raise OSError(found.complaints.strip())
    return found


def _line(what: str, found: Measured) -> None:
    peak = found.peak_bytes / (1 << 20)
    print(
        f"{what:60} {found.cpu_seconds:6.2f} s of processors  {found.seconds:6.2f} s  "
        f"{peak:5.0f} MiB",
        flush=True,
    )


def _checkpoint(directory: Path, shape: Shape, seed: int | None) -> Path:
    """Headers alone without a ``seed``."""
    if seed is None:
        return make(directory, shape, sparse=True)
    return make(directory, shape, seed=seed, finetune_of=0 if seed else None)


def _written(folder: Path, method: dict[str, Any], models: Sequence[Path], shape: Shape) -> Path:
    document = configuration(method, models[0], models[1:], shape.layers)
    if method["base_model"] == "not used":
        document["models"] = [
            {"model": str(model), "parameters": {"weight": 0.3}} for model in models
        ]
    path = folder / f"{method['name']}.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main())
