"""Keep elements at random, with a probability by their rank in the row: DELLA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergeloom.engine.base.grains import Access, Grains
from mergeloom.engine.graph.kernel import GrainView
from mergeloom.methods.ops import draws as random
from mergeloom.methods.ops.descriptions import Kept, Operands
from mergeloom.methods.ops.loops.sizes import notes_bytes, work_bytes
from mergeloom.methods.ops.torch_transfer import beside

if TYPE_CHECKING:
    from torch import Tensor
from mergeloom.methods.kernels.keep_at_random import Dropping, mask_bits

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
            mask_bits(vector, numbers.ge_(bounds))
            return
        many = max(1, _RANKED // vector.shape[1])
        for first in range(0, vector.shape[0], many):
            rows = slice(first, first + many)
            _bound_by_rank(vector[rows], numbers[rows], steps, bounds[rows])
        mask_bits(vector, numbers.ge_(bounds))

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
