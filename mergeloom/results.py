"""What planning and merging give: records for the caller."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeloom.check import Checked
from mergeloom.engine import job as jobs
from mergeloom.engine.hardware.spec import Machine
from mergeloom.engine.plan.schedule import Schedule
from mergeloom.planners.plan import Plan


@dataclass(frozen=True)
class PlannedMerge:
    """A dry run: what a merge will do within a budget, known before a weight is read."""

    plan: Plan
    schedule: Schedule
    budget_bytes: int
    machine: Machine

    def document(self) -> dict[str, Any]:
        """The plan as ``mergeloom plan --json`` prints it."""
        from mergeloom.report.documents import plan_document

        return plan_document(self)


@dataclass(frozen=True)
class MergeResult:
    """A finished merge and what it took."""

    output: Path
    planned: PlannedMerge
    outcome: jobs.Outcome
    checked: Checked | None = None

    def document(self) -> dict[str, Any]:
        """The result as ``mergeloom merge --json`` prints it."""
        from mergeloom.report.documents import result_document

        return result_document(self)
