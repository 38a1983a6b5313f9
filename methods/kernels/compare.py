"""Tensors that are compared: nothing is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.kernel import Array, GrainView, Kernel, Statistic, Use
from mergeloom.methods.statistics.comparison import Comparison


@dataclass(frozen=True)
class Compare(Kernel):
    """Compares two inputs, and with ``base`` what they changed of the third.

    It is for merges that are measured (`Graph.measuring`).
    """

    base: bool
    uses = (Use("copy"),)

    @property
    def passes(self) -> tuple[Statistic[Any, Any], ...]:
        return (Comparison(self.base),)

    def apply(
        self, grain: GrainView, out: Array, statistics: Sequence[Any], before: tuple[int, ...]
    ) -> None:
        raise AssertionError("what is compared is not written")
