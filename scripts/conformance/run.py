"""Merge small checkpoints with mergeloom and mergekit, and compare the results.

    scripts/run conformance ENVIRONMENT
    scripts/run conformance ENVIRONMENT --only ties --only 'bf16 sce' --tensors
    scripts/run conformance ENVIRONMENT --markdown tables.md

ENVIRONMENT is a Python environment with mergekit 0.1.5. There are three comparisons:

- *results*: every case of scripts/conformance/cases.py with ``dtype: float32``. Each tensor of the
  two programs is compared element by element, and mergeloom's also with a float64 oracle. If they
  differ by more than a few float32 roundings, one of the differences that docs/methods.md describes
  must explain it.
- *accuracy*: the same cases with ``dtype: bfloat16``: the distance of each program from the float64
  oracle, in units in the last place of bfloat16.
- *draws*: random methods. The choices of both programs are compared with the expected statistics:
  shares of kept elements (by rank for della), sizes, first and second moments.

Checkpoints and merges are generated anew in each run; mergekit merges all cases of a family in one
process. The exit status is 1 if a difference is not explained, if mergeloom differs from the
oracle, or if the random choices deviate too far.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.conformance.cases import FAMILIES, Case, cases
from scripts.conformance.mergekit_runs import load, run_mergekit

if TYPE_CHECKING:
    from torch import Tensor

    from mergeloom import PlannedMerge
    from mergeloom.planners.tensors import TensorPlan
    from scripts.conformance.agreement import Agreement, Inputs
    from scripts.conformance.draws import Draw

_BUDGET = "4GiB"

REASONS = ("cancelling weights", "no change", "missing head", "other draws")
"""Names of differences that concern a whole merge or a whole tensor."""
_PRECISIONS = {"results": "float32", "accuracy": "bfloat16"}


@dataclass(frozen=True)
class Outcome:
    """The result of one case from both programs: an error, or a directory."""

    case: Case
    planned: PlannedMerge | None
    ours: Path
    theirs: Path
    our_error: str | None
    their_error: str | None


@dataclass(frozen=True)
class Verdict:
    """The comparison of a case; ``reason`` explains why not everything was compared."""

    case: Case
    tensors: Mapping[str, Agreement] = field(default_factory=dict)
    reason: str | None = None
    failure: str | None = None

    @property
    def sound(self) -> bool:
        """Whether everything is equal or explained."""
        return self.failure is None and all(found.sound for found in self.tensors.values())

    @property
    def explained(self) -> dict[str, int]:
        """Number of elements for each difference that explains them."""
        total: dict[str, int] = {}
        for found in self.tensors.values():
            for name, count in found.explained.items():
                total[name] = total.get(name, 0) + count
        return total


@dataclass(frozen=True)
class Ulps:
    """Distances from the exact result in units in the last place: their sum, number and maximum."""

    total: float = 0.0
    count: int = 0
    most: float = 0.0

    def __add__(self, other: Ulps) -> Ulps:
        return Ulps(self.total + other.total, self.count + other.count, max(self.most, other.most))

    def __str__(self) -> str:
        return f"{self.total / max(self.count, 1):.3f} / {self.most:.3g}"


# --- running ----------------------------------------------------------------------------------


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


# --- comparing --------------------------------------------------------------------------------


class Models:
    """Tensors of the checkpoints, each read once."""

    def __init__(self) -> None:
        self._loaded: dict[str, dict[str, Tensor]] = {}

    def tensor(self, model: str, name: str) -> Tensor:
        """A tensor of the checkpoint in directory ``model``."""
        if model not in self._loaded:
            self._loaded[model] = load(Path(model))
        return self._loaded[model][name]

    def inputs(self, plan: TensorPlan) -> Inputs:
        """The inputs of a merged tensor."""
        from scripts.conformance.agreement import Inputs

        method = None if plan.method is None else plan.method.name
        starts = method is not None and any(item.is_base for item in plan.contributions)
        tensors = [self.tensor(item.model.name, item.tensor) for item in plan.contributions]
        others = [i for i, item in enumerate(plan.contributions) if not (starts and item.is_base)]
        base = [i for i in range(len(tensors)) if i not in others]
        return Inputs(
            method,
            tensors[base[0]] if base else None,
            tuple(tensors[i] for i in others),
            tuple(
                {name: found.value for name, found in plan.contributions[i].parameters.items()}
                for i in others
            ),
            {name: found.value for name, found in plan.settings.items()},
        )


def judge(outcome: Outcome, models: Models) -> Verdict:
    """Compare the two results of one case."""
    from scripts.conformance.agreement import Results, compare

    case = outcome.case
    unlike = _unlike_errors(outcome, models)
    if unlike is not None:
        return unlike
    assert outcome.planned is not None
    ours, theirs = load(outcome.ours), load(outcome.theirs)
    reason, failure = None, None
    if ours.keys() != theirs.keys():
        odd = sorted(ours.keys() ^ theirs.keys())
        if odd == ["lm_head.weight"] and odd[0] in ours and not _tied(outcome.ours):
            reason = "missing head"
        else:
            failure = f"only one program wrote {', '.join(odd)}"
    found = {}
    for plan in outcome.planned.plan.tensor_plans():
        if plan.name not in theirs or plan.name not in ours:
            continue
        one, other = ours[plan.name], theirs[plan.name]
        if one.shape != other.shape or one.dtype != other.dtype:
            failure = f"'{plan.name}' is {one.dtype} {tuple(one.shape)} here, there {other.dtype} "
            failure += f"{tuple(other.shape)}"
            continue
        found[plan.name] = compare(Results.of(models.inputs(plan), one, other))
    return Verdict(case, found, reason, failure)


def _unlike_errors(outcome: Outcome, models: Models) -> Verdict | None:
    """The verdict if one program or both refused to merge."""
    ours, theirs = outcome.our_error, outcome.their_error
    if ours is None and theirs is None:
        return None
    if ours is not None and "sum to zero and cannot be normalised" in ours:
        return Verdict(outcome.case, reason="cancelling weights")
    if (
        ours is None
        and theirs is not None
        and "weighted sum of the input tensors is zero" in theirs
    ):
        assert outcome.planned is not None
        for plan in outcome.planned.plan.tensor_plans():
            inputs = models.inputs(plan)
            if inputs.base is not None and all(
                bool((tensor == inputs.base).all()) for tensor in inputs.others
            ):
                return Verdict(outcome.case, reason="no change")
    words = f"mergeloom: {ours or 'merged'}; mergekit: {theirs or 'merged'}"
    return Verdict(outcome.case, failure=" ".join(words.split()))


def _tied(directory: Path) -> bool:
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return bool(config.get("tie_word_embeddings"))


def accuracy(outcome: Outcome, models: Models) -> tuple[Ulps, Ulps]:
    """Distances of mergeloom and mergekit from the float64 result, in units of bfloat16."""
    from scripts.conformance.agreement import Results, decisions, ulps

    sums = [Ulps(), Ulps()]
    if outcome.our_error is None and outcome.their_error is None and outcome.planned is not None:
        ours, theirs = load(outcome.ours), load(outcome.theirs)
        for plan in outcome.planned.plan.tensor_plans():
            if plan.name in ours and plan.name in theirs:
                results = Results.of(models.inputs(plan), ours[plan.name], theirs[plan.name])
                clear = ~decisions(results)
                for number, found in enumerate((results.ours, results.theirs)):
                    off = ulps(found, results)[clear]
                    if off.numel():
                        sums[number] += Ulps(float(off.sum()), off.numel(), float(off.max()))
    return sums[0], sums[1]


# --- the program ------------------------------------------------------------------------------


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
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there")
    parser.add_argument("--work", type=Path, metavar="DIR", help="directory for temporary files")
    return parser


def _examine(options: argparse.Namespace, chosen: Sequence[Case], folder: Path) -> int:
    from scripts.conformance.draws import draws

    what = options.what or ["results", "accuracy", "draws"]
    models, tables, document = Models(), [], dict[str, Any]()
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
        tables.append(results_table(verdicts))
        document["results"] = [_verdict_document(verdict) for verdict in verdicts]
    if "accuracy" in what:
        pairs: dict[str, tuple[Ulps, Ulps]] = {}
        for outcome in _merged(chosen, folder, "accuracy", options.environment):
            method = outcome.case.method
            before = pairs.get(method, (Ulps(), Ulps()))
            found = accuracy(outcome, models)
            pairs[method] = (before[0] + found[0], before[1] + found[1])
        tables.append(accuracy_table(pairs))
        document["accuracy"] = {name: [asdict(u) for u in pair] for name, pair in pairs.items()}
    if "draws" in what:
        drawn = draws(folder / "f32", folder / "draws", options.environment)
        sound &= all(draw.sound for draw in drawn)
        tables.append(draws_table(drawn))
        document["draws"] = [asdict(draw) | {"sound": draw.sound} for draw in drawn]
    print("\n" + "\n\n".join(tables))
    if options.markdown:
        options.markdown.write_text("\n\n".join(tables) + "\n", encoding="utf-8")
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
            Case(family, case.words, case.located(folder / family, _PRECISIONS[what]))
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
    words = [f"{verdict.tensors[worst].units:.2f} units in {worst}"]
    words += [f"{name} in {count}" for name, count in verdict.explained.items()]
    words += [text for text in (verdict.reason, verdict.failure) if text]
    print(f"{mark} {verdict.case}: {'; '.join(words)}", flush=True)
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


def results_table(verdicts: Sequence[Verdict]) -> str:
    """Per method: cases, elements, largest distances in units, explained differences."""
    lines = [
        "| method | cases | elements | apart | by angles | from float64 | decided otherwise |",
        "|---|---|---|---|---|---|---|",
    ]
    for method in dict.fromkeys(verdict.case.method for verdict in verdicts):
        own = [verdict for verdict in verdicts if verdict.case.method == method]
        found = [each for verdict in own for each in verdict.tensors.values()]
        counts: dict[str, int] = {}
        for verdict in own:
            for name, count in verdict.explained.items():
                if name != "float32 angles":
                    counts[name] = counts.get(name, 0) + count
            if verdict.reason is not None:
                counts[f"{verdict.reason} (cases)"] = counts.get(f"{verdict.reason} (cases)", 0) + 1
        angles = [each.apart for each in found if "float32 angles" in each.explained]
        words = ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"
        lines.append(
            f"| `{method}` | {len(own)} | {sum(each.elements for each in found)} "
            f"| {max((each.units for each in found), default=0.0):.2f} "
            f"| {f'{max(angles):.0f}' if angles else '-'} "
            f"| {max((each.error for each in found), default=0.0):.2f} | {words} |"
        )
    return "\n".join(lines)


def accuracy_table(pairs: Mapping[str, tuple[Ulps, Ulps]]) -> str:
    """Per method: mean and largest error of each program."""
    lines = [
        "| method | elements | mergeloom, mean / max | mergekit, mean / max |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| `{method}` | {ours.count} | {ours} | {theirs} |"
        for method, (ours, theirs) in pairs.items()
    ]
    return "\n".join(lines)


def draws_table(drawn: Sequence[Draw]) -> str:
    """Expected and observed statistics of random choices; deviations in standard deviations."""
    lines = ["| method | what | expected | mergeloom | mergekit |", "|---|---|---|---|---|"]
    lines += [
        f"| `{draw.method}` | {draw.what} | {draw.expected:.4g} "
        f"| {draw.ours:.4g} ({draw.our_deviation:+.1f} sd) "
        f"| {draw.theirs:.4g} ({draw.their_deviation:+.1f} sd) |"
        for draw in drawn
    ]
    return "\n".join(lines)
