"""RAM: keep what one fine-tune alone changed whole, average what several changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mergeloom.engine.base.grains import Grains
from mergeloom.engine.graph.kernel import Copy, GrainSum, GrainView, Kernel, Statistic
from mergeloom.engine.graph.sums import GrainSums
from mergeloom.methods.declare import Base, Method, Parameter, TensorMerge
from mergeloom.methods.ops.torch_sums import magnitude_sum
from mergeloom.methods.ops.vectors import Differences
from mergeloom.methods.shared_parameters import base_of

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Changes:
    """Task vectors without the elements that hardly changed: those with |τ| up to ``epsilon``."""

    taus: Differences
    epsilon: float

    def write(self, number: int, grain: GrainView, out: Tensor, changed: Tensor) -> None:
        """Write task vector ``number`` to ``out``, and to ``changed`` where it is not zero."""
        import torch

        self.taus.write(number, grain, out)
        torch.ops.aten.hardshrink.out(out, self.epsilon, out=out)
        torch.ne(out, 0.0, out=changed)


@dataclass(frozen=True)
class Shares(GrainSum["tuple[tuple[int, int], ...]"]):
    """How many elements each model changed together with others, and how many alone."""

    changes: Changes

    @property
    def scratch(self) -> int:
        return self.changes.taus.count + 2

    def accumulator_bytes(self, grains: Grains, looped: bool) -> int:
        return 64 * (200 + 16 * self.changes.taus.count)

    def update(self, into: GrainSums, grain: GrainView, earlier: Sequence[Any]) -> None:
        import torch

        vector, by = grain.take(), grain.take().zero_()
        changed = [grain.take() for _ in range(self.changes.taus.count)]
        for number, marks in enumerate(changed):
            self.changes.write(number, grain, vector, marks)
            by.add_(marks)
        alone = torch.eq(by, 1.0, out=by)
        counts = []
        for marks in changed:
            counts += [magnitude_sum(marks, vector), magnitude_sum(marks.mul_(alone), vector)]
        into.add(grain.index, torch.stack(counts))

    def finish(self, total: GrainSums, earlier: Sequence[Any]) -> tuple[tuple[int, int], ...]:
        if total.total is None:
            return ((0, 0),) * self.changes.taus.count
        counts = list(map(int, total.total.tolist()))
        pairs = zip(counts[::2], counts[1::2], strict=True)
        return tuple((everything - unique, unique) for everything, unique in pairs)


@dataclass(frozen=True)
class DisjointMean(Kernel):
    """θ₀ + the mean of the changes over the models that changed an element at all.

    Where that is one model i, its change counts 1 + ``r`` · clip(sharedᵢ / uniqueᵢ, 0, ``alpha``).
    """

    base: int
    changes: Changes
    r: float = 0.0
    alpha: float = 0.0

    @property
    def amplified(self) -> bool:
        return bool(self.r and self.alpha)

    @property
    def passes(self) -> tuple[Statistic[Any, Any], ...]:
        return (Shares(self.changes),) if self.amplified else ()

    @property
    def scratch(self) -> int:
        return 4 if self.amplified else 3

    @property
    def cost(self) -> float:
        return 3.4 if self.amplified else 1.4

    def combine(
        self, grain: GrainView, out: Tensor, statistics: Sequence[Any], before: tuple[int, ...]
    ) -> None:
        import torch

        vector, changed, by = grain.take(), grain.take(), grain.take().zero_()
        more = grain.take().zero_() if self.amplified else None
        out.zero_()
        for number in range(self.changes.taus.count):
            self.changes.write(number, grain, vector, changed)
            out.add_(vector)
            by.add_(changed)
            if more is not None:
                more.add_(vector, alpha=self._excess(*statistics[0][number]))
        if more is not None:
            torch.eq(by, 1.0, out=changed)
            out.addcmul_(more, changed)
        out.div_(by.clamp_min_(1.0)).add_(grain.inputs[self.base])

    def _excess(self, shared: int, unique: int) -> float:
        return self.r * min(max(shared / max(unique, 1), 0.0), self.alpha)


_EPSILON = Parameter(
    "epsilon", float, "changes up to this magnitude count as none", default=1e-5, minimum=0.0
)


class Ram(Method):
    name = "ram"
    summary = (
        "Adds to the base what one fine-tune alone changed undiminished, and averages what "
        "several changed. Made for models trained by reinforcement learning, which change few "
        "weights each. Needs no weights."
    )
    formula = "θ = θ₀ + Σ τ̂ᵢ / max(1, number of i with τ̂ᵢ ≠ 0),  τ̂ᵢ = τᵢ where |τᵢ| > ε, else 0"
    reference = "Reinforced Agent Merging, arXiv:2601.13572"
    works = "element by element, no statistics"
    settings: ClassVar[tuple[Parameter, ...]] = (_EPSILON,)
    base = Base.REQUIRED
    minimum = 1

    def kernel(self, merge: TensorMerge) -> Kernel:
        if len(merge.models) == 1:
            return Copy()
        base = base_of(merge)
        taus = Differences(base, merge.others)
        return DisjointMean(base, Changes(taus, merge.settings["epsilon"]), *self.gain(merge))

    def gain(self, merge: TensorMerge) -> tuple[float, float]:
        """The factor and the bound of what is amplified."""
        return 0.0, 0.0


class RamPlus(Ram):
    name = "ramplus_tl"
    summary = (
        "Like ram, but what one fine-tune alone changed is amplified a little, the more so the "
        "more of that model's changes in the tensor are averaged with others and thereby lost."
    )
    formula = (
        "θ = θ₀ + λᵢτ̂ᵢ where only i changed the element, else θ₀ + the mean of the τ̂ᵢ ≠ 0;  "
        "τ̂ᵢ = τᵢ where |τᵢ| > ε, else 0;  λᵢ = 1 + r · clip(sharedᵢ / uniqueᵢ, 0, alpha), "
        "the numbers of elements of the tensor that i changed with others, and alone"
    )
    works = "element by element, one pass of statistics (counts)"
    settings = (
        Parameter("r", float, "how strongly changes of one model alone are amplified", default=0.1),
        Parameter(
            "alpha",
            float,
            "the largest quotient of shared and unique changes that counts",
            default=0.2,
            minimum=0.0,
        ),
        _EPSILON,
    )

    def gain(self, merge: TensorMerge) -> tuple[float, float]:
        return merge.settings["r"], merge.settings["alpha"]
