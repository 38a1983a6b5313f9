"""Comparison of tensors, without output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.kernel import Array, GrainView, Kernel, Statistic, Use
from mergeloom.methods.statistics.comparison import Comparison


@dataclass(frozen=True)
class Compare(Kernel):
    """Compare two inputs; with ``base``, also how both differ from the third.

    For merges that are only measured (`Graph.measuring`).
    """

    base: bool
    uses = (Use("copy"),)

    @property
    def passes(self) -> tuple[Statistic[Any, Any], ...]:
        return (Comparison(self.base),)

    def apply(
        self, grain: GrainView, out: Array, statistics: Sequence[Any], prefix: tuple[int, ...]
    ) -> None:
        raise AssertionError("a comparison has no output")
