"""Sums over the grains of a tensor, independent of how grains are grouped."""

from __future__ import annotations

from typing import Any


class Sums(tuple[float, ...]):
    """A tuple of numbers with elementwise addition."""

    __slots__ = ()

    def __add__(self, other: Any) -> Sums:
        return Sums(own + more for own, more in zip(self, other, strict=True))


class GrainSums:
    """Sums of one value per grain, in an order that depends only on grain positions.

    A value is anything with ``+``: a number, `Sums`, a float64 array or tensor. Values are added
    along a fixed binary tree over positions as soon as both halves of a node exist, so an
    accumulator for a run of n grains keeps at most 2·log2(n) values.
    """

    __slots__ = ("_nodes",)

    def __init__(self) -> None:
        self._nodes: dict[tuple[int, int], Any] = {}
        """Sums of grains ``[position << level, (position + 1) << level)`` by (level, position)."""

    def add(self, index: int, value: Any) -> None:
        """Add the value of grain ``index``."""
        self._insert((0, index), value)

    def combine(self, other: GrainSums) -> None:
        """Add the values of ``other``."""
        for node, value in other._nodes.items():
            self._insert(node, value)

    def fetch(self) -> None:
        """Copy tensor sums to main memory: as `Sums` if flat, otherwise as numpy arrays."""
        for node, value in self._nodes.items():
            if hasattr(value, "cpu"):
                self._nodes[node] = _in_main_memory(value.cpu())

    @property
    def total(self) -> Any:
        """The sum of all values, when no grain is missing; ``None`` if there are no grains."""
        total: Any = None
        for _, value in sorted(self._nodes.items(), key=lambda item: item[0][1] << item[0][0]):
            total = value if total is None else total + value
        return total

    def _insert(self, node: tuple[int, int], value: Any) -> None:
        level, position = node
        while (sibling := (level, position ^ 1)) in self._nodes:
            beside = self._nodes.pop(sibling)
            value = beside + value if position & 1 else value + beside
            level, position = level + 1, position >> 1
        assert (level, position) not in self._nodes, "a grain was added twice"
        self._nodes[(level, position)] = value


def _in_main_memory(value: Any) -> Any:
    """A tensor as `Sums` or a numpy array in main memory; other values unchanged."""
    if not hasattr(value, "tolist"):
        return value
    return Sums(value.tolist()) if value.ndim == 1 else value.numpy()
