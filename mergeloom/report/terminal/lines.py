"""A configuration with the effect of its lines, as text."""

from __future__ import annotations

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mergeloom.report.records import LinesReport, LineUse
from mergeloom.report.terminal.console import layers_phrase, plural, printable

_MAX_RANGES = 3


def render_lines(report: LinesReport) -> RenderableType:
    """Each line with its number and its effect."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for number, line in enumerate(report.lines, 1):
        uses = [use for use in report.uses if use.line == number]
        style = "cyan" if any(use.tensors for use in uses) else "yellow"
        effects = "\n".join(_use_text(use, len(uses) > 1) for use in uses)
        table.add_row(str(number), printable(line), Text(effects, style=style))
    return table


def _use_text(use: LineUse, has_name: bool) -> str:
    name = f"{use.parameter}: " if has_name else ""
    if not use.tensors:
        return f"{name}no tensor gets this"
    text = f"{name}{plural(use.tensors, 'tensor')}"
    if use.layers:
        more = f" and {len(use.layers) - _MAX_RANGES} more" if len(use.layers) > _MAX_RANGES else ""
        text += f", {layers_phrase(*use.layers[:_MAX_RANGES])}{more}"
    if use.least != use.most:
        text += f": {_number_text(use.least)} to {_number_text(use.most)}"
    return text


def _number_text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
