"""The ways to combine several adapters into one, under the names PEFT uses.

An adapter changes a weight by s·B·A (Hu et al. 2021, arXiv:2106.09685). The ways differ in what is
combined (A and B separately, the factors side by side, or the changes s·B·A, which are then
approximated at a given rank), in what is dropped first (nothing, the smallest elements, a random
choice), and in whether a sign is elected (TIES).
"""

from __future__ import annotations

import enum
import math
from typing import ClassVar

from mergeloom.engine.base.errors import ConfigError
from mergeloom.engine.base.suggest import suggest
from mergeloom.engine.graph.kernel import Kernel
from mergeloom.methods.declare import Method, Parameter, TensorMerge
from mergeloom.methods.kernels.keep_at_random import ExpectedKeep
from mergeloom.methods.kernels.keep_by_magnitude import TopMagnitude
from mergeloom.methods.kernels.linear_combination import LinearCombination
from mergeloom.methods.kernels.sparse_sum import Election, SparseSum
from mergeloom.methods.kernels.sparsifier import KeepAll, Sparsifier
from mergeloom.methods.ops.draws import key_of
from mergeloom.methods.shared_parameters import DENSITY, WEIGHT, kept_count

SIGN = Parameter(
    "majority_sign_method",
    str,
    "how the sign of an element is elected: by the sum of the values, or by the count of each sign",
    default="total",
    choices=("total", "frequency"),
)
RANK = Parameter(
    "svd_rank",
    int,
    "rank of the result; default: the highest rank of the adapters",
    default=None,
    minimum=1,
)

_PEFT = "PEFT, add_weighted_adapter"
_LORA = "Hu et al. 2021, LoRA, arXiv:2106.09685"
_TIES = "Yadav et al. 2023, TIES-Merging, arXiv:2306.01708"
_DARE = "Yu et al. 2024, Language models are Super Mario, arXiv:2311.03099"


class Combined(enum.Enum):
    """The part of the adapters that is combined."""

    FACTORS = "A and B separately"
    SIDE_BY_SIDE = "A and B side by side"
    CHANGES = "the changes s·B·A"


class Combination(Method):
    """One way to combine adapters.

    `kernel` combines aligned tensors (factors or changes) with the weights in ``merge``; for
    factors these are weights of the factors. ``draws`` and ``drops_smallest`` say what is dropped
    first.
    """

    what: ClassVar[Combined]
    drops_smallest: ClassVar[bool] = False
    elect: ClassVar[bool] = False
    merges_one = True

    def kernel(self, merge: TensorMerge) -> Kernel:
        total = math.prod(merge.shape)
        weights = merge.weights()
        densities = [1.0] * len(weights)
        if self.drops_smallest or self.draws:
            densities = list(merge.weights("density"))
        counts = [kept_count(density, total) for density in densities]
        dropped = [
            count == 0 if self.drops_smallest else density == 0
            for count, density in zip(counts, densities, strict=True)
        ]
        kept = tuple(number for number, drop in enumerate(dropped) if not drop)
        if not kept:
            return LinearCombination((0.0,) * len(weights))
        sparsifier: Sparsifier = KeepAll()
        if self.drops_smallest:
            sparsifier = TopMagnitude(tuple(counts[number] for number in kept))
        elif self.draws:
            sparsifier = ExpectedKeep(
                tuple(None if densities[i] >= 1 else densities[i] for i in kept),
                tuple(key_of(merge.seed, merge.tensor, i) for i in kept),
            )
        election = Election(merge.settings[SIGN.name]) if self.elect else Election.NONE
        return SparseSum(kept, tuple(weights[number] for number in kept), sparsifier, election)


class Linear(Combination):
    name = "linear"
    summary = (
        "Adds up the factors of the adapters. Cheap, but only a rough approximation of the sum of "
        "the changes, because products of factors of different adapters enter it."
    )
    formula = "A = Σ sgn(wᵢ)·√|wᵢsᵢ|·Aᵢ,  B = Σ √|wᵢsᵢ|·Bᵢ"
    reference = _PEFT
    what = Combined.FACTORS
    model_parameters = (WEIGHT,)


class Ties(Combination):
    name = "ties"
    summary = "TIES on each factor: keeps the largest elements, and averages those of one sign."
    formula = "as linear, over the elements that are kept and agree, divided by their number"
    reference = f"{_PEFT}; {_TIES}"
    what = Combined.FACTORS
    drops_smallest = elect = True
    model_parameters = (WEIGHT, DENSITY)
    settings = (SIGN,)


class DareLinear(Combination):
    name = "dare_linear"
    summary = "Drops a random choice of each factor's elements, scales up the rest, adds them up."
    formula = "as linear, with m∘A/density for A, m = 1 with probability density"
    reference = f"{_PEFT}; {_DARE}"
    what = Combined.FACTORS
    draws = True
    model_parameters = (WEIGHT, DENSITY)


class DareTies(Combination):
    name = "dare_ties"
    summary = "Drops a random choice of each factor's elements, and averages those of one sign."
    formula = "as ties, with m∘A/density for A, m = 1 with probability density"
    reference = f"{_PEFT}; {_DARE}; {_TIES}"
    what = Combined.FACTORS
    draws = elect = True
    model_parameters = (WEIGHT, DENSITY)
    settings = (SIGN,)


class MagnitudePrune(Combination):
    name = "magnitude_prune"
    summary = "Keeps the largest elements of each factor, and adds them up."
    formula = "as linear, over the elements that are kept"
    reference = _PEFT
    what = Combined.FACTORS
    drops_smallest = True
    model_parameters = (WEIGHT, DENSITY)


class Concatenation(Combination):
    name = "cat"
    summary = "The exact sum of the changes: the ranks add up."
    formula = "A = [w₁s₁A₁; w₂s₂A₂; …],  B = [B₁ B₂ …],  so that B·A = Σ wᵢsᵢBᵢAᵢ"
    reference = _PEFT
    what = Combined.SIDE_BY_SIDE
    model_parameters = (WEIGHT,)


class _ChangeCombination(Combination):
    what = Combined.CHANGES
    settings: ClassVar[tuple[Parameter, ...]] = (RANK,)


class Svd(_ChangeCombination):
    name = "svd"
    summary = "The adapter of a chosen rank that is closest to the exact sum of the changes."
    formula = "U·S·Vᵀ ≈ Σ wᵢsᵢBᵢAᵢ, the largest singular values;  B = U·S,  A = Vᵀ"
    reference = f"{_PEFT}; {_LORA}"
    model_parameters = (WEIGHT,)


class TiesSvd(_ChangeCombination):
    name = "ties_svd"
    summary = "TIES on the changes as matrices, and the closest adapter of a chosen rank."
    formula = "as svd, of Σ wᵢτ̂ᵢ over what is kept of τᵢ = sᵢBᵢAᵢ and agrees, by its number"
    reference = f"{_PEFT}; {_TIES}"
    drops_smallest = elect = True
    model_parameters = (WEIGHT, DENSITY)
    settings = (SIGN, RANK)


class DareLinearSvd(_ChangeCombination):
    name = "dare_linear_svd"
    summary = "DARE on the changes as matrices, and the closest adapter of a chosen rank."
    formula = "as svd, of Σ wᵢ·m∘τᵢ/density, m = 1 with probability density"
    reference = f"{_PEFT}; {_DARE}"
    draws = True
    model_parameters = (WEIGHT, DENSITY)


class DareTiesSvd(_ChangeCombination):
    name = "dare_ties_svd"
    summary = "DARE and TIES on the changes as matrices, and the closest adapter of a chosen rank."
    formula = "as ties_svd, with m∘τ/density for τ, m = 1 with probability density"
    reference = f"{_PEFT}; {_DARE}; {_TIES}"
    draws = elect = True
    model_parameters = (WEIGHT, DENSITY)
    settings = (SIGN, RANK)


class MagnitudePruneSvd(_ChangeCombination):
    name = "magnitude_prune_svd"
    summary = "The largest elements of the changes, and the closest adapter of a chosen rank."
    formula = "as svd, of Σ wᵢτ̂ᵢ over what is kept of τᵢ = sᵢBᵢAᵢ"
    reference = _PEFT
    drops_smallest = True
    model_parameters = (WEIGHT, DENSITY)


_ALL: tuple[type[Combination], ...] = (
    *(Concatenation, DareLinear, DareLinearSvd, DareTies, DareTiesSvd, Linear, MagnitudePrune),
    *(MagnitudePruneSvd, Svd, Ties, TiesSvd),
)
COMBINATIONS = {kind.name: kind() for kind in _ALL}


def get(name: str) -> Combination:
    """The combination called ``name``.

    Raises:
        ConfigError: there is no such combination.
    """
    if name not in COMBINATIONS:
        raise ConfigError(
            f"adapters cannot be combined by '{name}'",
            remedy=suggest(name, COMBINATIONS) or f"one of {', '.join(COMBINATIONS)}",
            code="unknown-method",
        )
    return COMBINATIONS[name]
