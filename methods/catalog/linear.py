"""Linear: the weighted mean, also known as a model soup."""

from __future__ import annotations

from mergeloom.engine.graph.kernel import Copy, Kernel
from mergeloom.methods.declare import Method, TensorMerge
from mergeloom.methods.kernels.linear_combination import LinearCombination
from mergeloom.methods.shared_parameters import WEIGHT, normalize, sum_of_weights


class Linear(Method):
    name = "linear"
    summary = (
        "The weighted mean of all models. Works best for fine-tunes of one base that stayed "
        "close to each other."
    )
    formula = "θ = Σ wᵢ θᵢ / Σ wᵢ   (normalize: false leaves out the division)"
    reference = "Wortsman et al. 2022, Model soups, arXiv:2203.05482"
    works = "element by element, no statistics"
    by_name = False
    model_parameters = (WEIGHT,)
    settings = (normalize(True),)
    minimum = 1
    merges_one = True

    def kernel(self, merge: TensorMerge) -> Kernel:
        weights = tuple(model["weight"] for model in merge.models)
        divisor = sum_of_weights(weights) if merge.settings["normalize"] else 1.0
        factors = tuple(weight / divisor for weight in weights)
        return Copy() if factors == (1.0,) else LinearCombination(factors)
