"""The results of planning and merging."""

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
from mergeloom.python_words import in_python

if TYPE_CHECKING:
    from mergeloom.check import Checked
    from mergeloom.engine.base.errors import Finding
    from mergeloom.engine.run.outcome import Outcome
    from mergeloom.report.detail_records import DetailsReport, Sample
    from mergeloom.report.plan_records import (
        BudgetsReport,
        DiskReport,
        MergeReport,
        Options,
        OutputState,
        PlanReport,
    )
    from mergeloom.report.records import TaskList


@dataclass(frozen=True, repr=False)
class PlannedMerge:
    """A planned merge with its schedule for a budget, known before weights are read.

    ``memory_limit`` is the memory available to this process in bytes; ``findings`` are all
    warnings. ``disk`` and ``output_state`` are set if an output directory was given; ``clones`` are
    the bytes it would share with its inputs.
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
        """The content of ``mergeloom plan --json``, as a record."""
        from mergeloom.report.plan import plan_report

        return plan_report(self)

    @cached_property
    def details(self) -> DetailsReport:
        """Every tensor with the origin of its values, and memory step by step, as a record."""
        from mergeloom.report.details import details_report

        return details_report(self)

    def page(self) -> str:
        """The plan as a self-contained HTML page."""
        from mergeloom.report.html.page import merge_page

        return merge_page(self.report, self.details)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Warnings of the plan, which name arguments where those of the command line name
        options."""
        return tuple(map(in_python, self.findings))

    def budgets(self) -> BudgetsReport:
        """Memory budgets with their effect: the content of ``mergeloom plan --budgets --json``."""
        from mergeloom.report.budgets import budgets_report

        return budgets_report(self)

    def tasks(self) -> TaskList:
        """The tasks in execution order: the content of ``mergeloom plan --tasks --json``."""
        from mergeloom.report.tasks import task_list

        return task_list(self)

    def document(self) -> dict[str, Any]:
        """The document printed by ``mergeloom plan --json``."""
        from mergeloom.report.json import to_json_types

        return to_json_types(self.report)

    def __repr__(self) -> str:
        from mergeloom.report.terminal.plan import one_line

        return f"<PlannedMerge: {one_line(self.report)}>"

    def _repr_html_(self) -> str:
        from mergeloom.report.html.page import notebook_frame

        return notebook_frame(self.report, lambda: self.details)


@dataclass(frozen=True, repr=False)
class MergeResult:
    """A finished merge with its measurements."""

    output: Path
    planned: PlannedMerge
    outcome: Outcome
    checked: Checked | None = None
    findings: tuple[Finding, ...] = field(default=())
    samples: tuple[Sample, ...] = ()
    """Memory and transferred bytes over the course of the run."""

    @cached_property
    def report(self) -> MergeReport:
        """The content of ``mergeloom merge --json``, as a record."""
        from mergeloom.report.plan import merge_report

        return merge_report(self)

    @cached_property
    def details(self) -> DetailsReport:
        """Every tensor with the origin of its values, and memory step by step, as a record."""
        from mergeloom.report.details import details_report

        return details_report(self.planned, self.samples, self.outcome.lanes)

    def page(self) -> str:
        """The merge as a self-contained HTML page."""
        from mergeloom.report.html.page import merge_page

        return merge_page(self.report, self.details)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Warnings of the plan and of the run, in Python's words."""
        return (*self.planned.warnings, *map(in_python, self.findings))

    def document(self) -> dict[str, Any]:
        """The document printed by ``mergeloom merge --json``."""
        from mergeloom.report.json import to_json_types

        return to_json_types(self.report)

    def __repr__(self) -> str:
        from mergeloom.report.terminal.run import one_line

        return f"<MergeResult: {one_line(self.report)}>"

    def _repr_html_(self) -> str:
        from mergeloom.report.html.page import notebook_frame

        return notebook_frame(self.report, lambda: self.details)
