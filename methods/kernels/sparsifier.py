"""Sparsifiers decide which elements of task vectors are kept.

A sparsifier lists its statistics, and then returns, for one vector on one grain, the rule that says
which elements are kept. `KeepAll` keeps all elements, `methods.kernels.keep_by_magnitude` the
largest of a tensor, `methods.kernels.keep_at_random` a random choice.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any

from mergeloom.engine.base.grains import Access, Grains
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.kernel import GrainView, Statistic, Use
from mergeloom.methods.ops.interface import KEEP_ALL, KeepRule, Ops, Vector
from mergeloom.methods.ops.vectors import VectorExpr

_NEGLIGIBLE = 1e-7
"""L1 norms below this are rounding noise and are not rescaled."""


class Sparsifier(ABC):
    """Decides which elements of a source's vectors are kept; subclass as a frozen dataclass."""

    @property
    def planning_key(self) -> Hashable:
        """See `Kernel.planning_key`."""
        return self

    @property
    def access(self) -> Access:
        """See `Kernel.access`."""
        return Access.ELEMENTWISE

    @property
    def uses(self) -> tuple[Use, ...]:
        """The operations of ``grain.ops`` that `rule` and `scan_value` use."""
        return ()

    def memo_bytes(self, grains: Grains) -> int:
        """See `Kernel.memo_bytes`."""
        return 0

    def passes(self, source: VectorExpr) -> tuple[Statistic[Any, Any], ...]:
        """The statistics needed, one pass each."""
        return ()

    def for_one_grain(self, ops: Ops, count: int) -> Sparsifier:
        """See `Kernel.for_one_grain`."""
        return self

    def needs_scan(self, statistics: Sequence[Any]) -> bool:
        """See `Kernel.needs_scan`."""
        return False

    def scan_value(
        self, source: VectorExpr, grain: GrainView, statistics: Sequence[Any]
    ) -> tuple[Any, ...]:
        """See `Kernel.scan_value`."""
        raise NotImplementedError

    def factors(self, count: int, statistics: Sequence[Any]) -> tuple[float, ...]:
        """The factor of each sparsified vector."""
        return (1.0,) * count

    @abstractmethod
    def rule(
        self,
        number: int,
        vector: Vector,
        grain: GrainView,
        statistics: Sequence[Any],
        prefix: tuple[int, ...],
    ) -> KeepRule:
        """The keep rule for vector ``number`` on a grain."""


@dataclass(frozen=True)
class KeepAll(Sparsifier):
    """Keep all elements."""

    def rule(
        self,
        number: int,
        vector: Vector,
        grain: GrainView,
        statistics: Sequence[Any],
        prefix: tuple[int, ...],
    ) -> KeepRule:
        return KEEP_ALL


def l1_factor(whole: float, kept: float) -> float:
    """The factor that scales the kept part to the L1 norm of the whole; 1 if either is about 0."""
    is_defined = whole >= _NEGLIGIBLE and kept >= _NEGLIGIBLE and math.isfinite(whole)
    return whole / kept if is_defined else 1.0
