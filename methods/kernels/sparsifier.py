"""Which elements of a task vector are kept.

A sparsifier is asked for its statistics and then applied to one grain of one vector at a time: to
the vector itself by torch (`Sparsifier.apply`), or in the words of compiled loops
(`Sparsifier.kept`), which has to come to the same.
`KeepAll` keeps all elements, `methods.kernels.keep_by_magnitude` the largest of a tensor,
`methods.kernels.keep_at_random` a random choice.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergeloom.engine.base.grains import Access, Grains
from mergeloom.engine.graph.kernel import GrainView, Statistic
from mergeloom.methods.ops.descriptions import Kept, Operands
from mergeloom.methods.ops.vectors import Source

if TYPE_CHECKING:
    from torch import Tensor


_NEGLIGIBLE = 1e-7
"""L1 norms below this are not rescaled: what is left is rounding noise."""


class Sparsifier(ABC):
    """Decides which elements of the vectors of a source survive; subclass as a frozen dataclass."""

    @property
    def access(self) -> Access:
        """See `Kernel.access`."""
        return Access.ELEMENTWISE

    @property
    def scratch(self) -> int:
        """Scratch tensors that `apply` is handed; `tally` takes one more at most."""
        return 0

    @property
    def looped_scratch(self) -> int:
        """Scratch tensors that `kept` is handed; `tally` takes no more where loops do the work."""
        return 0

    @property
    def loops(self) -> frozenset[str]:
        """Names of the compiled loops that `kept` calls."""
        return frozenset()

    def notes_bytes(self, grains: Grains) -> int:
        """See `Kernel.notes_bytes`."""
        return 0

    def workspace_bytes(self, grains: Grains, looped: bool) -> int:
        """See `Kernel.workspace_bytes`."""
        return 0

    @property
    def cost(self) -> float:
        """See `Kernel.cost`."""
        return 0.0

    @property
    def compiled_cost(self) -> float:
        """See `Kernel.compiled_cost`."""
        return 0.0

    def passes(self, source: Source) -> tuple[Statistic[Any, Any], ...]:
        """The statistics that are needed, one pass each."""
        return ()

    def needs_tally(self, statistics: Sequence[Any]) -> bool:
        """See `Kernel.needs_tally`."""
        return False

    def tally(
        self, source: Source, grain: GrainView, statistics: Sequence[Any]
    ) -> tuple[int | Tensor, ...]:
        """See `Kernel.tally`."""
        raise NotImplementedError

    def factors(self, count: int, statistics: Sequence[Any]) -> tuple[float, ...]:
        """What each vector is to be multiplied with once it is sparse."""
        return (1.0,) * count

    @abstractmethod
    def apply(
        self,
        number: int,
        vector: Tensor,
        work: Sequence[Tensor],
        grain: GrainView,
        statistics: Sequence[Any],
        before: tuple[int, ...],
    ) -> None:
        """Set to zero, in place, what is dropped of vector ``number``.

        ``vector`` and the ``scratch`` tensors of ``work`` are float32, of a grain's shape.
        """

    @abstractmethod
    def kept(
        self,
        number: int,
        operands: Operands,
        work: Sequence[Tensor],
        grain: GrainView,
        statistics: Sequence[Any],
        before: tuple[int, ...],
    ) -> Kept:
        """What `apply` keeps, for compiled loops; ``work`` is `looped_scratch` tensors."""


@dataclass(frozen=True)
class KeepAll(Sparsifier):
    """Drops nothing."""

    def apply(
        self,
        number: int,
        vector: Tensor,
        work: Sequence[Tensor],
        grain: GrainView,
        statistics: Sequence[Any],
        before: tuple[int, ...],
    ) -> None:
        pass

    def kept(
        self,
        number: int,
        operands: Operands,
        work: Sequence[Tensor],
        grain: GrainView,
        statistics: Sequence[Any],
        before: tuple[int, ...],
    ) -> Kept:
        return Kept()


def l1_factor(whole: float, kept: float) -> float:
    """The factor that scales what is kept to the L1 norm of the whole; 1 where either vanishes."""
    usual = whole >= _NEGLIGIBLE and kept >= _NEGLIGIBLE and math.isfinite(whole)
    return whole / kept if usual else 1.0
