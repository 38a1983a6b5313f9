"""Slerp: spherical interpolation between two models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.kernel import Kernel
from mergeloom.methods.declare import Base, Method, Parameter, TensorMerge
from mergeloom.methods.kernels.linear_combination import GramCombination, LinearCombination, Rule
from mergeloom.methods.ops.maths import Maths
from mergeloom.methods.shared_parameters import base_of
from mergeloom.methods.statistics.angles import Matrix, cosines

COLLINEAR = 0.9995
"""Cosine above which the arc is replaced by a straight line."""


@dataclass(frozen=True)
class Arc(Rule):
    """The point at ``t`` on the arc from the first vector to the second (Shoemake 1985)."""

    t: float

    def coefficients(self, gram: Matrix, maths: Maths) -> Sequence[Any]:
        cosine = cosines(gram, maths)[0][1]
        return on_arc(cosine, self.t, abs(cosine) > COLLINEAR, maths)


def on_arc(cosine: Any, t: float, straight: Any, maths: Maths) -> Sequence[Any]:
    """Coefficients of the two end points at ``t``, on the arc, or on a line where ``straight``."""
    angle = maths.acos(cosine)
    sine = maths.where(straight, 1.0, maths.sin(angle))
    start, stop = maths.sin((1 - t) * angle) / sine, maths.sin(t * angle) / sine
    return maths.where(straight, 1 - t, start), maths.where(straight, t, stop)


class Slerp(Method):
    name = "slerp"
    summary = (
        "Spherical interpolation from the base to one other model: rotates each tensor at a "
        "constant rate and preserves its length better than a linear mean."
    )
    formula = (
        "θ = sin((1-t)Ω)/sinΩ · θ₀ + sin(tΩ)/sinΩ · θ₁,  cosΩ = θ₀·θ₁ / ‖θ₀‖‖θ₁‖ over flattened "
        "tensors;  (1-t)θ₀ + tθ₁ where |cosΩ| > 0.9995"
    )
    reference = "Shoemake 1985, Animating rotation with quaternion curves, SIGGRAPH"
    works = "element by element, one pass of statistics (dot products)"
    by_name = False
    settings = (Parameter("t", float, "0 is the base, 1 the other model", usual=(0.0, 1.0)),)
    base = Base.REQUIRED
    minimum = 1
    maximum = 1

    def kernel(self, merge: TensorMerge) -> Kernel:
        base = base_of(merge)
        t = merge.settings["t"]
        (other,) = merge.others
        if t in (0, 1):
            chosen = base if t == 0 else other
            return LinearCombination(tuple(float(i == chosen) for i in range(2)))
        return GramCombination(Arc(t), (base, other))
