"""Faults that are known before any model is opened or downloaded."""

from __future__ import annotations

from collections.abc import Sequence

from mergeloom.planners import registry
from mergeloom.planners.config.config import Document
from mergeloom.planners.config.findings import Findings
from mergeloom.planners.models.resolve import Resolver


def check_early(documents: Sequence[Document], resolver: Resolver, findings: Findings) -> None:
    """Report models that are missing for certain, before others are downloaded; and, if there are
    errors, what else is known to be wrong, so that all of it is reported at once."""
    stages = frozenset(document.name for document in documents if document.name is not None)
    for document in documents:
        registry.get(document.planner).check_early(document, resolver, stages, findings)
