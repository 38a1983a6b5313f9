"""Stored tensors, and rearrangements applied when they are read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from mergeloom.engine.base.dtypes import DType
from mergeloom.engine.base.records import record
from mergeloom.engine.graph.pieces import Bytes, Joined, Range, Rows, Strided, at_strides, part_of
from mergeloom.engine.storage.source import Source

Shape = tuple[int, ...]


@record(frozen=True, slots=True, eq=False)
class StoredTensor:
    """A stored tensor: location of its bytes, dtype and shape. Nothing is read here.

    Methods raise `ValueError` if the shape, or a sub-byte dtype, does not allow the operation.
    """

    bytes: Bytes
    dtype: DType
    shape: Shape

    @staticmethod
    def at(source: Source, offset: int, dtype: DType, shape: Shape) -> StoredTensor:
        """A contiguous tensor at byte ``offset`` of ``source``."""
        return StoredTensor(Range(source, offset, dtype.nbytes(math.prod(shape))), dtype, shape)

    @staticmethod
    def strided(
        source: Source, offset: int, dtype: DType, shape: Shape, strides: Sequence[int]
    ) -> StoredTensor:
        """A tensor whose element (i, j, …) is i·strides[0] + j·strides[1] + … elements after byte
        ``offset`` of ``source``; strides are not negative."""
        item = _item(dtype)
        distances = tuple(stride * item for stride in strides)
        if len(strides) != len(shape) or any(stride < 0 for stride in strides):
            raise ValueError(f"strides {tuple(strides)} do not fit the shape {shape}")
        last = sum((size - 1) * far for size, far in zip(shape, distances, strict=True))
        extent = last + item if math.prod(shape) else 0
        whole = Range(source, offset, extent)
        return StoredTensor(at_strides(whole, 0, item, shape, distances), dtype, shape)

    @staticmethod
    def join(tensors: Sequence[StoredTensor], axis: int = 0) -> StoredTensor:
        """Concatenate tensors of one dtype along ``axis``; other dimensions must be equal."""
        first, *others = tensors
        shape = first.shape
        axis = _axis(shape, axis)
        beside = shape[:axis], shape[axis + 1 :]
        for other in others:
            if other.dtype != first.dtype:
                raise ValueError(f"{first.dtype} and {other.dtype} cannot be joined")
            if (other.shape[:axis], other.shape[axis + 1 :]) != beside or not other.shape:
                raise ValueError(f"{shape} and {other.shape} cannot be joined along axis {axis}")
        joined = (*shape[:axis], sum(each.shape[axis] for each in tensors), *shape[axis + 1 :])
        parts = tuple(each for each in tensors if each.bytes.nbytes)
        if len(parts) <= 1:
            only = parts[0] if parts else first
            return StoredTensor(only.bytes, first.dtype, joined)
        inner = math.prod(beside[1])
        sizes = tuple(_whole_bytes(first.dtype, each.shape[axis] * inner) for each in parts)
        bytes_ = Joined(tuple(each.bytes for each in parts), sizes, math.prod(beside[0]))
        return StoredTensor(bytes_, first.dtype, joined)

    @staticmethod
    def stack(tensors: Sequence[StoredTensor]) -> StoredTensor:
        """Stack tensors of one shape along a new first dimension."""
        if len({each.shape for each in tensors}) != 1:
            raise ValueError("tensors of different shapes cannot be stacked")
        return StoredTensor.join([each.reshape((1, *each.shape)) for each in tensors])

    def rows(self, numbers: Sequence[int]) -> StoredTensor:
        """Select rows: row i is row ``numbers[i]`` of this tensor, or missing if that is -1.

        Missing rows are not read and are zero.
        """
        if not self.shape:
            raise ValueError("a tensor without dimensions has no rows")
        count, rest = self.shape[0], self.shape[1:]
        row = _whole_bytes(self.dtype, math.prod(rest))
        shape = (len(numbers), *rest)
        if not math.prod(shape):
            return StoredTensor(part_of(self.bytes, 0, 0), self.dtype, shape)
        lowest, highest = min(numbers), max(numbers)
        if lowest < -1 or highest >= count:
            wrong = lowest if lowest < -1 else highest
            raise ValueError(f"row {wrong} is not one of {count} rows")
        rows = Rows.of(self.bytes, row, numbers)
        if len(rows.origin) == 1 and rows.origin[0] >= 0:
            part = part_of(self.bytes, rows.origin[0] * row, rows.nbytes)
            return StoredTensor(part, self.dtype, shape)
        return StoredTensor(rows, self.dtype, shape)

    def narrow(self, axis: int, start: int, stop: int) -> StoredTensor:
        """Indices ``[start, stop)`` of one dimension."""
        axis = _axis(self.shape, axis)
        if not 0 <= start <= stop <= self.shape[axis]:
            raise ValueError(f"{start}:{stop} is not within {self.shape[axis]}")
        shape = (*self.shape[:axis], stop - start, *self.shape[axis + 1 :])
        if math.prod(self.shape[:axis]) == 1:
            inner = math.prod(self.shape[axis + 1 :])
            begin = _whole_bytes(self.dtype, start * inner)
            nbytes = _whole_bytes(self.dtype, (stop - start) * inner)
            return StoredTensor(part_of(self.bytes, begin, nbytes), self.dtype, shape)
        return self._restrided(axis, start, 1, shape)

    def take(self, axis: int, step: int, start: int = 0) -> StoredTensor:
        """Every ``step``th index of one dimension, from ``start`` on."""
        axis = _axis(self.shape, axis)
        if step < 1 or not 0 <= start <= self.shape[axis]:
            raise ValueError(f"{start}::{step} is not within {self.shape[axis]}")
        count = -((start - self.shape[axis]) // step)
        shape = (*self.shape[:axis], count, *self.shape[axis + 1 :])
        return self._restrided(axis, start, step, shape)

    def permute(self, dimensions: Sequence[int]) -> StoredTensor:
        """Permute dimensions: dimension i of the result is dimension ``dimensions[i]`` here."""
        if sorted(dimensions) != list(range(len(self.shape))):
            raise ValueError(
                f"{tuple(dimensions)} is not a permutation of {len(self.shape)} dimensions"
            )
        whole, offset, item, strides = self._strides()
        shape = tuple(self.shape[each] for each in dimensions)
        ordered = tuple(strides[each] for each in dimensions)
        return StoredTensor(at_strides(whole, offset, item, shape, ordered), self.dtype, shape)

    def transpose(self, first: int = -2, second: int = -1) -> StoredTensor:
        """Exchange two dimensions."""
        order = list(range(len(self.shape)))
        a, b = _axis(self.shape, first), _axis(self.shape, second)
        order[a], order[b] = order[b], order[a]
        return self.permute(order)

    def reshape(self, shape: Shape) -> StoredTensor:
        """The same elements in the same order."""
        if math.prod(shape) != math.prod(self.shape):
            raise ValueError(f"{self.shape} cannot be reshaped to {shape}")
        return StoredTensor(self.bytes, self.dtype, shape)

    def view_as(self, dtype: DType) -> StoredTensor:
        """The same bytes as elements of another dtype; the size of the last dimension changes."""
        last = self.shape[-1] * self.dtype.bits if self.shape else self.dtype.bits
        if last % dtype.bits or (not self.shape and last != dtype.bits):
            raise ValueError(f"{self.shape} of {self.dtype} cannot be seen as {dtype}")
        shape = (*self.shape[:-1], last // dtype.bits) if self.shape else ()
        return StoredTensor(self.bytes, dtype, shape)

    def _restrided(self, axis: int, start: int, step: int, shape: Shape) -> StoredTensor:
        whole, offset, item, strides = self._strides()
        offset += start * strides[axis]
        strides = (*strides[:axis], strides[axis] * step, *strides[axis + 1 :])
        return StoredTensor(at_strides(whole, offset, item, shape, strides), self.dtype, shape)

    def _strides(self) -> tuple[Bytes, int, int, tuple[int, ...]]:
        """Bytes in which elements are at regular distances: (bytes, offset, element size,
        strides)."""
        found = self.bytes
        item = _item(self.dtype)
        if isinstance(found, Strided) and found.shape == self.shape and found.item == item:
            return found.whole, found.offset, item, found.strides
        dense = tuple(accumulate(reversed(self.shape[1:]), lambda a, b: a * b, initial=item))
        return found, 0, item, dense[::-1][: len(self.shape)]


def _item(dtype: DType) -> int:
    """Bytes of one element that can be moved on its own."""
    if dtype.block > 1:
        raise ValueError(f"elements of {dtype} cannot be moved one by one")
    return dtype.size


def _whole_bytes(dtype: DType, elements: int) -> int:
    if elements % dtype.block:
        raise ValueError(f"{elements} elements of {dtype} are not a whole number of bytes")
    return dtype.nbytes(elements)


def _axis(shape: Shape, axis: int) -> int:
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"{shape} has no dimension {axis}")
    return axis % len(shape)
