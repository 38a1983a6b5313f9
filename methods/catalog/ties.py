"""TIES: trim each task vector, elect a sign for each parameter, average the agreeing ones."""

from __future__ import annotations

import math

from mergeloom.engine.graph.kernel import Kernel
from mergeloom.methods.declare import Base, Method, TensorMerge
from mergeloom.methods.kernels.keep_by_magnitude import TopMagnitude
from mergeloom.methods.kernels.task_vectors import merge_task_vectors
from mergeloom.methods.shared_parameters import (
    DENSITY,
    INT8_MASK,
    LAMBDA,
    WEIGHT,
    kept_count,
    normalize,
    rescale,
)


class Ties(Method):
    name = "ties"
    summary = (
        "Keeps only the largest changes of every fine-tune, lets the models elect one sign for "
        "each parameter, and averages the changes that agree with it. Made for merging several "
        "fine-tunes that would otherwise cancel each other."
    )
    formula = (
        "τ̂ᵢ = the k = int(density·n), at least 1, largest |τᵢ|;  s = sign(Σ wᵢτ̂ᵢ), + at 0;  "
        "θ = θ₀ + λ · Σ wᵢτ̂ᵢ / Σ wᵢ, both sums over i with sign(wᵢτ̂ᵢ) = s"
    )
    reference = "Yadav et al. 2023, TIES-Merging, arXiv:2306.01708"
    works = (
        "element by element, two passes of statistics (order statistics); none where every "
        "density is 1 or more"
    )
    by_name = False
    model_parameters = (WEIGHT, DENSITY)
    settings = (normalize(True), LAMBDA, INT8_MASK, rescale(False))
    base = Base.REQUIRED
    minimum = 1

    def kernel(self, merge: TensorMerge) -> Kernel:
        total = math.prod(merge.shape)
        keep = [kept_count(density, total, least=1) for density in merge.weights("density")]
        rescaled = bool(merge.settings["rescale"])
        return merge_task_vectors(
            merge,
            [count == 0 for count in keep],
            lambda kept: TopMagnitude(tuple(keep[number] for number in kept), rescaled),
            elect=True,
        )
