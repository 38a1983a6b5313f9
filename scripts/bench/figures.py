"""Measure the figures of README.md and docs/performance.md, and write them there.

    scripts/run figures --work DIR --mergekit ENVIRONMENT
    scripts/run figures --work DIR --parts merges,many          these anew, the others of today
    scripts/run figures --work DIR --pages DIR --rehearse       small shapes, pages elsewhere

About 15 minutes on a machine that does nothing else; 30 GB of disk. In order:

    start    a merge of tiny checkpoints from start to end; the plan of a 7B merge
    merges   1B shapes out of the page cache: mergeloom, raw I/O of the same bytes, mergekit
    budgets  the same in memory cgroups of 160 and 192 MiB
    many     plan, explain and merge checkpoints of very many tensors
    large    70B shapes in a memory cgroup of 256 MiB (a part of the layers), and stacked by cloning

DIR keeps the results (figures.json) and the 1B checkpoints for another run. Both pages are written
after each part; a part that fails is named, and the exit status is 1. Needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from scripts.bench import compare, large, many
from scripts.bench.configurations import configuration
from scripts.bench.figures_page import page, readme
from scripts.bench.floor import RawIO
from scripts.bench.measure import machine, run
from scripts.bench.stack import stacked
from scripts.fixtures.checkpoints import make
from scripts.fixtures.environment import ROOT
from scripts.fixtures.shapes import SHAPES

MERGES = ("linear", "passthrough", "slerp", "task_arithmetic", "ties")
BUDGETS = {
    "linear": "160MiB",
    "slerp": "160MiB",
    "task_arithmetic": "192MiB",
    "ties": "192MiB",
    "dare_ties": "192MiB",
    "della": "192MiB",
}
_STARTS = 7


@dataclass(frozen=True, slots=True)
class Settings:
    """Where and how much is measured."""

    work: Path
    mergekit: Path | None
    shape: str
    repeat: int
    large: str
    layers: int
    moe_layers: int | None
    reserve: int


Part = Callable[[Settings], Any]


def start(settings: Settings) -> dict[str, Any]:
    """Seconds from start to end, the median of several runs: a linear merge of two tiny
    checkpoints, and the plan of a linear merge of two of 7B shape.
    """
    found = {}
    (linear,) = compare.methods("linear")
    for what, shape, sparse in (("merge", "tiny", False), ("plan", "7b", True)):
        folder = settings.work / f"start-{shape}"
        models = [folder / str(number) for number in range(2)]
        for number, model in enumerate(models):
            make(model, shape, sparse=sparse, seed=number, force=True)
        config = folder / "merge.json"
        config.write_text(
            json.dumps(configuration(linear, models[0], models, SHAPES[shape].layers))
        )
        runs = []
        for number in range(_STARTS):
            output = [str(folder / f"out-{number}"), "--quiet"] if what == "merge" else []
            command = [sys.executable, "-m", "mergeloom", what, str(config), *output]
            runs.append(run(command, variables=compare.VARIABLES))
            if runs[-1].status:
                raise OSError(runs[-1].complaints.strip())
        found[what] = {
            "seconds": statistics.median(each.seconds for each in runs),
            "cpu_seconds": statistics.median(each.cpu_seconds for each in runs),
        }
        shutil.rmtree(folder)
    return found


def merges(settings: Settings) -> dict[str, Any]:
    """Merges out of the page cache, raw I/O of the same bytes, and mergekit once each."""
    base, tunes = compare.checkpoints(settings.work, settings.shape)
    raw = RawIO(settings.work / "floor.bin")
    rows = []
    for method in compare.methods(",".join(MERGES)):
        row = compare.measure(method, _plan(settings, "1GiB"), base, tunes, raw, theirs=1)
        rows.append(_checked(row))
    return {"ram": "1GiB", "rows": rows, "raw": str(raw.settings)}


def budgets(settings: Settings) -> list[dict[str, Any]]:
    """The same in memory cgroups of exactly the budget, with the smallest budget of the plan."""
    from mergeloom.report.units import parse_size

    base, tunes = compare.checkpoints(settings.work, settings.shape)
    rows = []
    for method in compare.methods(",".join(BUDGETS)):
        ram = BUDGETS[method["name"]]
        plan = replace(_plan(settings, ram), mergekit=None, repeat=1, limit=parse_size(ram))
        row = _checked(compare.measure(method, plan, base, tunes))
        smallest = _planned(settings.work / f"{method['name']}.yml")["memory"]["minimum_bytes"]
        rows.append({"limit_bytes": plan.limit, "smallest_bytes": smallest, **row})
    return rows


def tensors(settings: Settings) -> list[dict[str, Any]]:
    """Checkpoints of very many tensors."""
    shape = SHAPES["moe60k"]
    shape = replace(shape, layers=settings.moe_layers or shape.layers)
    return [
        asdict(row)
        for row in many.rows(settings.work / "many", compare.methods("linear,ties"), shape)
    ]


def larger(settings: Settings) -> dict[str, Any]:
    """Checkpoints of 70B shape."""
    asked = large.runs("linear:256MiB")
    check = large.guard(settings.work, settings.reserve)
    found = large.merges(settings.work, asked, settings.large, settings.layers, 2, check)
    rows = list(found)
    folder, layers = settings.work / "headers", SHAPES[settings.large].layers
    models = [make(folder / str(n), settings.large, sparse=True, force=True) for n in range(2)]
    config = folder / "linear.json"
    config.write_text(json.dumps(configuration(asked[0].method, models[0], models, layers)))
    whole = _planned(config, "--ram", asked[0].ram)
    shutil.rmtree(folder)
    return {
        "layers": settings.layers,
        "of": layers,
        "rows": rows,
        "peak_bytes": whole["memory"]["peak_bytes"],
        "stack": stacked(settings.work, "xfs", settings.large),
    }


PARTS: dict[str, Part] = {
    "start": start,
    "merges": merges,
    "budgets": budgets,
    "many": tensors,
    "large": larger,
}


def _plan(settings: Settings, ram: str) -> compare.Plan:
    return compare.Plan(
        shape=settings.shape,
        work=settings.work,
        mergekit=settings.mergekit,
        repeat=settings.repeat,
        ram=ram,
        limit=None,
        io="auto",
        threads=None,
        floor=False,
        device="cpu",
        vram=None,
        warm=False,
    )


def _planned(config: Path, *options: str) -> dict[str, Any]:
    """What ``plan`` says.

    Raises:
        OSError: it failed.
    """
    command = [sys.executable, "-m", "mergeloom", "plan", str(config), *options, "--json"]
    found = run(command, variables=compare.VARIABLES)
    if found.status:
        raise OSError(found.complaints.strip() or found.output.strip())
    return dict(json.loads(found.output))


def _checked(row: compare.Row) -> dict[str, Any]:
    """A row as JSON.

    Raises:
        OSError: a run failed.
    """
    if row.failures:
        raise OSError("; ".join(row.failures))
    return asdict(row) | {"ratio": row.ratio, "above_floor": row.above_floor}


def write(document: dict[str, Any], work: Path, pages: Path) -> None:
    """Keep the results in ``work``, and write both pages below ``pages``."""
    (work / "figures.json").write_text(json.dumps(document, indent=1) + "\n")
    (pages / "docs").mkdir(parents=True, exist_ok=True)
    (pages / "docs" / "performance.md").write_text(page(document))
    written = readme((ROOT / "README.md").read_text(), document)
    (pages / "README.md").write_text(written)


def begin(settings: Settings) -> dict[str, Any]:
    """The results so far of today at the same settings, or none."""
    from mergeloom.version import VERSION

    document = {
        "day": datetime.now(timezone.utc).date().isoformat(),
        "version": VERSION,
        "machine": machine(),
        "shape": settings.shape,
        "large": settings.large,
        "parts": {},
        "seconds": {},
    }
    kept = settings.work / "figures.json"
    if kept.exists():
        before = json.loads(kept.read_text())
        same = ("day", "version", "machine", "shape", "large")
        if all(before.get(key) == document[key] for key in same):
            return dict(before)
    return document


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; the result is its exit status."""
    from mergeloom.report.units import parse_size

    options = _parser().parse_args(arguments)
    parts = options.parts.split(",")
    unknown = [name for name in parts if name not in PARTS]
    if unknown:
        print(f"figures: no part '{unknown[0]}': there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    settings = Settings(
        work,
        options.mergekit,
        "1b",
        options.repeat,
        "70b",
        options.layers,
        None,
        parse_size(options.reserve),
    )
    if options.rehearse:
        settings = replace(settings, shape="small", repeat=1, large="small", layers=2, moe_layers=2)
    if (busy := os.getloadavg()[0]) > 0.5:
        print(f"figures: the machine is not quiet, its load is {busy:.1f}", file=sys.stderr)
    before = signal.signal(signal.SIGTERM, large.interrupt)
    try:
        return measure(settings, [name for name in PARTS if name in parts], options.pages)
    except KeyboardInterrupt:
        print("figures: interrupted; the parts that ended are kept", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def measure(settings: Settings, parts: Sequence[str], pages: Path) -> int:
    """Measure the parts and write the pages after each; the result is the exit status."""
    document, failed = begin(settings), False
    run([sys.executable, "-m", "mergeloom", "prepare"], variables=compare.VARIABLES)
    for name in parts:
        began = time.monotonic()
        document["parts"].pop(name, None)
        try:
            document["parts"][name] = PARTS[name](settings)
        except (OSError, ValueError, KeyError) as error:
            failed = True
            print(f"figures: {name}: {error}", file=sys.stderr)
        document["seconds"][name] = round(time.monotonic() - began, 1)
        print(f"figures: {name}: {document['seconds'][name]:.0f} s", flush=True)
        write(document, settings.work, pages)
    print(page(document))
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run figures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--work", type=Path, required=True, metavar="DIR", help="directory for checkpoints"
    )
    parser.add_argument("--mergekit", type=Path, metavar="DIR", help="an environment with mergekit")
    parser.add_argument("--parts", default=",".join(PARTS), metavar="NAMES", help="default: all")
    parser.add_argument(
        "--repeat", type=int, default=2, metavar="N", help="runs of a merge, the fastest counts"
    )
    parser.add_argument(
        "--layers", type=int, default=4, metavar="N", help="of 80 of the 70B shape [default: 4]"
    )
    parser.add_argument(
        "--pages",
        type=Path,
        default=ROOT,
        metavar="DIR",
        help="of both pages [default: here]",
    )
    parser.add_argument(
        "--reserve", default="8GB", metavar="SIZE", help="disk space to leave free [default: 8GB]"
    )
    parser.add_argument("--rehearse", action="store_true", help="small shapes, one run each")
    return parser


if __name__ == "__main__":
    sys.exit(main())
