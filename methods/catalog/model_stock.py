"""Model Stock: move from the base towards the mean, as far as the angle between models says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.kernel import Kernel
from mergeloom.methods.declare import Base, Method, Parameter, ParameterError, TensorMerge
from mergeloom.methods.kernels.linear_combination import GramCombination, Rule
from mergeloom.methods.kernels.row_combination import RowCombination
from mergeloom.methods.ops.interface import pairs
from mergeloom.methods.ops.maths import Maths
from mergeloom.methods.shared_parameters import base_of
from mergeloom.methods.statistics.angles import Matrix, cosines

_MIN_DENOMINATOR = 1e-8
"""Denominators of smaller magnitude count as zero."""


@dataclass(frozen=True)
class Stock(Rule):
    """t/N for every task vector, t = N cosΩ / (1 + (N-1) cosΩ) (Jang et al. 2024, eq. 2).

    cosΩ is the mean over all pairs. If the denominator vanishes (two opposite task vectors), the
    mean of the models is the base, and t is 0.
    """

    def coefficients(self, gram: Matrix, maths: Maths) -> Sequence[Any]:
        count = len(gram)
        cosine = cosines(gram, maths)
        pair_sum = sum(cosine[i][j] for i, j in pairs(count) if i != j)
        mean = 2 * pair_sum / (count * (count - 1))
        denominator = 1 + (count - 1) * mean
        vanishes = abs(denominator) < _MIN_DENOMINATOR
        share = maths.where(vanishes, 0.0, mean / maths.where(vanishes, 1.0, denominator))
        return (share,) * count


class ModelStock(Method):
    name = "model_stock"
    summary = (
        "Averages fine-tunes and pulls the mean towards the base, more strongly the less they "
        "agree: the angle between their task vectors shows how much of them is noise."
    )
    formula = (
        "cosΩ = mean over pairs of cos(τᵢ, τⱼ);  t = N cosΩ / (1 + (N-1) cosΩ);  "
        "θ = t · mean(θᵢ) + (1-t) θ₀   (filter_wise: for each row)"
    )
    reference = "Jang et al. 2024, Model Stock, arXiv:2403.19522"
    works = (
        "element by element, one pass of statistics (dot products); filter_wise: true: row "
        "by row, no statistics"
    )
    by_name = False
    settings = (
        Parameter(
            "filter_wise",
            bool,
            "compute the angle separately for each row (along the last dimension)",
            default=False,
        ),
    )
    base = Base.REQUIRED
    minimum = 2

    def kernel(self, merge: TensorMerge) -> Kernel:
        base = base_of(merge)
        if len(merge.others) < 2:
            raise ParameterError(
                "model_stock needs two models besides the base, but only one has this tensor",
                remedy="give a further model that has it, or merge by another method",
            )
        if merge.settings["filter_wise"]:
            return RowCombination(Stock(), merge.others, base)
        return GramCombination(Stock(), merge.others, base)
