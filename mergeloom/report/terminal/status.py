"""States of outputs, and results of cleaning, as text."""

from __future__ import annotations

import time

from rich.console import Group, RenderableType
from rich.text import Text

from mergeloom.report.output_records import CleanReport, StatusReport
from mergeloom.report.terminal.bars import bar
from mergeloom.report.terminal.console import plain_table, printable
from mergeloom.report.units import data_text, duration_text

_STYLES = {"finished": "green", "running": "cyan"}
_BAR_WIDTH = 24


def render_status(report: StatusReport) -> RenderableType:
    """The progress of a merge."""
    parts: list[RenderableType] = [
        Text(printable(report.message), style=_STYLES.get(report.condition, "yellow"))
    ]
    if report.share is not None and report.condition in ("running", "interrupted"):
        ago = ""
        if report.recorded_at is not None:
            seconds = max(time.time() - report.recorded_at, 0.0)
            ago = f"  last record {duration_text(seconds)} ago"
        parts.append(Text(f"{bar(report.share, _BAR_WIDTH)} {100 * report.share:.1f} %{ago}"))
    return Group(*parts)


def render_clean(report: CleanReport) -> RenderableType:
    """The removed (or removable) files with sizes."""
    if not report.found:
        return Text("there is nothing to remove")
    table = plain_table("", "", "")
    table.columns[0].justify = "right"
    for item in report.found:
        table.add_row(data_text(item.bytes), item.path, Text(item.what, style="dim"))
    what = "removed" if report.removed else "would be removed (nothing was: --dry-run)"
    return Group(table, Text(f"{data_text(report.bytes)} {what}", style="bold"))
