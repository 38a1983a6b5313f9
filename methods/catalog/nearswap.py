"""NearSwap: move each element of the base towards another model by at most a given step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.kernel import Array, GrainView, Kernel, Use
from mergeloom.methods.declare import Base, Method, Parameter, TensorMerge
from mergeloom.methods.ops.interface import Vector
from mergeloom.methods.shared_parameters import base_of


@dataclass(frozen=True)
class LimitedStep(Kernel):
    """θ₀ + clip(τ, -limit, limit).

    This equals w θ₁ + (1-w) θ₀ with w = clip(limit/|τ|, 0, 1), without dividing by differences
    that may be zero.
    """

    base: int
    other: int
    limit: float
    uses = (Use("step"),)
    version = 2

    def apply(
        self, grain: GrainView, out: Array, statistics: Sequence[Any], prefix: tuple[int, ...]
    ) -> None:
        base = grain.inputs[self.base]
        grain.ops.step(Vector(grain.inputs[self.other], base), self.limit, base, out)


class NearSwap(Method):
    name = "nearswap"
    summary = (
        "Takes the other model's value where it is within t of the base's, and moves by t towards "
        "it elsewhere."
    )
    formula = "w = clip(t / |θ₁ - θ₀|, 0, 1);  θ = w θ₁ + (1-w) θ₀ = θ₀ + clip(θ₁ - θ₀, -t, t)"
    reference = "published with Alchemonaut/QuartetAnemoi-70B-t0.0001, 2024, as NearSwap"
    works = "element by element, no statistics"
    by_name = False
    settings = (
        Parameter("t", float, "how far an element may move; 0 gives the base", minimum=0.0),
    )
    base = Base.REQUIRED
    minimum = 1
    maximum = 1

    def kernel(self, merge: TensorMerge) -> Kernel:
        base = base_of(merge)
        (other,) = merge.others
        return LimitedStep(base, other, merge.settings["t"])
