"""Compares a tensor of both programs: how far apart they are, and why.

Distances are in units: float32 roundings (2⁻²³) of the sum of magnitudes that were added for an
element, plus one last place of a result stored in 16 bits. If mergeloom and mergekit are more than
`LIMIT` units apart, one of `DIFFERENCES` must explain it; docs/methods.md describes each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mergeloom.methods import reference
from mergeloom.methods.declare import TensorMerge
from mergeloom.methods.reference import Problem, ReferenceResult

LIMIT = 4.0
"""Units by which a few float32 operations in another order may differ."""

_UNIT = 2.0**-23
_ANGLES = 2.0**13
"""Largest error of an angle in float32, in units: the arc cosine of a number near 1 loses half of
the digits, so that 2⁻¹² of the angle is noise."""
_SMALL = 1e-6
"""Sum of mean squares below which mergekit gives all models the same weight."""
_SCORES = 0.15
"""Fraction of a tensor's elements whose choice may depend on float32 scores."""

_GRAM = ("slerp", "nuslerp", "multislerp", "karcher", "model_stock")
_BAND = ("ties", "breadcrumbs", "breadcrumbs_ties")


@dataclass(frozen=True)
class Inputs:
    """The inputs of a merged tensor, as stored: ``tensors`` in the order of ``merge``, which has
    their parameters. ``method`` is ``None`` if the only tensor was copied."""

    method: str | None
    merge: TensorMerge
    tensors: Sequence[Tensor]

    @property
    def problem(self) -> Problem:
        """The inputs as `methods.reference` takes them."""
        return Problem(self.merge, self.tensors)

    def answer(self) -> ReferenceResult:
        """The method's result in float64."""
        found = reference.evaluate(self.method or "passthrough", self.merge, self.tensors)
        assert found is not None, "every built-in method has a formula"
        return found


@dataclass(frozen=True)
class Results:
    """A tensor of both programs in float64, with the right answer and its scale."""

    inputs: Inputs
    ours: Tensor
    theirs: Tensor
    answer: ReferenceResult
    scale: Tensor
    kind: torch.finfo

    @classmethod
    def of(cls, inputs: Inputs, ours: Tensor, theirs: Tensor) -> Results:
        """From the tensors as written."""
        answer = inputs.answer()
        scale = torch.stack([tensor.double().abs() for tensor in inputs.tensors]).sum(0)
        scale = scale.maximum(answer.scale)
        kind = torch.finfo(ours.dtype)
        return cls(inputs, ours.double(), theirs.double(), answer, scale, kind)

    def units(self, one: Tensor, other: Tensor) -> Tensor:
        """The distance of two results in units, for each element."""
        unit = self.scale * _UNIT + 1e-42
        if self.kind.bits == 16:
            unit += one.abs().clamp_min(self.kind.tiny) * self.kind.eps
        distance = (one - other).abs() / unit
        return torch.where(one == other, 0.0, distance).nan_to_num(float("inf"))

    @property
    def error(self) -> Tensor:
        """Distance of mergeloom from the answer in units; 0 where a decision depends on the last
        bit.
        """
        off, undecided = self.units(self.ours, self.answer.value), self.answer.undecided
        return off if undecided is None else off.masked_fill(undecided, 0.0)


@dataclass(frozen=True)
class Agreement:
    """The comparison of two results.

    ``units`` is the largest distance that no difference explains, ``error`` the largest distance of
    mergeloom from the answer, ``apart`` the largest distance of the programs where rounding is the
    reason. ``explained`` counts the elements for each reason.
    """

    elements: int
    units: float
    error: float
    apart: float
    explained: Mapping[str, int]

    @property
    def sound(self) -> bool:
        """Whether everything is explained and mergeloom is right."""
        return self.units <= LIMIT and self.error <= LIMIT


def compare(results: Results) -> Agreement:
    """Compare the results of both programs for one tensor."""
    distance = results.units(results.ours, results.theirs)
    left = distance > LIMIT
    explained = {}
    decided = torch.zeros_like(left)
    for name, explains in DIFFERENCES.items():
        if not bool(left.any()):
            break
        found = explains(results) & left
        if bool(found.any()):
            explained[name] = int(found.sum())
            left &= ~found
            decided |= found if name != "float32 angles" else False
    angles = distance.masked_fill(decided, 0.0)
    unexplained = distance if "float32 angles" not in explained else distance * left
    return Agreement(
        distance.numel(),
        _most(unexplained.masked_fill(decided, 0.0)),
        _most(results.error),
        _most(angles),
        explained,
    )


def decisions(results: Results) -> Tensor:
    """Elements whose result depends on equal numbers or on the last bit; distances are no error
    there.
    """
    undecided = results.answer.undecided
    equal = _equal_magnitudes(results)
    return equal if undecided is None else equal | undecided


def ulps(found: Tensor, results: Results) -> Tensor:
    """Distances from the answer in units in the last place of bfloat16.

    If an answer is smaller than 2⁻⁸ of the sum of magnitudes, the unit is the last place of that
    bound, because the answer cannot be more exact than its terms.
    """
    exact = results.answer.value
    magnitude = exact.abs().maximum(results.scale * 2.0**-8)
    exponent = torch.floor(torch.log2(magnitude.clamp_min(torch.finfo(torch.bfloat16).tiny)))
    return (found - exact).abs() / torch.exp2(exponent - 7)


def _most(values: Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0


# --- differences, by their names in the documentation ---------------------------------------------


def _equal_magnitudes(results: Results) -> Tensor:
    """Elements as large as the last one that is kept, or dropped."""
    method, problem = results.inputs.method, results.inputs.problem
    found = torch.zeros_like(results.scale, dtype=torch.bool)
    if method == "sce" and problem.setting("select_topk") < 1:
        spread = reference.variance(problem).double()
        rank = int(int((spread != 0).sum()) * problem.setting("select_topk"))
        return found | _at_ranks(spread, (rank,), 1e-5)
    if method in _BAND:
        for number, tau in enumerate(problem.vectors()):
            density = problem.of_models("density")[number]
            if density < 1:
                keep, gamma = int(density * tau.numel()), 0.0
                if method == "ties":
                    keep = max(keep, int(density > 0))
                else:
                    gamma = problem.of_models("gamma")[number]
                skip = min(int(gamma * tau.numel()), tau.numel() - keep)
                found |= _at_ranks(tau.abs(), (skip, skip + keep), 0.0)
    return found


def _at_ranks(magnitudes: Tensor, ranks: Sequence[int], near: float) -> Tensor:
    """Elements whose magnitude equals that at a rank, if several have it."""
    order = magnitudes.reshape(-1).sort(descending=True).values
    found = torch.zeros_like(magnitudes, dtype=torch.bool)
    for rank in ranks:
        if 0 < rank < len(order) and order[rank - 1] - order[rank] <= near * order[rank - 1]:
            found |= (magnitudes - order[rank - 1]).abs() <= near * order[rank - 1]
    return found


def _balanced_votes(results: Results) -> Tensor:
    """Elements where the votes for both signs are equal except for rounding."""
    undecided = results.answer.undecided
    if undecided is None or results.inputs.method == "arcee_fusion":
        return torch.zeros_like(results.scale, dtype=torch.bool)
    return undecided


def _small_squares(results: Results) -> Tensor:
    """Elements where mergekit has the result of equal weights, as the mean squares are small."""
    return _as_selected(results, even=True)


def _as_selected(results: Results, even: bool) -> Tensor:
    """Elements where mergekit has the method's result for its own selection of positions.

    The selections may differ only where variances are equal except for rounding. ``even``: all
    weights are equal, which is allowed only if the mean squares are small.
    """
    problem = results.inputs.problem
    nothing = torch.zeros_like(results.scale, dtype=torch.bool)
    if results.inputs.method != "sce":
        return nothing
    taus, topk = problem.vectors(), problem.setting("select_topk")
    if topk < 1:
        selection = results.theirs != problem.required_base.float().double()
        spread = reference.variance(problem)
        rank = int(int((spread != 0).sum()) * topk)
        expected = reference.largest(spread, rank) | _at_ranks(spread.double(), (rank,), 1e-5)
        if bool((selection & ~expected).any()):
            return nothing
        taus = [tau * selection for tau in taus]
    if even != (sum(float(tau.square().mean()) for tau in taus) < _SMALL):
        return nothing
    answer = reference.fused(problem, taus, even=even)
    return results.units(results.theirs, answer.value) <= LIMIT


def _float32_angles(results: Results) -> Tensor:
    """Elements where a norm or an angle was computed in float32, and mergeloom's is right."""
    if results.inputs.method not in _GRAM or _most(results.error) > LIMIT:
        return torch.zeros_like(results.scale, dtype=torch.bool)
    return results.units(results.ours, results.theirs) <= _ANGLES


def _float32_scores(results: Results) -> Tensor:
    """Elements that each program took from one of the models, but not from the same one."""
    if results.inputs.method != "arcee_fusion":
        return torch.zeros_like(results.scale, dtype=torch.bool)
    ends = [tensor.double() for tensor in results.inputs.tensors]
    one, other = ((results.theirs == end) | (results.ours == end) for end in ends)
    found = one & other & (results.ours != results.theirs)
    return found if float(found.double().mean()) <= _SCORES else torch.zeros_like(found)


DIFFERENCES: dict[str, Callable[[Results], Tensor]] = {
    "equal magnitudes": lambda r: _equal_magnitudes(r) | _as_selected(r, even=False),
    "balanced votes": _balanced_votes,
    "small squares": _small_squares,
    "float32 angles": _float32_angles,
    "float32 scores": _float32_scores,
}
