"""The comparison of memory budgets, as text."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from mergeloom.report.plan_records import BudgetsReport
from mergeloom.report.terminal.console import plain_table
from mergeloom.report.units import data_text, duration_text, memory_text


def render_budgets(report: BudgetsReport) -> RenderableType:
    """One line per budget, from the smallest that works."""
    table = plain_table("--ram", "peak memory", "reads", "of it again", "workers", "about")
    for column in table.columns:
        column.justify = "right"
    for row in report.rows:
        table.add_row(
            memory_text(row.budget_bytes),
            memory_text(row.peak_bytes),
            data_text(row.read_bytes),
            data_text(row.repeated_bytes) if row.repeated_bytes else "-",
            str(row.workers),
            duration_text(row.seconds),
        )
    hint = "the output is the same, bit for bit, for every budget"
    return Group(table, Text(hint, style="dim"))
