"""Stack layers of two 70B-shaped checkpoints by cloning extents, and measure how fast that is.

    scripts/run stack --work DIR                       on XFS
    scripts/run stack --work DIR --kind btrfs

The checkpoints have their full length, with headers and with reserved extents that are never
written. So they and the output occupy no disk space, while the file system has as much to do as
with real ones. It lies in a sparse file, which is removed at the end. Needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.bench.compare import VARIABLES
from scripts.bench.measure import run
from scripts.fixtures.checkpoints import make, parameters
from scripts.fixtures.shapes import SHAPES
from scripts.fixtures.volume import Volume

GB = 10**9
_SHARDS = (5000, 4700)
"""Largest files of either checkpoint, in MB: they begin and end at other layers."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; the result is its exit status."""
    parser = argparse.ArgumentParser(
        prog="run stack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, required=True, metavar="DIR", help="directory for the volume"
    )
    parser.add_argument(
        "--kind", choices=("btrfs", "xfs"), default="xfs", help="file system [default: xfs]"
    )
    parser.add_argument(
        "--shape", choices=list(SHAPES), default="70b", help="shape of the models [default: 70b]"
    )
    options = parser.parse_args(arguments)
    try:
        print(_line(stacked(options.work, options.kind, options.shape)), flush=True)
    except OSError as error:
        print(f"stack: {error}", file=sys.stderr)
        return 1
    return 0


def stacked(work: Path, kind: str, shape: str) -> dict[str, Any]:
    """Stack all layers but the last quarter of one model on all but the first of another, on a
    volume of its own; return bytes and seconds.

    Raises:
        OSError: a program or permission is missing, or the merge failed.
    """
    work.mkdir(parents=True, exist_ok=True)
    size = 2 * parameters(shape)
    with Volume(work.resolve(), 4 * size + 2 * GB, kind) as mounted:
        config = _configuration(mounted, shape)
        command = [sys.executable, "-m", "mergeloom", "merge", str(config), str(mounted / "out")]
        result = run([*command, "--quiet", "--json"], variables=VARIABLES)
    if result.status:
        raise OSError((result.complaints.strip().splitlines() or [f"status {result.status}"])[-1])
    report = json.loads(result.output)
    return {
        "kind": kind,
        "bytes": report["output"]["bytes"],
        "shards": len(report["output"]["shards"]),
        "cloned_bytes": report["io"]["cloned_bytes"],
        "copied_bytes": report["io"]["copied_bytes"],
        "wall_seconds": report["wall_seconds"],
        "seconds": result.seconds,
    }


def _configuration(mounted: Path, shape: str) -> Path:
    """Make both checkpoints, and the configuration that stacks them."""
    layers = SHAPES[shape].layers
    models = []
    for number, megabytes in enumerate(_SHARDS):
        model = make(mounted / f"m{number}", shape, sparse=True, max_shard_bytes=megabytes * 10**6)
        for path in model.glob("*.safetensors"):
            with open(path, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        models.append(model)
    ranges = ([0, layers * 3 // 4], [layers // 4, layers])
    slices = [
        {"sources": [{"model": str(model), "layer_range": part}]}
        for model, part in zip(models, ranges, strict=True)
    ]
    config = mounted / "stack.yml"
    config.write_text(json.dumps({"merge_method": "passthrough", "slices": slices}))
    return config


def _line(found: dict[str, Any]) -> str:
    return (
        f"{found['bytes'] / GB:.1f} GB in {found['shards']} shards: "
        f"{found['cloned_bytes'] / GB:.3f} GB cloned, {found['copied_bytes']:,} bytes copied; "
        f"{found['wall_seconds']:.1f} s, {found['seconds']:.1f} s from start to end"
    )
