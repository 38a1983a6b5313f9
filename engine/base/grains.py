"""The grain: the fixed unit of arithmetic that makes results independent of the budget.

The grains of a tensor depend only on its shape and access pattern. A tile, the unit of
scheduling, is a run of whole grains whose length depends on the budget. Every operation works
grain by grain, and every reduction combines per-grain results in grain order, so tile size, number
of threads and budget do not change a bit of the output.
"""

from __future__ import annotations

import enum
import math

from mergeloom.engine.base.records import dataclass

GRAIN_ELEMENTS = 1 << 19
"""Elements of a grain: 2 MiB of float32, so that chained operations stay in the CPU cache."""


class Access(enum.IntEnum):
    """The part of its inputs that a kernel needs to compute part of its output (least first)."""

    ELEMENTWISE = 0
    ROWWISE = 1
    MATRIXWISE = 2
    WHOLE = 3


@dataclass(frozen=True, slots=True)
class Grains:
    """The partition of one tensor: grain ``i`` is elements ``[i*size, min((i+1)*size, total))``.

    ``row`` is the number of elements in a row (the last dimension; 1 for a 0-d tensor).
    """

    total: int
    size: int
    row: int

    @property
    def count(self) -> int:
        """Number of grains."""
        return -(-self.total // self.size) if self.total else 0

    def bounds(self, index: int) -> tuple[int, int]:
        """First element and number of elements of grain ``index``."""
        start = index * self.size
        return start, min(self.size, self.total - start)


def unit_of(shape: tuple[int, ...], access: Access) -> int:
    """Number of elements of an input of ``shape`` that a kernel with this access needs at once."""
    if access is Access.ELEMENTWISE or not shape:
        return 1
    if access is Access.WHOLE:
        return max(math.prod(shape), 1)
    return max(math.prod(shape[-2:] if access is Access.MATRIXWISE else shape[-1:]), 1)


def partition(shape: tuple[int, ...], access: Access, unit: int = 1) -> Grains:
    """Partition a tensor of ``shape`` into grains for a kernel with this access pattern.

    Grains of elementwise kernels have `GRAIN_ELEMENTS` elements. Those of rowwise kernels have as
    many whole rows as fit into that number, but at least one; those of matrixwise kernels as many
    whole matrices (of the last two dimensions); those of whole kernels everything. Runs of ``unit``
    elements are not split either: the `unit_of` other kernels of the same merge tree.
    """
    total = math.prod(shape)
    row = shape[-1] if shape else 1
    together = min(math.lcm(unit, unit_of(shape, access)), max(total, 1))
    size = max(1, GRAIN_ELEMENTS // together) * together
    return Grains(total, min(size, max(total, 1)), max(row, 1))
