"""The report of ``plan --budgets``: a comparison of memory budgets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mergeloom.engine.base.units import MIB
from mergeloom.engine.plan.duration import estimated_seconds
from mergeloom.engine.plan.schedule import schedule
from mergeloom.report.plan_records import BudgetRow, BudgetsReport

if TYPE_CHECKING:
    from mergeloom.results import PlannedMerge

_BUDGET_FACTORS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0, 128.0)


def budgets_report(planned: PlannedMerge) -> BudgetsReport:
    """Schedules for several budgets, from the smallest that works to the largest useful one."""
    return BudgetsReport(budget_bytes=planned.budget_bytes, rows=tuple(_budget_rows(planned)))


def _budget_rows(planned: PlannedMerge) -> Iterator[BudgetRow]:
    graph, smallest = planned.schedule.graph, planned.schedule.minimum_bytes
    for factor in _BUDGET_FACTORS:
        budget = -(-int(smallest * factor) // MIB) * MIB
        if budget > planned.memory_limit and factor > 1:
            return
        made = schedule(graph, budget, planned.machine)
        yield BudgetRow(
            budget_bytes=budget,
            peak_bytes=made.peak_bytes,
            read_bytes=made.read_bytes,
            repeated_bytes=made.repeated_bytes,
            workers=made.workers,
            seconds=estimated_seconds(made).total,
        )
        if made.peak_bytes < budget and not made.repeated_bytes:
            return  # more memory would not be used
