"""RAM: keep changes made by one fine-tune only, average changes made by several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from mergeloom.engine.base.grains import Grains
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.kernel import Array, GrainSum, GrainView, Kernel, Statistic, Use
from mergeloom.engine.graph.sums import GrainSums
from mergeloom.methods.declare import Base, Method, Parameter, TensorMerge
from mergeloom.methods.ops.vectors import Differences
from mergeloom.methods.shared_parameters import base_of


@dataclass(frozen=True)
class ChangeCounts(GrainSum["tuple[tuple[int, int], ...]"]):
    """For each model, the number of elements it changed along with others, and alone.

    Changes of at most ``epsilon`` do not count.
    """

    taus: Differences
    epsilon: float

    @property
    def uses(self) -> tuple[Use, ...]:
        return (Use("count_changed", self.taus.count),)

    def accumulator_bytes(self, grains: Grains) -> int:
        return 64 * (200 + 16 * self.taus.count)

    def update(self, into: GrainSums, grain: GrainView, earlier: Sequence[Any]) -> None:
        into.add(grain.index, grain.ops.count_changed(self.taus.read_all(grain), self.epsilon))

    def finalize(self, total: GrainSums, earlier: Sequence[Any]) -> tuple[tuple[int, int], ...]:
        if total.total is None:
            return ((0, 0),) * self.taus.count
        counts = list(map(int, total.total))
        pairs = zip(counts[::2], counts[1::2], strict=True)
        return tuple((everything - unique, unique) for everything, unique in pairs)


@dataclass(frozen=True)
class DisjointMean(Kernel):
    """θ₀ + the mean change over the models that changed the element.

    If only model i did, its change is scaled by 1 + ``r`` · clip(sharedᵢ / uniqueᵢ, 0, ``alpha``).
    """

    taus: Differences
    epsilon: float
    r: float = 0.0
    alpha: float = 0.0
    version = 2

    @property
    def amplifies(self) -> bool:
        return bool(self.r and self.alpha)

    @property
    def passes(self) -> tuple[Statistic[Any, Any], ...]:
        return (ChangeCounts(self.taus, self.epsilon),) if self.amplifies else ()

    @property
    def uses(self) -> tuple[Use, ...]:
        return (Use("disjoint", self.taus.count),)

    def apply(
        self, grain: GrainView, out: Array, statistics: Sequence[Any], prefix: tuple[int, ...]
    ) -> None:
        excess = [0.0] * self.taus.count
        if self.amplifies:
            excess = [self._excess(*counts) for counts in statistics[0]]
        vectors, base = self.taus.read_all(grain), grain.inputs[self.taus.base]
        grain.ops.disjoint(vectors, self.epsilon, excess, base, out)

    def _excess(self, shared: int, unique: int) -> float:
        return self.r * min(max(shared / max(unique, 1), 0.0), self.alpha)


_EPSILON = Parameter(
    "epsilon", float, "changes up to this magnitude count as none", default=1e-5, minimum=0.0
)


class Ram(Method):
    name = "ram"
    summary = (
        "Adds changes made by only one fine-tune to the base in full, and averages changes made by "
        "several. Made for models trained by reinforcement learning, which change few weights "
        "each. Needs no weights."
    )
    formula = "θ = θ₀ + Σ τ̂ᵢ / max(1, number of i with τ̂ᵢ ≠ 0),  τ̂ᵢ = τᵢ where |τᵢ| > ε, else 0"
    reference = "Reinforced Agent Merging, arXiv:2601.13572"
    works = "element by element, no statistics"
    by_name = False
    settings: ClassVar[tuple[Parameter, ...]] = (_EPSILON,)
    base = Base.REQUIRED
    minimum = 1

    def kernel(self, merge: TensorMerge) -> Kernel:
        taus = Differences(base_of(merge), merge.others)
        return DisjointMean(taus, merge.settings["epsilon"], *self.gain(merge))

    def gain(self, merge: TensorMerge) -> tuple[float, float]:
        """``r`` and ``alpha`` of `DisjointMean`."""
        return 0.0, 0.0


class RamPlus(Ram):
    name = "ramplus_tl"
    summary = (
        "Like ram, but slightly amplifies changes made by only one fine-tune, more strongly the "
        "more of that model's other changes in the tensor are diluted by averaging."
    )
    formula = (
        "θ = θ₀ + λᵢτ̂ᵢ where only i changed the element, else θ₀ + the mean of the τ̂ᵢ ≠ 0;  "
        "τ̂ᵢ = τᵢ where |τᵢ| > ε, else 0;  λᵢ = 1 + r · clip(sharedᵢ / uniqueᵢ, 0, alpha), "
        "the numbers of elements of the tensor that i changed with others, and alone"
    )
    works = "element by element, one pass of statistics (counts)"
    settings = (
        Parameter("r", float, "how much changes made by only one model are amplified", default=0.1),
        Parameter(
            "alpha",
            float,
            "upper bound of the ratio of shared to unique changes",
            default=0.2,
            minimum=0.0,
        ),
        _EPSILON,
    )

    def gain(self, merge: TensorMerge) -> tuple[float, float]:
        return merge.settings["r"], merge.settings["alpha"]
