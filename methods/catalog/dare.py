"""DARE: drop elements of each task vector at random, and rescale the rest."""

from __future__ import annotations

from typing import ClassVar

from mergeloom.engine.graph.kernel import Kernel
from mergeloom.methods.declare import Base, Method, TensorMerge
from mergeloom.methods.kernels.keep_at_random import RandomKeep
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

_REFERENCE = "Yu et al. 2024, Language models are Super Mario, arXiv:2311.03099"


class _Dare(Method):
    reference = _REFERENCE
    works = (
        "element by element, one pass of statistics (L1 norms); none with rescale: false, or "
        "where every density is 1 or more"
    )
    model_parameters = (WEIGHT, DENSITY)
    settings = (normalize(False), LAMBDA, INT8_MASK, rescale(True))
    draws = True
    base = Base.REQUIRED
    minimum = 1
    elect: ClassVar[bool]

    def kernel(self, merge: TensorMerge) -> Kernel:
        densities = merge.weights("density")
        keys = [key_of(merge.seed, merge.tensor, i) for i in range(len(densities))]

        def sparsifier(kept: tuple[int, ...]) -> RandomKeep:
            keep = [densities[number] for number in kept]
            return RandomKeep(
                tuple(None if density >= 1 else density for density in keep),
                tuple(keys[number] for number in kept),
                rescale=merge.settings["rescale"] and min(keep) < 1,
            )

        dropped = [density == 0 for density in densities]
        return merge_task_vectors(merge, dropped, sparsifier, elect=self.elect)


class DareLinear(_Dare):
    name = "dare_linear"
    summary = (
        "Drops a random share of each task vector, scales up the rest, and adds the weighted task "
        "vectors to the base. Works because the changes of a fine-tune are highly redundant."
    )
    formula = (
        "τ̂ᵢ = mᵢ ∘ τᵢ · Σ|τᵢ| / Σ|mᵢ ∘ τᵢ|,  mᵢ = 1 with probability density, else 0;  "
        "θ = θ₀ + λ Σ wᵢτ̂ᵢ   (normalize: divided by Σ wᵢ; rescale: false leaves out the quotient)"
    )
    elect = False


class DareTies(_Dare):
    name = "dare_ties"
    summary = (
        "Drops a random share of each task vector, scales up the rest, lets the models elect one "
        "sign for each parameter, and adds the changes that agree with it."
    )
    formula = (
        "τ̂ᵢ = mᵢ ∘ τᵢ · Σ|τᵢ| / Σ|mᵢ ∘ τᵢ|,  mᵢ = 1 with probability density, else 0;  "
        "s = sign(Σ wᵢτ̂ᵢ), + at 0;  θ = θ₀ + λ · Σ wᵢτ̂ᵢ over i with sign(wᵢτ̂ᵢ) = s   "
        "(normalize: divided by Σ wᵢ over the same i)"
    )
    elect = True
