"""Merge small checkpoints with mergeloom and mergekit, and compare the results.

    scripts/run conformance ENVIRONMENT
    scripts/run conformance ENVIRONMENT --only ties --only 'bf16 sce' --tensors
    scripts/run conformance ENVIRONMENT --markdown docs/conformance.md

ENVIRONMENT is a Python environment with mergekit 0.1.5. There are three comparisons:

- *results*: every case of scripts/conformance/cases.py with ``dtype: float32``. Each tensor of the
  two programs is compared element by element, and mergeloom's also with the float64 reference
  (`methods/reference.py`). If they differ by more than a few float32 roundings, one of the
  differences that docs/methods.md describes must explain it.
- *accuracy*: the same cases with ``dtype: bfloat16``: the distance of each program from the float64
  reference, in units in the last place of bfloat16.
- *draws*: random methods. The choices of both programs are compared with the expected statistics:
  shares of kept elements (by rank for della), sizes, first and second moments.

Checkpoints and merges are generated anew in each run; mergekit merges all cases of a family in one
process. The exit status is 1 if a difference is not explained, if mergeloom differs from the
reference, or if the random choices deviate too far.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from scripts.conformance.cases import FAMILIES, Case, cases
from scripts.conformance.judge import Models, Outcome, Ulps, Verdict, accuracy, judge
from scripts.conformance.mergekit_runs import run_mergekit
from scripts.conformance.page import accuracy_table, draws_table, page, results_table

_BUDGET = "4GiB"
_PRECISIONS = {"results": "float32", "accuracy": "bfloat16"}


def run_all(chosen: Sequence[Case], out: Path, mergekit: Path) -> list[Outcome]:
    """Run all cases with both programs.

    Raises:
        OSError: mergekit's process cannot be started, or ends early.
    """
    import mergeloom

    outcomes = []
    silent = mergeloom.Observer(warned=lambda finding: None)
    for number, case in enumerate(chosen):
        ours, theirs = out / "mergeloom" / str(number), out / "mergekit" / str(number)
        planned, error = None, None
        try:
            planned = mergeloom.plan(case.document, ram=_BUDGET, threads=1, observer=silent)
            mergeloom.merge(planned, ours, observer=silent)
        except mergeloom.LoomError as raised:
            error = str(raised)
        outcomes.append(Outcome(case, planned, ours, theirs, error, None))
    answers = run_mergekit([(o.case.document, o.theirs) for o in outcomes], mergekit)
    return [
        Outcome(o.case, o.planned, o.ours, o.theirs, o.our_error, answer)
        for o, answer in zip(outcomes, answers, strict=True)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; the result is its exit status."""
    options = _parser().parse_args(arguments)
    try:
        if not (options.environment / "bin" / "mergekit-yaml").exists():
            raise ValueError(
                f"'{options.environment}' has no bin/mergekit-yaml: name an environment"
            )
        chosen = [
            case
            for case in cases()
            if not options.only or any(each in str(case) for each in options.only)
        ]
        with tempfile.TemporaryDirectory(prefix="mergeloom-conformance-", dir=options.work) as name:
            return _examine(options, chosen, Path(name))
    except (OSError, ValueError) as error:
        print(f"conformance: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run conformance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("environment", type=Path, metavar="ENVIRONMENT")
    parser.add_argument(
        "--only", action="append", metavar="TEXT", help="cases whose names contain TEXT; repeatable"
    )
    parser.add_argument(
        "--what",
        choices=["results", "accuracy", "draws"],
        action="append",
        help="run only this comparison; repeatable [default: all three]",
    )
    parser.add_argument("--tensors", action="store_true", help="print a line for each tensor")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results as JSON")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write a page with the tables"
    )
    parser.add_argument("--work", type=Path, metavar="DIR", help="directory for temporary files")
    return parser


def _examine(options: argparse.Namespace, chosen: Sequence[Case], folder: Path) -> int:
    from scripts.conformance.draws import draws

    what = options.what or ["results", "accuracy", "draws"]
    models, tables, document = Models(), dict[str, str](), dict[str, Any]()
    sound = True
    needed = dict.fromkeys(case.family for case in chosen)
    for family in {**needed, "f32": None} if "draws" in what else needed:
        FAMILIES[family].make(folder / family)
    if "results" in what:
        verdicts = []
        for outcome in _merged(chosen, folder, "results", options.environment):
            verdicts.append(judge(outcome, models))
            _show(verdicts[-1], options.tensors)
        sound &= all(verdict.sound for verdict in verdicts)
        tables["results"] = results_table(verdicts)
        document["results"] = [_verdict_document(verdict) for verdict in verdicts]
    if "accuracy" in what:
        pairs: dict[str, tuple[Ulps, Ulps]] = {}
        for outcome in _merged(chosen, folder, "accuracy", options.environment):
            method = outcome.case.method
            before = pairs.get(method, (Ulps(), Ulps()))
            found = accuracy(outcome, models)
            pairs[method] = (before[0] + found[0], before[1] + found[1])
        tables["accuracy"] = accuracy_table(pairs)
        document["accuracy"] = {name: [asdict(u) for u in pair] for name, pair in pairs.items()}
    if "draws" in what:
        drawn = draws(folder / "f32", folder / "draws", options.environment)
        sound &= all(draw.sound for draw in drawn)
        tables["draws"] = draws_table(drawn)
        document["draws"] = [asdict(draw) | {"sound": draw.sound} for draw in drawn]
    print("\n" + "\n\n".join(tables.values()))
    if options.markdown:
        written = page(tables, len(chosen), sound, date.today())
        options.markdown.write_text(written, encoding="utf-8")
    if options.json:
        options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print("\npassed" if sound else "\nFAILED: see the lines that begin with '!'")
    return 0 if sound else 1


def _merged(
    chosen: Sequence[Case], folder: Path, what: str, environment: Path
) -> Iterator[Outcome]:
    """Merge every case with both programs, in the precision of the comparison ``what``."""
    for family in dict.fromkeys(case.family for case in chosen):
        located = [
            Case(family, case.settings, case.located(folder / family, _PRECISIONS[what]))
            for case in chosen
            if case.family == family
        ]
        out = folder / what
        yield from run_all(located, out, environment)
        shutil.rmtree(out)


def _show(verdict: Verdict, tensors: bool) -> None:
    """Print one line for a case: the largest distance, its tensor, and the explanations."""
    mark = " " if verdict.sound else "!"
    if not verdict.tensors:
        print(f"{mark} {verdict.case}: {verdict.failure or verdict.reason}", flush=True)
        return
    worst = max(verdict.tensors, key=lambda name: verdict.tensors[name].units)
    parts = [f"{verdict.tensors[worst].units:.2f} units in {worst}"]
    parts += [f"{name} in {count}" for name, count in verdict.explained.items()]
    parts += [text for text in (verdict.reason, verdict.failure) if text]
    print(f"{mark} {verdict.case}: {'; '.join(parts)}", flush=True)
    for name, found in verdict.tensors.items():
        if tensors or not found.sound:
            print(
                f"{mark}     {name}: {found.units:.2f} units apart, mergeloom {found.error:.2f} "
                f"from float64, {dict(found.explained)} of {found.elements}"
            )


def _verdict_document(verdict: Verdict) -> dict[str, Any]:
    return {
        "case": str(verdict.case),
        "sound": verdict.sound,
        "reason": verdict.reason,
        "failure": verdict.failure,
        "tensors": {name: asdict(found) for name, found in verdict.tensors.items()},
    }
