"""What an adapter changes of a module."""

from __future__ import annotations

from collections.abc import Mapping

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.stored_tensor import StoredTensor


@dataclass(frozen=True)
class LowRankProduct:
    """``scale``·up·down for a weight (out, in); ``down`` is (rank, in), ``up`` is (out, rank).

    ``weight_transposed`` says that the model stores the weight as (in, out), as for embeddings and
    GPT-2's linear layers. ``lengths`` (out) are the row lengths of DoRA. ``scale`` · ``bias`` (out)
    is added to the bias.
    """

    down: StoredTensor
    up: StoredTensor
    scale: float
    weight_transposed: bool
    lengths: StoredTensor | None
    bias: StoredTensor | None

    @property
    def rank(self) -> int:
        return self.down.shape[0]


@dataclass(frozen=True)
class ReplacedRows:
    """``rows`` that replace the rows ``indices`` of a weight."""

    rows: StoredTensor
    indices: tuple[int, ...]


@dataclass(frozen=True)
class ModuleChange:
    """The change of one module; ``replaced`` are tensors that replace the module's own, by the last
    part of their names."""

    product: LowRankProduct | None
    rows: ReplacedRows | None
    replaced: Mapping[str, StoredTensor]


@dataclass(frozen=True)
class FactorPair:
    """The stored factors A and B of one parameter of a module."""

    down: StoredTensor
    up: StoredTensor
