"""NuSlerp: slerp of two models by weights, over whole tensors or vector by vector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.kernel import Kernel
from mergeloom.methods.catalog.slerp import on_arc
from mergeloom.methods.declare import Base, Method, Parameter, TensorMerge
from mergeloom.methods.kernels.linear_combination import GramCombination, LinearCombination, Rule
from mergeloom.methods.kernels.row_combination import ColumnCombination, RowCombination
from mergeloom.methods.ops.maths import Maths
from mergeloom.methods.shared_parameters import WEIGHT
from mergeloom.methods.statistics.angles import Matrix, cosines


@dataclass(frozen=True)
class LongArc(Rule):
    """The point at ``t`` on the arc; a straight line only where the arc has no unique plane."""

    t: float

    def coefficients(self, gram: Matrix, maths: Maths) -> Sequence[Any]:
        cosine = cosines(gram, maths)[0][1]
        return on_arc(cosine, self.t, maths.sqrt(1 - cosine * cosine) < 1e-8, maths)


class NuSlerp(Method):
    name = "nuslerp"
    summary = (
        "Spherical interpolation between two models, each with a weight, instead of one t. With a "
        "base, it interpolates the task vectors. Can treat every row or column as a separate "
        "vector."
    )
    formula = (
        "t = w₂ / (w₁ + w₂), 0.5 where |w₁ + w₂| < 1e-6;  "
        "θ = sin((1-t)Ω)/sinΩ · θ₁ + sin(tΩ)/sinΩ · θ₂;  with a base θ₀ + the same of τ₁, τ₂;  "
        "a straight line where sinΩ < 1e-8"
    )
    reference = "after Shoemake 1985, SIGGRAPH; named in Goddard et al. 2024, arXiv:2403.13257"
    works = (
        "element by element, one pass of statistics (dot products); nuslerp_flatten: false: "
        "row by row, no statistics; nuslerp_row_wise beside it: row by row, one pass"
    )
    by_name = False
    model_parameters = (WEIGHT,)
    settings = (
        Parameter(
            "nuslerp_flatten",
            bool,
            "interpolate the whole tensor as one vector; false: vector by vector",
            default=True,
        ),
        Parameter(
            "nuslerp_row_wise",
            bool,
            "with nuslerp_flatten: false, vectors run along the first dimension, not the last",
            default=False,
        ),
    )
    base = Base.OPTIONAL
    minimum = 2
    maximum = 2

    def kernel(self, merge: TensorMerge) -> Kernel:
        positions = merge.others
        if len(positions) == 1:  # only one model besides the base: nothing to interpolate with
            return LinearCombination(tuple(float(i in positions) for i in range(2)))
        first, second = merge.weights()
        total = first + second
        rule = LongArc(0.5 if abs(total) < 1e-6 else second / total)
        if merge.settings["nuslerp_flatten"] or math.prod(merge.shape) == 0:
            return GramCombination(rule, positions, merge.base)
        if merge.settings["nuslerp_row_wise"] and len(merge.shape) > 1:
            return ColumnCombination(rule, positions, merge.shape, merge.base)
        return RowCombination(rule, positions, merge.base)
