"""DELLA: drop elements of task vectors at random, small ones more likely; rescale the rest."""

from __future__ import annotations

from typing import ClassVar

from mergeloom.engine.graph.kernel import Kernel
from mergeloom.methods.declare import Base, Method, Parameter, ParameterError, TensorMerge
from mergeloom.methods.kernels.keep_by_rank import RandomByRank
from mergeloom.methods.kernels.task_vectors import merge_task_vectors
from mergeloom.methods.ops.draws import key_of
from mergeloom.methods.shared_parameters import (
    DENSITY,
    INT8_MASK,
    LAMBDA,
    WEIGHT,
    normalize,
    rescale,
)

_EPSILON = Parameter(
    "epsilon",
    float,
    "how far the probability of keeping an element varies below and above density; "
    "density - epsilon must be above 0 and density + epsilon below 1",
    default=0.15,
    minimum=0.0,
)


class _Della(Method):
    reference = "Deep et al. 2024, DELLA-Merging, arXiv:2406.11617"
    works = (
        "row by row, one pass of statistics (L1 norms); none with rescale: false, or where "
        "every density is 1 or more"
    )
    model_parameters = (WEIGHT, DENSITY, _EPSILON)
    draws = True
    base = Base.REQUIRED
    minimum = 1
    elect: ClassVar[bool]

    def kernel(self, merge: TensorMerge) -> Kernel:
        densities, epsilons = merge.weights("density"), merge.weights("epsilon")
        for density, epsilon in zip(densities, epsilons, strict=True):
            check_probabilities(density, epsilon)

        def sparsifier(kept: tuple[int, ...]) -> RandomByRank:
            keep = [densities[number] for number in kept]
            return RandomByRank(
                tuple(None if density >= 1 else density for density in keep),
                tuple(epsilons[number] for number in kept),
                tuple(key_of(merge.seed, merge.tensor, number) for number in kept),
                rescale=merge.settings["rescale"] and min(keep) < 1,
            )

        dropped = [density == 0 for density in densities]
        return merge_task_vectors(merge, dropped, sparsifier, elect=self.elect)


def check_probabilities(density: float, epsilon: float) -> None:
    """Check that all probabilities are between 0 and 1.

    Raises:
        ParameterError: they are not, and density is neither 0 nor at least 1.
    """
    if 0 < density < 1 and not (density > epsilon and density + epsilon < 1):
        raise ParameterError(
            f"'density' {density:g} and 'epsilon' {epsilon:g} give probabilities from "
            f"{density - epsilon:g} to {density + epsilon:g}, which must lie between 0 and 1",
            remedy=f"choose an 'epsilon' below {min(density, 1 - density):g}",
        )


_KEPT_FORMULA = (
    "τ̂ᵢ = mᵢ ∘ τᵢ · Σ|τᵢ| / Σ|mᵢ ∘ τᵢ|,  mᵢ = 1 with probability density + ε (1 - 2r/(n-1)), "
    "r = 0 … n-1 the rank of |τᵢ| in its row of n, largest first;  "
)


class Della(_Della):
    name = "della"
    summary = (
        "Drops elements of each task vector at random, the smaller ones of each row with higher "
        "probability, scales up the rest, lets the models elect one sign for each parameter, and "
        "averages what agrees with it."
    )
    formula = _KEPT_FORMULA + (
        "s = sign(Σ wᵢτ̂ᵢ), + at 0;  "
        "θ = θ₀ + λ · Σ wᵢτ̂ᵢ / Σ wᵢ, both sums over i with sign(wᵢτ̂ᵢ) = s"
    )
    settings = (normalize(True), LAMBDA, INT8_MASK, rescale(True))
    elect = True


class DellaLinear(_Della):
    name = "della_linear"
    summary = (
        "Drops elements of each task vector at random, the smaller ones of each row with higher "
        "probability, scales up the rest, and adds the weighted task vectors to the base."
    )
    formula = _KEPT_FORMULA + "θ = θ₀ + λ Σ wᵢτ̂ᵢ   (normalize: divided by Σ wᵢ)"
    settings = (normalize(False), LAMBDA, INT8_MASK, rescale(True))
    elect = False
