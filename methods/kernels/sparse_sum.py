"""Sums of sparsified inputs without a base, used to combine adapters."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from mergeloom.engine.base.grains import Access
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.kernel import Array, GrainView, Kernel, Statistic, Use
from mergeloom.methods.kernels.sparsifier import Sparsifier
from mergeloom.methods.ops.vectors import Inputs


class Election(enum.Enum):
    """How the sign of an element is elected: not at all, by the sum, or by the number of signs."""

    NONE = "none"
    TOTAL = "total"
    FREQUENCY = "frequency"


@dataclass(frozen=True)
class SparseSum(Kernel):
    """Σ wᵢ v̂ᵢ over the inputs at ``positions``, made sparse by ``sparsifier``.

    With an ``election`` the sum is over those v̂ᵢ whose sign is the elected one, and is divided by
    their number. The election ignores weights, so a vector with a negative weight agrees by its own
    sign and is then subtracted.
    """

    positions: tuple[int, ...]
    weights: tuple[float, ...]
    sparsifier: Sparsifier
    election: Election

    @property
    def source(self) -> Inputs:
        return Inputs(self.positions)

    @property
    def access(self) -> Access:
        return self.sparsifier.access

    @cached_property
    def passes(self) -> tuple[Statistic[Any, Any], ...]:
        return self.sparsifier.passes(self.source)

    @property
    def uses(self) -> tuple[Use, ...]:
        elects = self.election is not Election.NONE
        return (Use("combine", len(self.positions), elects), *self.sparsifier.uses)

    def needs_scan(self, statistics: Sequence[Any]) -> bool:
        return self.sparsifier.needs_scan(statistics)

    def scan_value(self, grain: GrainView, statistics: Sequence[Any]) -> tuple[Any, ...]:
        return self.sparsifier.scan_value(self.source, grain, statistics)

    def apply(
        self, grain: GrainView, out: Array, statistics: Sequence[Any], prefix: tuple[int, ...]
    ) -> None:
        factors = self.sparsifier.factors(len(self.positions), statistics)
        vectors = self.source.read_all(grain)
        ones = (1.0,) * len(vectors)
        elects = self.election is not Election.NONE
        by_count = self.election is Election.FREQUENCY
        grain.ops.combine(
            vectors,
            [w * factor for w, factor in zip(self.weights, factors, strict=True)],
            out,
            kept=[
                self.sparsifier.rule(number, vector, grain, statistics, prefix)
                for number, vector in enumerate(vectors)
            ],
            votes=(ones if by_count else factors) if elects else None,
            shares=ones if elects else None,
            by_count=by_count,
        )
