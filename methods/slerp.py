"""Slerp: along the great circle between two models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from engine.kernel import Copy, Kernel
from methods.linear_combination import GramCombination, LinearCombination, Rule
from methods.method import Base, Method, Parameter, TensorMerge
from methods.parameters import base_of

COLLINEAR = 0.9995
"""Cosine from which on the arc is so flat that a straight line serves."""

_NO_DIRECTION = 1e-8
"""Norm below which a tensor counts as without direction: orthogonal to all."""


@dataclass(frozen=True)
class Arc(Rule):
    """The point at ``t`` on the arc from the first vector to the second (Shoemake 1985, eq. 3)."""

    t: float

    def coefficients(self, gram: Sequence[Sequence[float]]) -> Sequence[float]:
        cosine = cosine_of(gram, 0, 1)
        if abs(cosine) > COLLINEAR:
            return 1 - self.t, self.t
        return arc(math.acos(cosine), self.t)


def arc(angle: float, t: float) -> tuple[float, float]:
    """Coefficients of the ends of an arc of ``angle`` at ``t``."""
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def cosine_of(gram: Sequence[Sequence[float]], i: int, j: int) -> float:
    """Cosine between two vectors, within [-1, 1]; 0 where one has no direction."""
    first, second = math.sqrt(gram[i][i]), math.sqrt(gram[j][j])
    # A norm at or below the limit is not divided by, so that the dot product stays tiny.
    first = first if first > _NO_DIRECTION else 1.0
    second = second if second > _NO_DIRECTION else 1.0
    return max(-1.0, min(1.0, gram[i][j] / first / second))


class Slerp(Method):
    name = "slerp"
    summary = (
        "Spherical interpolation from the base to one other model: turns the direction of each "
        "tensor evenly and keeps its length better than a straight mean does."
    )
    formula = (
        "θ = sin((1-t)Ω)/sinΩ · θ₀ + sin(tΩ)/sinΩ · θ₁,  cosΩ = θ₀·θ₁ / ‖θ₀‖‖θ₁‖ over flattened "
        "tensors;  (1-t)θ₀ + tθ₁ where |cosΩ| > 0.9995"
    )
    reference = "Shoemake 1985, Animating rotation with quaternion curves, SIGGRAPH"
    settings = (Parameter("t", float, "0 is the base, 1 the other model"),)
    base = Base.REQUIRED
    minimum = 1
    maximum = 1

    def kernel(self, merge: TensorMerge) -> Kernel:
        if len(merge.models) == 1:
            return Copy()
        base = base_of(merge)
        t = merge.settings["t"]
        (other,) = merge.others
        if t in (0, 1):
            chosen = base if t == 0 else other
            return LinearCombination(tuple(float(i == chosen) for i in range(2)))
        return GramCombination(Arc(t), (base, other))
