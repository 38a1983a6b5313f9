"""Positions of the grains of a tensor in device memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mergeloom.engine.base.dtypes import DType
from mergeloom.engine.base.grains import Grains
from mergeloom.engine.graph.kernel import Array
from mergeloom.engine.plan.device_memory import stride
from mergeloom.engine.run.device import Memory


@dataclass(frozen=True, slots=True)
class DeviceSpan:
    """Grains of a tensor on a device: grain ``first`` is at byte ``at`` of ``memory``, the next
    ones follow at intervals of `stride` bytes."""

    memory: Memory
    at: int
    first: int
    grains: Grains

    def view(self, ops: Any, dtype: DType, start: int, count: int) -> Array:
        """Elements ``[start, start + count)`` of one grain as a flat array."""
        return ops.at(self.memory, self._offset(dtype.size, start), dtype, count)

    def pieces(self, indices: range, size: int, memory: Memory) -> Iterator[tuple[Memory, Memory]]:
        """The bytes of grains ``indices`` on the device, each part with its bytes in ``memory``,
        main memory that contains only these grains; elements have ``size`` bytes."""
        grains = self.grains
        dense = stride(grains, size) == grains.size * size
        begin, _ = elements_of(grains, indices)
        for run in chunks(indices, len(indices) if dense else 1, 0):
            start, count = elements_of(grains, run)
            at = (start - begin) * size
            there = self._offset(size, start)
            yield self.memory[there : there + count * size], memory[at : at + count * size]

    def _offset(self, size: int, start: int) -> int:
        """The byte of ``memory`` at which element ``start`` is."""
        index, inside = divmod(start, self.grains.size)
        return self.at + (index - self.first) * stride(self.grains, size) + inside * size


def elements_of(grains: Grains, indices: range) -> tuple[int, int]:
    """First element and number of elements of a range of grains."""
    first, _ = grains.bounds(indices.start)
    return first, min(len(indices) * grains.size, grains.total - first)


def chunks(grains: range, length: int, edge: int) -> Iterator[range]:
    """Split ``grains`` into ranges of at most ``length`` grains, and at grain ``edge``."""
    first = grains.start
    while first < grains.stop:
        last = grains.stop if first >= edge else min(edge, grains.stop)
        following = min(first + length, last)
        yield range(first, following)
        first = following
