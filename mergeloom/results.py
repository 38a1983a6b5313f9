"""What planning and merging return: short to look at, whole as a report."""

from __future__ import annotations

from dataclasses import field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.hardware.spec import Machine
from mergeloom.engine.plan.schedule import Schedule
from mergeloom.engine.run.clone import NO_CLONES, CloneBytes
from mergeloom.planners.plan import Plan

if TYPE_CHECKING:
    from mergeloom.check import Checked
    from mergeloom.engine.base.errors import Finding
    from mergeloom.engine.run.outcome import Outcome
    from mergeloom.report.detail_records import DetailsReport, Sample
    from mergeloom.report.plan_records import (
        DiskReport,
        MergeReport,
        Options,
        OutputState,
        PlanReport,
    )


@dataclass(frozen=True, repr=False)
class PlannedMerge:
    """A dry run: what a merge will do within a budget, known before a weight is read.

    ``memory_limit`` is what this process may hope for now, in bytes; ``findings`` are all
    warnings. ``disk`` and ``output_state`` are there where an output directory was named;
    ``clones`` is what it would share with its inputs.
    """

    plan: Plan
    schedule: Schedule
    budget_bytes: int
    machine: Machine
    options: Options
    memory_limit: int
    findings: tuple[Finding, ...] = ()
    disk: DiskReport | None = None
    output_state: OutputState | None = None
    clones: CloneBytes = NO_CLONES

    @cached_property
    def report(self) -> PlanReport:
        """Everything that is to be known of it, as a record."""
        from mergeloom.report.plan import plan_report

        return plan_report(self)

    @cached_property
    def details(self) -> DetailsReport:
        """Every tensor and the provenance of its values, memory step by step, as a record."""
        from mergeloom.report.details import details_report

        return details_report(self)

    def page(self) -> str:
        """The plan as one page for a browser: HTML that needs nothing else."""
        from mergeloom.report.html.page import merge_page

        return merge_page(self.report, self.details)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """What is probably not as its author meant it."""
        return self.findings

    def document(self) -> dict[str, Any]:
        """The plan as ``mergeloom plan --json`` prints it."""
        from mergeloom.report.json import plain

        return plain(self.report)

    def __repr__(self) -> str:
        from mergeloom.report.terminal.plan import one_line

        return f"<PlannedMerge: {one_line(self.report)}>"

    def _repr_html_(self) -> str:
        from mergeloom.report.html.page import framed

        return framed(self.report, lambda: self.details)


@dataclass(frozen=True, repr=False)
class MergeResult:
    """A finished merge and what it took."""

    output: Path
    planned: PlannedMerge
    outcome: Outcome
    checked: Checked | None = None
    findings: tuple[Finding, ...] = field(default=())
    samples: tuple[Sample, ...] = ()
    """The run from moment to moment."""

    @cached_property
    def report(self) -> MergeReport:
        """Everything that is to be known of it, as a record."""
        from mergeloom.report.plan import merge_report

        return merge_report(self)

    @cached_property
    def details(self) -> DetailsReport:
        """Every tensor and the provenance of its values, memory step by step, as a record."""
        from mergeloom.report.details import details_report

        return details_report(self.planned, self.samples, self.outcome.lanes)

    def page(self) -> str:
        """The merge as one page for a browser: HTML that needs nothing else."""
        from mergeloom.report.html.page import merge_page

        return merge_page(self.report, self.details)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Warnings of the plan, and those of the run."""
        return (*self.report.warnings, *self.report.run_warnings)

    def document(self) -> dict[str, Any]:
        """The result as ``mergeloom merge --json`` prints it."""
        from mergeloom.report.json import plain

        return plain(self.report)

    def __repr__(self) -> str:
        from mergeloom.report.terminal.run import one_line

        return f"<MergeResult: {one_line(self.report)}>"

    def _repr_html_(self) -> str:
        from mergeloom.report.html.page import framed

        return framed(self.report, lambda: self.details)
