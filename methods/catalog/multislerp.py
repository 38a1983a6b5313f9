"""MultiSlerp: spherical interpolation between any number of models."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mergeloom.engine.base.errors import RunError
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.kernel import Kernel
from mergeloom.methods.declare import Base, Method, Parameter, TensorMerge
from mergeloom.methods.kernels.linear_combination import GramCombination, Rule
from mergeloom.methods.ops.maths import Maths
from mergeloom.methods.shared_parameters import WEIGHT, sum_of_weights
from mergeloom.methods.statistics.angles import NO_DIRECTION, UNRESOLVED, Matrix, norms


@dataclass(frozen=True)
class SphericalMean(Rule):
    """The weighted mean direction, times the weighted mean length.

    The method projects the unit vectors to the tangent space at their normalised mean m, takes
    the weighted mean there, and maps it back to the sphere. That tangent mean is
    Σ wᵢuᵢ - ((Σ wᵢuᵢ)·m) m. Since m is parallel to Σ wᵢuᵢ, it is zero, and the result is m.
    """

    weights: tuple[float, ...]
    eps: float
    tensor: str

    def coefficients(self, gram: Matrix, maths: Maths) -> Sequence[float]:
        length, weights = norms(gram, maths), self.weights
        least = min(self.eps, NO_DIRECTION)
        directed = [
            0.0 if own <= least else weight / max(own, self.eps)
            for own, weight in zip(length, weights, strict=True)
        ]
        squared = sum(
            a * b * product
            for a, row in zip(directed, gram, strict=True)
            for b, product in zip(directed, row, strict=True)
        )
        mean = squared if math.isnan(squared) else math.sqrt(max(squared, 0.0))
        if mean < max(self.eps, UNRESOLVED):
            return self._without_direction(length)
        total = sum(weight * own for weight, own in zip(weights, length, strict=True))
        return [each / mean * total for each in directed]

    def _without_direction(self, length: Sequence[float]) -> Sequence[float]:
        if not any(length):
            return self.weights
        if len(self.weights) == 2:
            divisor = sum(self.weights) or 1.0
            return [weight / divisor for weight in self.weights]
        raise RunError(
            f"'{self.tensor}': the weighted directions cancel out, so their mean has no direction",
            remedy="change the weights, or merge this tensor by another method",
        )


class MultiSlerp(Method):
    name = "multislerp"
    summary = (
        "Spherical interpolation between any number of models: averages their directions and "
        "lengths separately. With a base, it interpolates the task vectors."
    )
    formula = (
        "uᵢ = θᵢ/‖θᵢ‖;  m = Σ wᵢuᵢ / ‖Σ wᵢuᵢ‖;  θ = exp_m(Σ wᵢ (uᵢ - (uᵢ·m)m)) · Σ wᵢ‖θᵢ‖, "
        "which is m · Σ wᵢ‖θᵢ‖;  with a base θ₀ + the same of τᵢ"
    )
    reference = "Buss & Fillmore 2001, Spherical averages and applications, ACM TOG 20(2)"
    works = "element by element, one pass of statistics (dot products)"
    model_parameters = (WEIGHT,)
    settings = (
        Parameter("normalize_weights", bool, "divide the weights by their sum first", default=True),
        Parameter(
            "eps",
            float,
            "length below which the mean direction counts as undefined",
            default=1e-8,
            minimum=0.0,
        ),
    )
    base = Base.OPTIONAL
    minimum = 1

    def kernel(self, merge: TensorMerge) -> Kernel:
        weights = merge.weights()
        if merge.settings["normalize_weights"]:
            divisor = sum_of_weights(weights)
            weights = tuple(weight / divisor for weight in weights)
        rule = SphericalMean(weights, merge.settings["eps"], merge.tensor)
        return GramCombination(rule, merge.others, merge.base)
