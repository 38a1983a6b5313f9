"""Arithmetic by torch on tensors: for devices, for kernels of other packages, and where there is no
compiler. Imported by workers only.

Temporary memory of an operation is allocated by torch (`methods.ops.arithmetic` says how much).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mergeloom.engine.graph.kernel import GrainView
from mergeloom.engine.run.torch_arrays import TorchArrays
from mergeloom.methods.ops import draws
from mergeloom.methods.ops.interface import (
    CANCELLED,
    KEEP_ALL,
    Adjustment,
    Blocks,
    KeepRule,
    Vector,
    matrix,
    pairs,
)
from mergeloom.methods.ops.maths import ArrayMaths, divergences_of
from mergeloom.methods.ops.torch_factors import TorchFactors
from mergeloom.methods.ops.torch_tables import TorchTables

_MAGNITUDE = 0x7FFFFFFF
_LOOKED_UP = 1 << 16
"""Elements per batch of a lookup; their indices take 4 bytes each."""


class TorchOps(TorchFactors, TorchTables, TorchArrays):
    """`methods.ops.interface.Ops` on tensors of one device, in the shape of a grain."""

    @property
    def brief(self) -> TorchOps:
        return self

    @cached_property
    def maths(self) -> ArrayMaths:
        return ArrayMaths(torch)

    def sums(self, numbers: Sequence[Any]) -> Tensor:
        options: dict[str, Any] = {"dtype": torch.float64, "device": self._memory.device}
        return torch.stack([torch.as_tensor(number, **options) for number in numbers])

    def counters(self, count: int) -> Tensor:
        return torch.zeros(count, dtype=torch.int64, device=self._memory.device)

    def to_float32(self, numbers: Tensor) -> Tensor:
        return numbers.float()

    def from_numpy(self, numbers: Any) -> Tensor:
        """Copy a numpy array to the device.

        On CUDA the copy is asynchronous, so that the call does not wait for earlier work of the
        device; pageable memory is staged before the call returns. Metal reads the memory later,
        when it may have been freed, so there the call waits.
        """
        device = self._memory.device
        return torch.from_numpy(numbers).to(device, non_blocking=device.type != "mps")

    def numbers(self, array: Tensor, start: int, count: int) -> Tensor:
        return array.reshape(-1)[start : start + count].float().double()

    # --- measuring ------------------------------------------------------------------------

    def dots(self, vectors: Sequence[Vector]) -> Tensor:
        doubles = [_values(vector).reshape(-1).double() for vector in vectors]
        return torch.stack([(doubles[i] * doubles[j]).sum() for i, j in pairs(len(vectors))])

    def magnitudes(self, vector: Vector, kept: KeepRule) -> tuple[Tensor, Tensor]:
        values = _values(vector)
        whole = values.abs().sum(dtype=torch.float64)
        if kept is KEEP_ALL:
            return whole, whole
        return whole, _trimmed(values, kept).abs_().sum(dtype=torch.float64)

    def squares(self, vector: Vector, kept: KeepRule) -> Tensor:
        return _trimmed(_values(vector), kept).square_().sum(dtype=torch.float64)

    def count_changed(self, vectors: Sequence[Vector], epsilon: float) -> Tensor:
        changed = [_exceeds(_values(vector), epsilon) for vector in vectors]
        alone = torch.stack(changed).sum(0).eq(1)
        counts = [(marks.sum(), (marks & alone).sum()) for marks in changed]
        return self.sums([count for both in counts for count in both])

    def ranks(self, count: int) -> bool:
        return False

    def find_ranks(self, vector: Vector, ranks: Sequence[int], low: int) -> None:
        return None

    def count_high(
        self, vectors: Sequence[Vector], low: int, counts: Sequence[Tensor]
    ) -> list[Tensor]:
        nonzero = []
        for vector, own in zip(vectors, counts, strict=True):
            bits = _values(vector).reshape(-1).view(torch.int32).bitwise_and(_MAGNITUDE)
            nonzero.append(torch.count_nonzero(bits))
            self._count(bits.bitwise_right_shift_(low), own)
        return nonzero

    def count_low(
        self,
        vectors: Sequence[Vector],
        highs: Sequence[Sequence[int]],
        low: int,
        step: int,
        counts: Sequence[Sequence[Tensor]],
    ) -> list[Tensor]:
        return [
            self._count_low(vector, own, low, step, those)
            for vector, own, those in zip(vectors, highs, counts, strict=True)
        ]

    def _count_low(
        self, vector: Vector, highs: Sequence[int], low: int, step: int, counts: Sequence[Tensor]
    ) -> Tensor:
        bits, size = _values(vector).reshape(-1).view(torch.int32), 1 << low
        levels = []
        # Most elements have other high bits. Atomic additions to a single counter would be slow,
        # so they are spread over a range of unused counters.
        other = torch.arange(bits.numel(), dtype=torch.int32, device=bits.device)
        other.bitwise_and_(size - 1).bitwise_or_(size)
        for high, own in zip(highs, counts, strict=True):
            found = bits.bitwise_and(_MAGNITUDE).bitwise_xor_(high << low)
            inside = self.counters(2 * size)
            self._count(torch.where(found < size, found, other), inside)
            own.add_(inside[:size])
            levels.append(inside[: size : 1 << step].int())
        return torch.stack(levels)

    def count_equal(self, vector: Vector, value: float) -> Tensor:
        return _values(vector).abs_().eq(value).sum()

    def end_of_equal(self, vector: Vector, value: float, max_equal: int) -> int:
        upto = _values(vector).reshape(-1).abs_().eq_(value).cumsum(0, dtype=torch.int32)
        return int(torch.searchsorted(upto, max_equal, right=True))

    def row_dots(self, vectors: Sequence[Vector], row: int) -> list[list[Tensor]]:
        doubles = [_values(vector).reshape(-1, row).double() for vector in vectors]
        found = [(doubles[i] * doubles[j]).sum(1) for i, j in pairs(len(vectors))]
        return matrix(found, len(vectors))

    def column_dots(self, vectors: Sequence[Vector], columns: int, first: int) -> Tensor:
        whole = [_values(vector).reshape(-1) for vector in vectors]
        if columns != vectors[0].array.shape[-1]:  # a tensor with more than two dimensions
            after = -(first + whole[0].numel()) % columns
            whole = [torch.nn.functional.pad(values, (first, after)) for values in whole]
        doubles = [values.view(-1, columns).double() for values in whole]
        return torch.stack([(doubles[i] * doubles[j]).sum(0) for i, j in pairs(len(vectors))])

    def column_sums(self, array: Tensor, rows: int, columns: int) -> Tensor:
        return array.view(-1, columns)[:rows].sum(0, dtype=torch.float64)

    def divergences(self, base: Tensor, other: Tensor, row: int) -> Tensor:
        base, other = base.view(-1, row), other.view(-1, row)
        tops = [each.amax(1).double() for each in (base, other)]
        values = [
            (each.double() - top.unsqueeze(1)).exp_()
            for each, top in zip((base, other), tops, strict=True)
        ]
        # Differences of float32 numbers of similar magnitude are exact in float64.
        weights = (other.double() - base) * values[1]
        sums = torch.stack([*tops, *(each.sum(1) for each in (*values, weights))])
        found: Tensor = divergences_of(sums, torch).float()
        return found

    # --- choosing -------------------------------------------------------------------------

    def new_marks(self, grain: GrainView, number: int, vectors: int) -> None:
        return None

    def choose_by_rank(
        self, vector: Vector, row: int, key: int, start: int, steps: Any, marks: None
    ) -> Tensor:
        values = _values(vector).reshape(-1, row)
        numbers, bounds = torch.empty(2, *values.shape, dtype=torch.int32, device=values.device)
        draws.draw(key, start, numbers, bounds)
        rows = torch.arange(values.shape[0], device=values.device).repeat_interleave(
            row, output_size=values.numel()
        )
        bits = values.view(-1).view(torch.int32).bitwise_and(_MAGNITUDE)
        # One sort of integer keys, the fastest kind: by row, descending magnitude, position.
        keys = rows.bitwise_left_shift_(31).add_(bits.bitwise_xor_(_MAGNITUDE))
        order = torch.sort(keys, stable=True).indices
        bounds.view(-1).index_copy_(0, order, self.from_numpy(steps).repeat(values.shape[0]))
        chosen: Tensor = numbers.lt(bounds)
        return chosen

    def mark(self, vector: Vector, kept: KeepRule, marks: None) -> Tensor:
        marks_there: Tensor = _trimmed(_values(vector), kept).ne(0.0)
        return marks_there

    # --- writing --------------------------------------------------------------------------

    def combine(
        self,
        vectors: Sequence[Vector],
        coefficients: Sequence[float],
        out: Tensor,
        *,
        kept: Sequence[KeepRule] | None = None,
        votes: Sequence[float] | None = None,
        shares: Sequence[float] | None = None,
        base: Tensor | None = None,
        scale: float = 1.0,
        by_count: bool = False,
    ) -> None:
        rules = kept or [KEEP_ALL] * len(vectors)
        given = zip(vectors, rules, strict=True)
        if votes is not None:
            sparse = [_trimmed(_values(vector), rule) for vector, rule in given]
            _elected_sum(sparse, votes, coefficients, shares, by_count, out)
        else:
            # Adding to -0.0 preserves the first product exactly, including the sign of a zero.
            out.fill_(-0.0 if base is None else 0.0)
            for coefficient, (vector, rule) in zip(coefficients, given, strict=True):
                plain = vector.minus is None and vector.factors is None and rule is KEEP_ALL
                values = vector.array if plain else _trimmed(_values(vector), rule)
                out.add_(values.view(out.shape), alpha=coefficient)
        if base is not None:
            torch.add(base, out, alpha=scale, out=out)

    def step(self, vector: Vector, limit: float, base: Tensor, out: Tensor) -> None:
        torch.add(_values(vector).clamp_(-limit, limit), base, out=out)

    def disjoint(
        self,
        vectors: Sequence[Vector],
        epsilon: float,
        excess: Sequence[float],
        base: Tensor,
        out: Tensor,
    ) -> None:
        out.zero_()
        by, more = torch.zeros_like(out), torch.zeros_like(out)
        for vector, own in zip(vectors, excess, strict=True):
            values = torch.ops.aten.hardshrink(_values(vector), epsilon)
            out.add_(values)
            by.add_(values.ne(0.0))
            more.add_(values, alpha=own)
        out.add_(more.masked_fill_(by.ne(1.0), 0.0))
        out.div_(by.clamp_min_(1.0)).add_(base)

    def variance(self, vectors: Sequence[Vector], out: Tensor) -> None:
        values = [_values(vector) for vector in vectors]
        mean, first = torch.zeros_like(out), values[0].clone()
        for each in values:
            mean.add_(each.sub_(first))
        mean.div_(len(values))
        out.zero_()
        for each in values:
            # Two roundings, unlike a fused operation: the same bits on every device.
            out.add_(each.sub_(mean).square_())

    def choose(self, vector: Vector, threshold: float, out: Tensor) -> None:
        assert vector.minus is not None
        chosen = _values(vector).abs_().ge(threshold)
        torch.where(chosen, vector.array, vector.minus, out=out)

    def adjust(
        self,
        array: Tensor,
        blocks: Blocks,
        how: Adjustment,
        row: int,
        out: Tensor,
        *,
        zero: float = 0.0,
        factor: float = 1.0,
    ) -> None:
        lines = out.view(-1, row)
        torch.sub(array.view(-1, row), zero, out=lines)
        for into, numbers in _spread(blocks, lines, _numbers(blocks, len(lines))):
            if how is Adjustment.SUBTRACT:
                into.sub_(numbers)
            elif how is Adjustment.MULTIPLY:
                into.mul_(numbers)
            else:
                into.div_(numbers)
        if factor != 1.0:
            lines.mul_(factor)

    def look_up(self, indices: Tensor, table: Tensor, out: Tensor) -> None:
        numbers, values, entries = indices.view(-1), out.view(-1), table.reshape(-1).float()
        for start in range(0, len(values), _LOOKED_UP):
            part = slice(start, start + _LOOKED_UP)
            torch.index_select(entries, 0, numbers[part].int(), out=values[part])

    def add_product(
        self,
        weight: Tensor,
        down: Tensor,
        up: Tensor,
        rank: int,
        first: int,
        scale: float,
        out: Tensor,
    ) -> None:
        down, up = down.reshape(rank, -1), up.reshape(-1, rank)
        weight, flat = weight.reshape(-1), out.view(-1)
        width, wide = down.shape[1], max(flat.numel() // rank, 1)
        for start, row, rows, column, columns in _rectangles(first, flat.numel(), width):
            place = slice(start, start + rows * columns)
            factors = up[row : row + rows].float()
            weights, into = (each[place].view(rows, columns) for each in (weight, flat))
            for left in range(0, columns, wide):
                part = slice(left, left + wide)
                other = down[:, column : column + columns][:, part].float()
                product = torch.addmm(weights[:, part], factors, other, alpha=scale)
                into[:, part] = product

    def mean_rows(
        self, arrays: Sequence[Tensor], table: Tensor, row: int, first: int, out: Tensor
    ) -> None:
        filled = out.view(-1, row)
        chosen = table[first : first + len(filled)].bool()
        count = chosen.sum(1)
        filled.zero_()
        several = (count > 1).nonzero().view(-1)
        total = torch.zeros(len(several), row, dtype=torch.float64, device=out.device)
        for number, array in enumerate(arrays):
            rows = array.reshape(filled.shape)
            alone = (chosen[:, number] & (count == 1)).nonzero().view(-1)
            filled.index_copy_(0, alone, rows.index_select(0, alone))
            added = chosen[several, number].nonzero().view(-1)
            total.index_add_(0, added, rows.index_select(0, several[added]).double())
        filled.index_copy_(0, several, (total / count[several].unsqueeze(1)).float())

    def repeat(self, numbers: Tensor, first: int, out: Tensor) -> None:
        out.view(-1, numbers.numel())[first:] = numbers

    def transpose(self, array: Tensor, matrix: tuple[int, int], out: Tensor) -> None:
        rows, columns = matrix
        out.view(-1, columns, rows).copy_(array.view(-1, rows, columns).transpose(1, 2))

    def _count(self, values: Tensor, into: Tensor) -> None:
        """Add to ``into[i]`` the number of ``values`` (int32, flat) that are ``i``.

        On a device, torch.bincount would first fetch the least and the largest value, which waits
        for the device. Scattered additions do not wait, and integer sums do not depend on order.
        """
        if self.on_device:
            one = torch.ones((), dtype=into.dtype, device=into.device)
            into.scatter_add_(0, values.long(), one.expand(values.numel()))
            return
        into += torch.bincount(values, minlength=into.numel())


def _rectangles(first: int, count: int, width: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Split a run of elements of a matrix with ``width`` columns into rectangles.

    Yields (offset in the run, first row, rows, first column, columns).
    """
    start = 0
    while start < count:
        row, column = divmod(first + start, width)
        columns = min(width - column, count - start)
        rows = (count - start) // width if columns == width else 1
        yield start, row, rows, column, columns
        start += rows * columns


def _values(vector: Vector) -> Tensor:
    """The elements of a vector; the caller may overwrite them."""
    array: Tensor = vector.array
    values = array.clone() if vector.minus is None else array - vector.minus
    factors = vector.factors
    if factors is None:
        return values
    if not factors.by_column:
        values.view(factors.numbers.numel(), -1).mul_(factors.numbers.view(-1, 1))
        return values
    columns = factors.numbers.numel()
    if columns == array.shape[-1] and not factors.first_column:
        return values.mul_(factors.numbers)
    places = torch.arange(values.numel(), device=values.device).add_(factors.first_column)
    return values.mul_(factors.numbers[places.remainder_(columns)].view(values.shape))


def _numbers(blocks: Blocks, rows: int) -> Tensor:
    """The block numbers of each row: float32 (rows, blocks in a row; columns with groups)."""
    matrices, down, across = blocks.grid
    stored = blocks.numbers.reshape(-1)
    line = torch.arange(blocks.first, blocks.first + rows, device=stored.device)
    line = line // blocks.height * down + line % blocks.height // blocks.rows
    place = torch.arange(across, device=stored.device)
    if blocks.across_first:
        places = line.unsqueeze(1) + place * (matrices * down)
    else:
        places = line.unsqueeze(1) * across + place
    found: Tensor
    if _is_byte(stored):
        found = stored.view(torch.uint8)[places].view(stored.dtype).float()
    else:
        found = stored[places].float()
    if blocks.lookup is not None:
        lookup = blocks.lookup
        values, scales = lookup.values.reshape(-1).float(), lookup.scales.reshape(-1).float()
        found = values[found.int()].mul_(scales[places // lookup.size])
        found.add_(lookup.offset)
    if blocks.groups is not None:
        group = blocks.groups.reshape(-1).long()
        inside = (group >= 0) & (group < across)
        found = found[:, group.clamp(0, across - 1)].masked_fill_(~inside, float("nan"))
    return found


def _is_byte(stored: Tensor) -> bool:
    """Whether elements have a one-byte dtype, which torch cannot index."""
    return stored.dtype.is_floating_point and stored.element_size() == 1


def _spread(blocks: Blocks, lines: Tensor, numbers: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Elements and their block numbers: whole blocks, then the shorter last one."""
    rows, row = lines.shape
    if numbers.shape[1] in (1, row):
        return [(lines, numbers)]
    whole = row // blocks.columns
    end = whole * blocks.columns
    found = []
    if whole:
        parts = lines[:, :end].view(rows, whole, blocks.columns)
        found.append((parts, numbers[:, :whole].unsqueeze(-1)))
    if end < row:
        found.append((lines[:, end:], numbers[:, whole:]))
    return found


def _exceeds(values: Tensor, limit: float) -> Tensor:
    """Mask of magnitudes that are larger than ``limit`` or NaN."""
    return values.abs_().le_(limit).eq(0.0)


def _trimmed(values: Tensor, rule: KeepRule) -> Tensor:
    """Zero the dropped elements of ``values`` in place."""
    flat = values.view(-1)
    if rule.above is not None:
        for part, limit in _parts(flat, rule.above):
            torch.ops.aten.hardshrink.out(part, limit, out=part)
    if rule.upto is not None:
        for part, limit in _parts(flat, rule.upto):
            part.masked_fill_(part.abs().le_(limit).eq_(0.0).bool(), 0.0)
    if rule.draw is not None:
        numbers, work = torch.empty(2, flat.numel(), dtype=torch.int32, device=flat.device)
        draws.draw(rule.draw.key, rule.draw.start, numbers, work)
        flat.masked_fill_(numbers.ge(rule.draw.bound), 0.0)
    if rule.marks is not None:
        flat.masked_fill_(rule.marks.view(-1).logical_not(), 0.0)
    return values


def _parts(flat: Tensor, bound: Any) -> list[tuple[Tensor, float]]:
    """The parts of a grain with the magnitude bound of each."""
    parts = [(flat[: bound.end], bound.until_end), (flat[bound.end :], bound.from_end)]
    return [(part, limit) for part, limit in parts if part.numel()]


def _elected_sum(
    vectors: Sequence[Tensor],
    votes: Sequence[float],
    coefficients: Sequence[float],
    shares: Sequence[float] | None,
    by_count: bool,
    out: Tensor,
) -> None:
    """The sum over elements that agree with the elected sign; overwrites ``vectors``."""
    out.zero_()
    for vector, vote in zip(vectors, votes, strict=True):
        found = vector.sign() if by_count else vector
        out.add_(found.view(out.shape), alpha=vote)
    sign = torch.ge(out, 0.0).to(torch.float32).mul_(2.0).sub_(1.0)
    out.zero_()
    divisor = torch.zeros_like(out)
    # Multiplied by the elected sign, agreeing elements are positive (negative for a negative
    # vote), so clamping drops the others, which is cheaper than a mask.
    for number, vector in enumerate(vectors):
        agreeing = vector.view(out.shape).mul_(sign)
        flip = -1.0 if votes[number] < 0 else 1.0
        agreeing.mul_(flip).clamp_min_(0.0)
        out.add_(agreeing, alpha=flip * coefficients[number])
        if shares is not None:
            divisor.add_(agreeing.gt(0.0), alpha=shares[number])
    out.mul_(sign)
    if shares is not None:
        out.div_(divisor.add_(divisor.abs().le(CANCELLED)))
