"""Karcher: the point on the sphere with the least squared distance to all models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergeloom.engine.graph.kernel import Copy, Kernel
from mergeloom.methods.declare import Method, Parameter, TensorMerge
from mergeloom.methods.kernels.linear_combination import GramCombination, Rule
from mergeloom.methods.statistics.angles import NO_DIRECTION, UNRESOLVED, cosines, norms

if TYPE_CHECKING:
    from torch import Tensor

_NO_PLANE = 1e-7
"""Sine below which two directions are one, or opposite: no step leads from one to the other."""


@dataclass(frozen=True)
class KarcherMean(Rule):
    """Riemannian gradient descent (Karcher 1977), in coordinates with respect to the vectors.

    Each iterate is a sum Σ aᵢuᵢ of the unit vectors: the logarithm at m is
    Ωᵢ/sinΩᵢ (uᵢ - cosΩᵢ m), and the exponential of a tangent T is cos‖T‖ m + sin‖T‖ T/‖T‖. So
    only the matrix C of the cosines is needed: uᵢ·m = (Ca)ᵢ and ‖Σ bᵢuᵢ‖² = bᵀCb.
    """

    max_iter: int
    tol: float

    def coefficients(self, gram: Tensor) -> Tensor:
        import torch

        length = norms(gram).squeeze(-1)
        directed = length > NO_DIRECTION
        cosine = cosines(gram).squeeze(-1)
        if not bool(directed.any()):
            return length.unsqueeze(-1)
        cosine = cosine.fill_diagonal_(1.0)
        share = directed.double() / directed.sum()

        def size(coordinates: Tensor) -> float:
            return math.sqrt(max(float(coordinates @ cosine @ coordinates), 0.0))

        spread = size(share)
        if spread > UNRESOLVED:
            mean = share / spread
        else:  # evenly spread: any point will do, so the first
            mean = torch.zeros_like(share)
            mean[int(torch.nonzero(directed)[0])] = 1.0
        for _ in range(self.max_iter):
            along = (cosine @ mean).clamp(-1.0, 1.0)
            angle = torch.acos(along)
            sine = torch.sin(angle)
            still = sine < _NO_PLANE
            steps = share * (angle / sine.masked_fill(still, 1.0)).masked_fill(still, 0.0)
            tangent = steps - (steps @ along) * mean
            distance = size(tangent)
            if distance <= self.tol:
                break
            mean = math.cos(distance) * mean + math.sin(distance) / distance * tangent
        safe = length.masked_fill(~directed, 1.0)
        return (mean / safe * length.mean()).unsqueeze(-1)


class Karcher(Method):
    name = "karcher"
    summary = (
        "The Riemannian centre of mass of all models' directions, each counting the same: the "
        "point on the sphere that is nearest to all. Its length is the mean of theirs."
    )
    formula = (
        "m minimises Σ Ω(uᵢ, m)², uᵢ = θᵢ/‖θᵢ‖:  m ← exp_m(1/N Σ log_m(uᵢ)) until the step is "
        "shorter than tol;  θ = m · 1/N Σ‖θᵢ‖"
    )
    reference = "Karcher 1977, Riemannian center of mass, Comm. Pure Appl. Math. 30"
    works = "element by element, one pass of statistics (dot products)"
    settings = (
        Parameter("max_iter", int, "steps at most", default=10, minimum=0),
        Parameter(
            "tol", float, "length of a step that is short enough to stop", default=1e-5, minimum=0.0
        ),
    )
    minimum = 2

    def kernel(self, merge: TensorMerge) -> Kernel:
        count = len(merge.models)
        if count == 1:
            return Copy()
        rule = KarcherMean(merge.settings["max_iter"], merge.settings["tol"])
        return GramCombination(rule, tuple(range(count)))
