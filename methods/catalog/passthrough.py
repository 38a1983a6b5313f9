"""Passthrough: the tensor of one model, unchanged or scaled."""

from __future__ import annotations

from mergeloom.engine.graph.kernel import Copy, Kernel
from mergeloom.methods.declare import Method, Parameter, TensorMerge
from mergeloom.methods.kernels.linear_combination import LinearCombination


class Passthrough(Method):
    name = "passthrough"
    summary = (
        "Copies every tensor from one model, optionally scaled. Used to stack slices of one or "
        "several models into a deeper model ('frankenmerge')."
    )
    formula = "θ = scale · θ₁"
    reference = "used since Goliath-120B (2023); Kim et al. 2023, SOLAR 10.7B, arXiv:2312.15166"
    works = "element by element, no statistics"
    by_name = False
    model_parameters = (
        Parameter(
            "scale",
            float,
            "factor of the tensor; without it (or with 1) the tensor is copied byte for byte",
            default=None,
        ),
    )
    minimum = 1
    maximum = 1
    merges_one = True

    def kernel(self, merge: TensorMerge) -> Kernel:
        scale = merge.models[0].get("scale")
        return Copy() if scale is None or scale == 1 else LinearCombination((scale,))
