"""Judges the results of a merge by both programs: equal, explained, or wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.conformance.cases import Case
from scripts.conformance.mergekit_runs import load

if TYPE_CHECKING:
    from torch import Tensor

    from mergeloom import PlannedMerge
    from mergeloom.planners.tensors import TensorPlan
    from scripts.conformance.agreement import Agreement, Inputs

REASONS = ("cancelling weights", "no change", "missing head", "other draws")
"""Names of differences that concern a whole merge or a whole tensor."""

_SEED = 0
"""The seed of all merges, by default."""


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
        from mergeloom.planners.tensors import tensor_merge
        from scripts.conformance.agreement import Inputs

        tensors = [self.tensor(item.model.name, item.tensor) for item in plan.contributions]
        method = None if plan.method is None else plan.method.name
        return Inputs(method, tensor_merge(plan, tuple(tensors[0].shape), _SEED), tensors)


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
            problem = models.inputs(plan).problem
            if problem.base is not None and all(
                bool((tensor == problem.base).all()) for tensor in problem.others
            ):
                return Verdict(outcome.case, reason="no change")
    text = f"mergeloom: {ours or 'merged'}; mergekit: {theirs or 'merged'}"
    return Verdict(outcome.case, failure=" ".join(text.split()))


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
