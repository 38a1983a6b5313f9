"""Model Breadcrumbs: drop the largest and the smallest elements of each task vector."""

from __future__ import annotations

import math
from typing import ClassVar

from mergeloom.engine.graph.kernel import Kernel
from mergeloom.methods.declare import Base, Method, Parameter, TensorMerge
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


class _Breadcrumbs(Method):
    reference = "Davari & Belilovsky 2023, Model Breadcrumbs, arXiv:2312.06795"
    works = (
        "element by element, two passes of statistics (order statistics); none where every "
        "density is 1 or more"
    )
    by_name = False
    model_parameters = (
        WEIGHT,
        DENSITY,
        Parameter(
            "gamma",
            float,
            "share of this model's task vector that is dropped as its largest elements",
            default=0.01,
            minimum=0.0,
            maximum=1.0,
        ),
    )
    settings = (normalize(False), LAMBDA, INT8_MASK, rescale(False))
    base = Base.REQUIRED
    minimum = 1
    elect: ClassVar[bool]

    def kernel(self, merge: TensorMerge) -> Kernel:
        total = math.prod(merge.shape)
        keep = [kept_count(density, total) for density in merge.weights("density")]
        gammas = merge.weights("gamma")

        def skipped(number: int) -> int:
            count = keep[number]
            return 0 if count is None else min(int(gammas[number] * total), total - count)

        def sparsifier(kept: tuple[int, ...]) -> TopMagnitude:
            return TopMagnitude(
                tuple(keep[number] for number in kept),
                bool(merge.settings["rescale"]),
                tuple(skipped(number) for number in kept),
            )

        dropped = [count == 0 for count in keep]
        return merge_task_vectors(merge, dropped, sparsifier, elect=self.elect)


_KEPT_FORMULA = (
    "τ̂ᵢ = τᵢ without its d = min(int(gamma·n), n - k) largest elements and its n - k - d smallest, "
    "k = int(density·n);  "
)


class Breadcrumbs(_Breadcrumbs):
    name = "breadcrumbs"
    summary = (
        "Drops both the largest changes of every fine-tune, as outliers, and the smallest ones, "
        "as noise, and adds the weighted rest to the base."
    )
    formula = _KEPT_FORMULA + "θ = θ₀ + λ Σ wᵢτ̂ᵢ   (normalize: divided by Σ wᵢ)"
    elect = False


class BreadcrumbsTies(_Breadcrumbs):
    name = "breadcrumbs_ties"
    summary = (
        "Drops both the largest changes of every fine-tune, as outliers, and the smallest ones, "
        "as noise, lets the models elect one sign for each parameter, and adds those that agree."
    )
    formula = _KEPT_FORMULA + (
        "s = sign(Σ wᵢτ̂ᵢ), + at 0;  θ = θ₀ + λ · Σ wᵢτ̂ᵢ over i with sign(wᵢτ̂ᵢ) = s   "
        "(normalize: divided by Σ wᵢ over the same i)"
    )
    elect = True
