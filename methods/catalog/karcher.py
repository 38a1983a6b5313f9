"""Karcher: the point on the sphere with the least squared distance to all models."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.kernel import Kernel
from mergeloom.methods.declare import Method, Parameter, TensorMerge
from mergeloom.methods.kernels.linear_combination import GramCombination, Rule
from mergeloom.methods.ops.maths import NUMBERS, Maths
from mergeloom.methods.statistics.angles import NO_DIRECTION, UNRESOLVED, Matrix, cosines, norms

_NO_PLANE = 1e-7
"""Sine below which two directions count as equal or opposite, so that no step is taken."""


@dataclass(frozen=True)
class KarcherMean(Rule):
    """Riemannian gradient descent (Karcher 1977), in coordinates over the input vectors.

    Each iterate is a sum Σ aᵢuᵢ of the unit vectors: the logarithm at m is
    Ωᵢ/sinΩᵢ (uᵢ - cosΩᵢ m), and the exponential of a tangent T is cos‖T‖ m + sin‖T‖ T/‖T‖. Hence
    only the cosine matrix C is needed: uᵢ·m = (Ca)ᵢ and ‖Σ bᵢuᵢ‖² = bᵀCb.
    """

    max_iter: int
    tol: float

    def coefficients(self, gram: Matrix, maths: Maths) -> Sequence[float]:
        lengths = norms(gram, maths)
        directed = [own > NO_DIRECTION for own in lengths]
        if not any(directed):
            return lengths
        cosine = cosines(gram, maths)
        for i in range(len(cosine)):
            cosine[i][i] = 1.0
        share = [own / sum(directed) for own in directed]

        def along(coordinates: Sequence[float]) -> list[float]:
            return [_dot(row, coordinates) for row in cosine]

        def length_of(coordinates: Sequence[float]) -> float:
            return math.sqrt(max(_dot(coordinates, along(coordinates)), 0.0))

        spread = length_of(share)
        # The directions cancel out: every point is a minimum, so take the first.
        first = directed.index(True)
        mean = (
            [each / spread for each in share]
            if spread > UNRESOLVED
            else [float(i == first) for i in range(len(share))]
        )
        for _ in range(self.max_iter):
            near = [maths.clip(each, -1.0, 1.0) for each in along(mean)]
            steps = [own * _angle_over_sine(each) for own, each in zip(share, near, strict=True)]
            inward = _dot(steps, near)
            tangent = [each - inward * own for each, own in zip(steps, mean, strict=True)]
            distance = length_of(tangent)
            if distance <= self.tol or math.isnan(distance):
                break
            ahead, aside = math.cos(distance), math.sin(distance) / distance
            mean = [ahead * own + aside * each for own, each in zip(mean, tangent, strict=True)]
        scale = sum(lengths) / len(lengths)
        return [
            each / (own if is_directed else 1.0) * scale
            for each, own, is_directed in zip(mean, lengths, directed, strict=True)
        ]


def _dot(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def _angle_over_sine(cosine: float) -> float:
    """Ω/sinΩ, or 0 for directions that are equal or opposite."""
    angle = NUMBERS.acos(cosine)
    sine = NUMBERS.sin(angle)
    return 0.0 if sine < _NO_PLANE else angle / sine


class Karcher(Method):
    name = "karcher"
    summary = (
        "The Riemannian centre of mass of the directions of all models, equally weighted: the "
        "point on the sphere with the least squared distance to all. Its length is the mean of "
        "theirs."
    )
    formula = (
        "m minimises Σ Ω(uᵢ, m)², uᵢ = θᵢ/‖θᵢ‖:  m ← exp_m(1/N Σ log_m(uᵢ)) until the step is "
        "shorter than tol;  θ = m · 1/N Σ‖θᵢ‖"
    )
    reference = "Karcher 1977, Riemannian center of mass, Comm. Pure Appl. Math. 30"
    works = "element by element, one pass of statistics (dot products)"
    by_name = False
    settings = (
        Parameter("max_iter", int, "maximum number of steps", default=10, minimum=0),
        Parameter(
            "tol", float, "step length below which iteration stops", default=1e-5, minimum=0.0
        ),
    )
    minimum = 1

    def kernel(self, merge: TensorMerge) -> Kernel:
        rule = KarcherMean(merge.settings["max_iter"], merge.settings["tol"])
        return GramCombination(rule, tuple(range(len(merge.models))))
