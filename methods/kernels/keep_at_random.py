"""Keeps a random choice of elements, all alike or the likelier the larger they are in their row."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergeloom.engine.base.grains import Access, Grains
from mergeloom.engine.graph.kernel import GrainSum, GrainSums, GrainView, Statistic
from mergeloom.methods.kernels.sparsifier import Sparsifier, l1_factor
from mergeloom.methods.ops import draws as random
from mergeloom.methods.ops.compiled_ops import Draw, Kept, Operands
from mergeloom.methods.ops.loops.sizes import notes_bytes, work_bytes
from mergeloom.methods.ops.torch_sums import magnitude_sum
from mergeloom.methods.ops.torch_transfer import beside
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
        _mask_bits(vector, numbers.ge_(self._bound(number)))

    def chosen(self, number: int, operands: Operands, grain: GrainView, again: bool) -> Kept:
        return Kept(draw=Draw.of(self.keys[number], grain.start, self._bound(number)))

    def _bound(self, number: int) -> int:
        return random.threshold(self.keep[number] or 0.0)


def _mask_bits(vector: Tensor, drop: Tensor) -> None:
    """Set ``vector`` to zero, in place, where ``drop`` (int32) is 1 and not 0; overwrites it."""
    import torch

    # One less is no bit or all bits: what is dropped becomes zero even where it is NaN.
    vector.view(torch.int32).bitwise_and_(drop.sub_(1))


_RANKED = 1 << 17
"""Elements that are ranked at once, at least."""
_OCTAVES = 16
"""Powers of two below the largest magnitude within which magnitudes are told apart by buckets."""
_FEW = 512
"""Length of a row up to which it is not worth the trouble."""


@dataclass(frozen=True)
class RandomByRank(Dropping):
    """Keeps elements of vector ``i`` at random, the likelier the larger they are in their row.

    Of a row of n elements, the one of rank r (0 being the largest magnitude, equal ones in order
    of their index) is kept with probability ``keep[i]`` + ``epsilon[i]`` (1 - 2r/(n - 1)); a
    single element with ``keep[i]``.
    """

    keep: tuple[float | None, ...]
    epsilon: tuple[float, ...]
    keys: tuple[int, ...]
    rescale: bool

    @property
    def access(self) -> Access:
        return Access.ROWWISE

    @property
    def scratch(self) -> int:
        return 2

    @property
    def cost(self) -> float:
        return 58.0 if self.rescale else 29.0

    @property
    def compiled_cost(self) -> float:
        return 5.8 if self.rescale else 2.9

    @property
    def loops(self) -> frozenset[str]:
        return frozenset({"choose_by_rank"})

    def notes_bytes(self, grains: Grains) -> int:
        # To rank again takes as long as all the rest.
        return len(self.keep) * notes_bytes(grains.size) if self.rescale else 0

    def workspace_bytes(self, grains: Grains, looped: bool) -> int:
        row = grains.row
        if looped:
            # What loops work in, thresholds as they are computed in float64, and notes on a grain.
            models = len(self.keep)
            return work_bytes(models, row) + 32 * row + models * notes_bytes(grains.size)
        # At worst everything is sorted: magnitudes, buckets and their counts, then keys, their
        # sorted copies and places, and as much again inside of sorting. Thresholds by rank.
        return 88 * max(row, _RANKED) + 32 * row

    def drop(self, number: int, vector: Tensor, work: Sequence[Tensor], grain: GrainView) -> None:
        import torch

        numbers, bounds = work[0].view(torch.int32), work[1].view(torch.int32)
        random.draw(self.keys[number], grain.start, numbers, bounds)
        steps = beside(self._steps(number, vector.shape[1]), vector)
        if grain.on_device:
            _bound_by_sorting(vector, steps, bounds)
            _mask_bits(vector, numbers.ge_(bounds))
            return
        many = max(1, _RANKED // vector.shape[1])
        for first in range(0, vector.shape[0], many):
            rows = slice(first, first + many)
            _bound_by_rank(vector[rows], numbers[rows], steps, bounds[rows])
        _mask_bits(vector, numbers.ge_(bounds))

    def chosen(self, number: int, operands: Operands, grain: GrainView, again: bool) -> Kept:
        import torch

        if grain.notes is None:
            notes = torch.empty(notes_bytes(operands[0].numel()), dtype=torch.uint8)
        else:
            notes = grain.notes.view(len(self.keep), -1)[number]
        if grain.notes is None or not again:
            steps = self._steps(number, grain.shape[-1])
            grain.loops.choose_by_rank(operands, self.keys[number], grain.start, steps, notes)
        return Kept(noted=notes)

    def _steps(self, number: int, row: int) -> Tensor:
        """What the numbers of vector ``number`` must lie below, by rank in a row: int32."""
        import torch

        keep, epsilon = self.keep[number] or 0.0, self.epsilon[number]
        if row == 1:
            epsilon = 0.0
        share = torch.linspace(keep + epsilon, keep - epsilon, row, dtype=torch.float64)
        return share.mul_(2.0**32).round_().sub_(2.0**31).clamp_(max=2.0**31 - 1).int()


def _bound_by_rank(rows: Tensor, numbers: Tensor, steps: Tensor, out: Tensor) -> None:
    """Write to ``out`` what the numbers lie below just where they lie below ``steps[r]``.

    r is the rank of an element of ``rows`` in its row. Where the element is zero, anything may
    be written. All but ``steps``, which falls, are contiguous matrices of one shape.

    Sorting all rows would cost more than the rest of a merge. But a number between two steps
    decides about all elements of smaller or larger rank alike; so elements are counted by
    buckets of neighbouring magnitudes, which tells their ranks roughly, and sorted only in
    buckets with a number that lies between the steps of the bucket's ends.
    """
    import torch

    count, row = rows.shape
    if row <= _FEW:
        _bound_by_sorting(rows, steps, out)
        return
    bits = _magnitude_bits(rows)
    chosen, flat = numbers.reshape(-1), out.view(-1)
    buckets, width = _buckets(row)
    codes = bits.bitwise_right_shift(width)
    codes.sub_(int(codes.max()) - buckets + 1).clamp_min_(1).mul_(bits.clamp_max(1))
    codes.view(count, row).add_(torch.arange(count, dtype=torch.int32).unsqueeze(1) * buckets)
    inside = torch.bincount(codes, minlength=count * buckets)
    upto = inside.view(count, buckets).flip(1).cumsum_(1).flip(1).view(-1)
    above = upto - inside
    lowest = steps.index_select(0, upto.sub_(1).clamp_min_(0))
    highest = steps.index_select(0, above.clamp_max(row - 1)).sub_(1)
    highest[::buckets] = lowest[::buckets] - 1  # of zeros
    torch.index_select(lowest, 0, codes, out=flat)
    between = highest.index_select(0, codes)
    torch.clamp(chosen, flat, between, out=between).eq_(chosen)
    # What is decided counts for the zeros of the first row, which never need to be sorted.
    sought = torch.bincount(between.mul_(codes), minlength=count * buckets).clamp_max_(1).int()
    sought[::buckets] = 0
    torch.index_select(sought, 0, codes, out=between)
    members = torch.nonzero(between).view(-1)
    within = codes.index_select(0, members)
    del codes, between, lowest, highest, upto
    inside.mul_(sought)
    above.sub_(inside.cumsum(0).sub_(inside))
    order = _order(bits.index_select(0, members), within.long())
    ranks = torch.arange(members.numel()) + above.index_select(0, within.index_select(0, order))
    flat.index_copy_(0, members.index_select(0, order), steps.index_select(0, ranks))


def _bound_by_sorting(rows: Tensor, steps: Tensor, out: Tensor) -> None:
    """Write ``steps[r]`` to ``out``, r being the rank of an element of ``rows`` in its row."""
    import torch

    count, row = rows.shape
    numbers = torch.arange(count, device=rows.device).repeat_interleave(
        row, output_size=rows.numel()
    )
    order = _order(_magnitude_bits(rows), numbers)
    out.view(-1).index_copy_(0, order, steps.repeat(count))


def _magnitude_bits(rows: Tensor) -> Tensor:
    import torch

    return rows.reshape(-1).view(torch.int32).bitwise_and(0x7FFFFFFF)


def _order(bits: Tensor, groups: Tensor) -> Tensor:
    """The places of elements by rising group, falling magnitude, rising place."""
    import torch

    # All at once, as whole numbers, which sort fastest.
    keys = groups.bitwise_left_shift_(31).add_(bits.bitwise_xor(0x7FFFFFFF))
    return torch.sort(keys, stable=True).indices


def _buckets(row: int) -> tuple[int, int]:
    """How many buckets a row of this length is counted in, and the bits they do not tell apart."""
    fineness = min(max((row // 4 // _OCTAVES).bit_length() - 1, 2), 8)
    return _OCTAVES << fineness, 23 - fineness
