"""What a planner is asked: the interface to all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from mergeloom.engine.base.records import dataclass
from mergeloom.planners.config.config import Document

if TYPE_CHECKING:
    from mergeloom.engine.graph.graph import GraphBuilder
    from mergeloom.engine.storage.folder import Folder
    from mergeloom.planners.config.findings import Findings
    from mergeloom.planners.config.yaml_values import Value
    from mergeloom.planners.models.pool import Models
    from mergeloom.planners.recipe import Recipe

DEFAULT_SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What a plan depends on besides its configuration; ``max_shard_bytes`` counts tensor data."""

    seed: int = 0
    max_shard_bytes: int = DEFAULT_SHARD_BYTES
    truncate_embeddings: bool = False
    allow_different_architectures: bool = False


@dataclass(frozen=True)
class Planning:
    """What planners work with, one for all documents of a configuration.

    ``models`` opens what documents name; tasks are added to ``builder``; what there is to say is
    added to ``findings``. ``folder`` is the configuration's, for the files that it names.
    ``keeps_plans`` says that how tensors come about is asked for at once: then it is kept and not
    found out again.
    """

    models: Models
    options: PlanOptions
    builder: GraphBuilder
    findings: Findings
    folder: Folder
    keeps_plans: bool = False


D = TypeVar("D", bound=Document)


class Planner(ABC, Generic[D]):
    """One way to make an output. ``key`` at the top level of a document asks for it."""

    key: ClassVar[str]

    @abstractmethod
    def read(self, value: Value, findings: Findings) -> D | None:
        """The document that ``value`` describes; ``None`` where ``findings`` got errors that leave
        nothing to return. No model is looked at.

        Raises:
            ConfigError: it describes nothing.
        """

    @abstractmethod
    def plan(self, document: D, planning: Planning) -> Recipe:
        """What the document makes. Headers and small files are read, and torch is not imported.

        Raises:
            ConfigError: it does not make sense for these models.
            CheckpointError: a model is missing, malformed, or does not fit the others.
        """
