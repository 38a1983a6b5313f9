"""Compares a tensor of both programs: how far apart they are, and why.

Distances are in units: float32 roundings (2⁻²³) of the sum of magnitudes that were added for an
element, plus one last place of a result stored in 16 bits. If mergeloom and mergekit are more than
`LIMIT` units apart, one of `DIFFERENCES` must explain it; docs/methods.md describes each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scripts.conformance import oracle
from scripts.conformance.oracle import Answer

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
    """The inputs of a merged tensor, as stored, and their parameters.

    ``method`` is ``None`` if the single tensor of ``others`` was copied. ``each`` has the
    parameters of ``others``, in the same order.
    """

    method: str | None
    base: Tensor | None
    others: tuple[Tensor, ...]
    each: tuple[Mapping[str, Any], ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def answer(self) -> Answer:
        """The method's result in float64.

        Raises:
            ValueError: it depends on a random choice.
        """
        return _ANSWERS[self.method](self)

    def all(self, name: str) -> list[Any]:
        """The values of a per-model parameter, without the base."""
        return [given[name] for given in self.each]

    def some(self, *names: str) -> list[Any]:
        """Values of several global parameters."""
        return [self.settings[name] for name in names]

    @property
    def start(self) -> Tensor:
        """The base.

        Raises:
            ValueError: there is none.
        """
        if self.base is None:
            raise ValueError("no base")
        return self.base


@dataclass(frozen=True)
class Results:
    """A tensor of both programs in float64, with the right answer and its scale."""

    inputs: Inputs
    ours: Tensor
    theirs: Tensor
    answer: Answer
    scale: Tensor
    kind: torch.finfo

    @classmethod
    def of(cls, inputs: Inputs, ours: Tensor, theirs: Tensor) -> Results:
        """From the tensors as written."""
        answer = inputs.answer()
        everything = (*inputs.others, *([] if inputs.base is None else [inputs.base]))
        scale = torch.stack([tensor.double().abs() for tensor in everything]).sum(0)
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
        off = self.units(self.ours, self.answer.value)
        return off if self.answer.either is None else off.masked_fill(self.answer.either, 0.0)


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
    either = results.answer.either
    doubtful = torch.zeros_like(results.scale, dtype=torch.bool) if either is None else either
    return doubtful | _equal_magnitudes(results)


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
    inputs = results.inputs
    found = torch.zeros_like(results.scale, dtype=torch.bool)
    if inputs.method == "sce" and inputs.settings["select_topk"] < 1:
        spread = oracle.variance(inputs.start, inputs.others).double()
        rank = int(int((spread != 0).sum()) * inputs.settings["select_topk"])
        return found | _at_ranks(spread, (rank,), 1e-5)
    if inputs.method in _BAND:
        taus = oracle.differences(inputs.start, inputs.others)
        for tau, each in zip(taus, inputs.each, strict=True):
            if each["density"] < 1:
                keep = int(each["density"] * tau.numel())
                skip = min(int(each.get("gamma", 0) * tau.numel()), tau.numel() - keep)
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
    either = results.answer.either
    if either is None or results.inputs.method == "arcee_fusion":
        return torch.zeros_like(results.scale, dtype=torch.bool)
    return either


def _small_squares(results: Results) -> Tensor:
    """Elements where mergekit has the result of equal weights, as the mean squares are small."""
    return _as_selected(results, even=True)


def _as_selected(results: Results, even: bool) -> Tensor:
    """Elements where mergekit has the method's result for its own selection of positions.

    The selections may differ only where variances are equal except for rounding. ``even``: all
    weights are equal, which is allowed only if the mean squares are small.
    """
    inputs = results.inputs
    nothing = torch.zeros_like(results.scale, dtype=torch.bool)
    if inputs.method != "sce":
        return nothing
    taus = oracle.differences(inputs.start, inputs.others)
    topk, selection = inputs.settings["select_topk"], None
    if topk < 1:
        selection = results.theirs != inputs.start.float().double()
        spread = oracle.variance(inputs.start, inputs.others)
        rank = int(int((spread != 0).sum()) * topk)
        expected = oracle.largest(spread, rank) | _at_ranks(spread.double(), (rank,), 1e-5)
        if bool((selection & ~expected).any()):
            return nothing
        taus = [tau * selection for tau in taus]
    if even != (sum(float(tau.square().mean()) for tau in taus) < _SMALL):
        return nothing
    answer = oracle.sce(inputs.start, inputs.others, topk, selection, even)
    return results.units(results.theirs, answer.value) <= LIMIT


def _float32_angles(results: Results) -> Tensor:
    """Elements where a norm or an angle was computed in float32, and mergeloom's is right."""
    if results.inputs.method not in _GRAM or _most(results.error) > LIMIT:
        return torch.zeros_like(results.scale, dtype=torch.bool)
    return results.units(results.ours, results.theirs) <= _ANGLES


def _float32_scores(results: Results) -> Tensor:
    """Elements that each program took from one of the models, but not from the same one."""
    inputs = results.inputs
    if inputs.method != "arcee_fusion":
        return torch.zeros_like(results.scale, dtype=torch.bool)
    ends = [tensor.double() for tensor in (inputs.start, *inputs.others)]
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


# --- right answers --------------------------------------------------------------------------------


def _without_drops(inputs: Inputs) -> Answer:
    """The answer of a random method if it drops nothing."""
    alike = all(torch.equal(other, inputs.start) for other in inputs.others)
    if not alike and any(density < 1 for density in inputs.all("density")):
        raise ValueError("the result of a random choice cannot be predicted")
    combine = oracle.elect if inputs.method in ("dare_ties", "della") else oracle.add_up
    taus = oracle.differences(inputs.start, inputs.others)
    return combine(inputs.start, taus, inputs.all("weight"), *inputs.some("normalize", "lambda"))


def _band(inputs: Inputs) -> Answer:
    weights, densities, gammas = (inputs.all(name) for name in ("weight", "density", "gamma"))
    settings = inputs.some("normalize", "lambda", "rescale")
    signs = inputs.method == "breadcrumbs_ties"
    return oracle.breadcrumbs(
        inputs.start, inputs.others, weights, densities, gammas, *settings, signs=signs
    )


def _nuslerp(inputs: Inputs) -> Answer:
    flat, rows = inputs.some("nuslerp_flatten", "nuslerp_row_wise")
    dim = None if flat else 0 if rows else -1
    return oracle.nuslerp(inputs.others, inputs.all("weight"), inputs.base, dim)


_ANSWERS: dict[str | None, Callable[[Inputs], Answer]] = {
    None: lambda i: oracle.linear(i.others, [1.0], False),
    "passthrough": lambda i: oracle.linear(i.others, [i.all("scale")[0] or 1.0], False),
    "linear": lambda i: oracle.linear(i.others, i.all("weight"), *i.some("normalize")),
    "slerp": lambda i: oracle.slerp(i.start, i.others[0], *i.some("t")),
    "nuslerp": _nuslerp,
    "multislerp": lambda i: oracle.multislerp(
        i.others, i.all("weight"), i.base, *i.some("normalize_weights")
    ),
    "karcher": lambda i: oracle.karcher(i.others, *i.some("max_iter", "tol")),
    "model_stock": lambda i: oracle.model_stock(i.start, i.others, *i.some("filter_wise")),
    "task_arithmetic": lambda i: oracle.task_arithmetic(
        i.start, i.others, i.all("weight"), *i.some("normalize", "lambda")
    ),
    "ties": lambda i: oracle.ties(
        i.start,
        i.others,
        i.all("weight"),
        i.all("density"),
        *i.some("normalize", "lambda", "rescale"),
    ),
    "breadcrumbs": _band,
    "breadcrumbs_ties": _band,
    "dare_linear": _without_drops,
    "dare_ties": _without_drops,
    "della": _without_drops,
    "della_linear": _without_drops,
    "sce": lambda i: oracle.sce(i.start, i.others, *i.some("select_topk")),
    "ram": lambda i: oracle.ram(i.start, i.others, *i.some("epsilon")),
    "ramplus_tl": lambda i: oracle.ram(i.start, i.others, *i.some("epsilon", "r", "alpha")),
    "nearswap": lambda i: oracle.nearswap(i.start, i.others[0], *i.some("t")),
    "arcee_fusion": lambda i: oracle.arcee_fusion(i.start, i.others[0]),
}
