"""The comparison of memory budgets, as text."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from mergeloom.report.plan_records import BudgetsReport
from mergeloom.report.terminal.console import columns
from mergeloom.report.units import data, duration, memory


def render_budgets(report: BudgetsReport) -> RenderableType:
    """One line per budget, from the smallest that works."""
    table = columns("--ram", "peak memory", "reads", "of it again", "workers", "about")
    for column in table.columns:
        column.justify = "right"
    for row in report.rows:
        table.add_row(
            memory(row.budget_bytes),
            memory(row.peak_bytes),
            data(row.read_bytes),
            data(row.repeated_bytes) if row.repeated_bytes else "-",
            str(row.workers),
            duration(row.seconds),
        )
    hint = "the output is the same, bit for bit, for every budget"
    return Group(table, Text(hint, style="dim"))
