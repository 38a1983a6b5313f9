"""The interface of planners."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Set
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from mergeloom.engine.base.records import dataclass
from mergeloom.planners.config.config import Document

if TYPE_CHECKING:
    from mergeloom.engine.graph.graph import GraphBuilder
    from mergeloom.engine.storage.folder import Folder
    from mergeloom.planners.config.findings import Findings
    from mergeloom.planners.config.model_reference import ModelReference
    from mergeloom.planners.config.yaml_values import Value
    from mergeloom.planners.models.pool import Models
    from mergeloom.planners.models.resolve import Resolver
    from mergeloom.planners.recipe import Recipe

DEFAULT_SHARD_BYTES = 5_000_000_000
"""Maximum size of a shard's data, unless an option says otherwise."""


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """Options that affect a plan, in addition to its configuration; sizes are in bytes."""

    seed: int = 0
    max_shard_bytes: int = DEFAULT_SHARD_BYTES
    truncate_embeddings: bool = False
    allow_different_architectures: bool = False


@dataclass(frozen=True)
class PlanningContext:
    """The context of planners, shared by all documents of a configuration.

    ``models`` opens models; tasks are added to ``builder``, warnings and errors to ``findings``.
    ``folder`` is the folder of the configuration, for files that it names. With
    ``keeps_plans``, as for `explain`, tensor plans are needed more than the graph: they are kept
    instead of computed again, and merges are made on demand.
    """

    models: Models
    options: PlanOptions
    builder: GraphBuilder
    findings: Findings
    folder: Folder
    keeps_plans: bool = False


D = TypeVar("D", bound=Document)


class Planner(ABC, Generic[D]):
    """Plans one kind of output; ``key`` at the top level of a document selects it."""

    key: ClassVar[str]

    @abstractmethod
    def read(self, value: Value, findings: Findings) -> D | None:
        """Read a document; ``None`` if errors, added to ``findings``, prevent it. Models are not
        opened.

        Raises:
            ConfigError: it is invalid.
        """

    def check_early(
        self, document: D, resolver: Resolver, stages: Set[str], findings: Findings
    ) -> None:
        """Add errors that are known before any model is opened: by default, models that are missing
        for certain. ``stages`` are the names of all documents. The document may be incomplete, if
        ``findings`` has errors about it."""
        self.check_models(document.named_models(), document, resolver, stages, findings)

    def check_models(
        self,
        references: Iterable[ModelReference],
        document: D,
        resolver: Resolver,
        stages: Set[str],
        findings: Findings,
    ) -> None:
        """Add errors about those of a document's models that are missing for certain."""
        for reference in references:
            if str(reference) not in stages:
                with findings.attempting(document.place_of(reference)):
                    resolver.check(reference, stages)

    @abstractmethod
    def plan(self, document: D, planning: PlanningContext) -> Recipe:
        """Plan the document. Reads headers and small files only, and does not import torch.

        Raises:
            ConfigError: it is invalid for these models.
            CheckpointError: a model is missing, malformed, or does not fit the others.
        """
