"""Keeps a random choice of elements, all alike or the likelier the larger they are in their row."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergeloom.engine.base.grains import Grains
from mergeloom.engine.graph.kernel import GrainSum, GrainView, Statistic
from mergeloom.engine.graph.sums import GrainSums
from mergeloom.methods.kernels.sparsifier import Sparsifier, l1_factor
from mergeloom.methods.ops import draws as random
from mergeloom.methods.ops.descriptions import Draw, Kept, Operands
from mergeloom.methods.ops.torch_sums import magnitude_sum
from mergeloom.methods.ops.vectors import Source

if TYPE_CHECKING:
    from torch import Tensor


class Dropping(Sparsifier):
    """Decides grain by grain; statistics only serve to rescale.

    ``keep[i]`` is how likely elements of vector ``i`` are kept, ``None`` keeps all; ``keys`` are
    those of `methods.ops.draws`.
    """

    keep: tuple[float | None, ...]
    keys: tuple[int, ...]
    rescale: bool

    def drops(self, number: int) -> bool:
        """Whether anything of vector ``number`` may be dropped."""
        return self.keep[number] is not None

    @abstractmethod
    def drop(self, number: int, vector: Tensor, work: Sequence[Tensor], grain: GrainView) -> None:
        """Set to zero, in place, what is dropped of vector ``number``; see `apply`."""

    @abstractmethod
    def chosen(self, number: int, operands: Operands, grain: GrainView, again: bool) -> Kept:
        """What `drop` leaves, for compiled loops.

        If ``again``, that was asked of every vector that `drops` before, in an earlier pass.
        """

    def passes(self, source: Source) -> tuple[Statistic[Any, Any], ...]:
        return (KeptNorms(source, self),) if self.rescale else ()

    def factors(self, count: int, statistics: Sequence[Any]) -> tuple[float, ...]:
        if not self.rescale:
            return (1.0,) * count
        return tuple(l1_factor(whole, kept) for whole, kept in statistics[0])

    def apply(
        self,
        number: int,
        vector: Tensor,
        work: Sequence[Tensor],
        grain: GrainView,
        statistics: Sequence[Any],
        before: tuple[int, ...],
    ) -> None:
        if self.drops(number):
            self.drop(number, vector, work, grain)

    def kept(
        self,
        number: int,
        operands: Operands,
        work: Sequence[Tensor],
        grain: GrainView,
        statistics: Sequence[Any],
        before: tuple[int, ...],
    ) -> Kept:
        if not self.drops(number):
            return Kept()
        return self.chosen(number, operands, grain, again=self.rescale)


@dataclass(frozen=True)
class KeptNorms(GrainSum["tuple[tuple[float, float], ...]"]):
    """The L1 norm of every vector of a source, and that of what is kept of it.

    Both are 0 of a vector of which nothing is dropped.
    """

    source: Source
    dropping: Dropping

    @property
    def loops(self) -> frozenset[str]:
        return frozenset({"run_sums"}) | self.dropping.loops

    @property
    def scratch(self) -> int:
        return 1 + self.dropping.scratch + self.source.scratch * self.source.count

    @property
    def looped_scratch(self) -> int | None:
        return None if self.source.computed else 0

    def accumulator_bytes(self, grains: Grains, looped: bool) -> int:
        return 64 * (200 + 16 * self.source.count)

    def update(self, into: GrainSums, grain: GrainView, earlier: Sequence[Any]) -> None:
        import torch

        loops = grain.loops
        if loops is None:
            vector = grain.take()
            work = [grain.take() for _ in range(self.dropping.scratch)]
        device = vector.device if loops is None else None
        nothing = torch.zeros((), dtype=torch.float64, device=device)
        sums = []
        for number in range(self.source.count):
            if not self.dropping.drops(number):
                sums += [nothing, nothing]
                continue
            if loops is None:
                self.source.write(number, grain, vector)
                sums.append(magnitude_sum(vector.abs_(), work[0]))
                self.dropping.drop(number, vector, work, grain)
                sums.append(magnitude_sum(vector, work[0]))
                continue
            operands = self.source.operands(number, grain, grain.take)
            kept = self.dropping.chosen(number, operands, grain, again=False)
            sums += loops.magnitude_sums(operands, kept)
        into.add(grain.index, torch.stack(sums))

    def finish(self, total: GrainSums, earlier: Sequence[Any]) -> tuple[tuple[float, float], ...]:
        if total.total is None:
            return ((0.0, 0.0),) * self.source.count
        sums = total.total.tolist()
        return tuple(zip(sums[::2], sums[1::2], strict=True))


@dataclass(frozen=True)
class RandomKeep(Dropping):
    """Keeps each element of vector ``i`` with probability ``keep[i]``."""

    keep: tuple[float | None, ...]
    keys: tuple[int, ...]
    rescale: bool

    @property
    def scratch(self) -> int:
        return 2

    @property
    def cost(self) -> float:
        return 5.3 if self.rescale else 2.4

    @property
    def compiled_cost(self) -> float:
        return 0.6 if self.rescale else 0.3

    def drop(self, number: int, vector: Tensor, work: Sequence[Tensor], grain: GrainView) -> None:
        import torch

        numbers = work[0].view(torch.int32)
        random.draw(self.keys[number], grain.start, numbers, work[1].view(torch.int32))
        mask_bits(vector, numbers.ge_(self._bound(number)))

    def chosen(self, number: int, operands: Operands, grain: GrainView, again: bool) -> Kept:
        return Kept(draw=Draw.of(self.keys[number], grain.start, self._bound(number)))

    def _bound(self, number: int) -> int:
        return random.threshold(self.keep[number] or 0.0)


def mask_bits(vector: Tensor, drop: Tensor) -> None:
    """Set ``vector`` to zero, in place, where ``drop`` (int32) is 1 and not 0; overwrites it."""
    import torch

    # One less is no bit or all bits: what is dropped becomes zero even where it is NaN.
    vector.view(torch.int32).bitwise_and_(drop.sub_(1))
