"""Parameters over the layers of an output, as text: one line per configuration entry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mergeloom.report.plan_records import ParameterLine
from mergeloom.report.terminal.bars import line_chart
from mergeloom.report.terminal.console import (
    ByWidth,
    chart_width,
    layers_text,
    plain_table,
    printable,
)

_MAX_LINES = 24


def render_parameters(lines: Sequence[ParameterLine]) -> RenderableType:
    """Values with their tensors and layers; gradients as small charts."""
    return ByWidth(lambda width: _table(lines, chart_width(width)))


def _table(lines: Sequence[ParameterLine], width: int) -> Table:
    table = plain_table("parameter", "of", "tensors named", "layers", *([""] if width else []), "")
    for column in table.columns[3:]:
        column.no_wrap = True
    filtered = {(line.parameter, line.model) for line in lines if line.filter is not None}
    for line in lines[:_MAX_LINES]:
        rest = "all others" if (line.parameter, line.model) in filtered else "all"
        name = rest if line.filter is None else f"*{line.filter}*"
        numbers = [value for value in line.values if isinstance(value, (int, float))]
        is_curve = len(line.values) > 1 and len(numbers) == len(line.values)
        table.add_row(
            line.parameter,
            printable(line.model or ""),
            printable(name),
            layers_text(line.layers),
            *(
                [Text(line_chart(numbers, width) if is_curve else "", style="cyan")]
                if width
                else []
            ),
            _values_text(line.values),
        )
    if len(lines) > _MAX_LINES:
        table.add_row(Text(f"and {len(lines) - _MAX_LINES} more", style="dim"))
    return table


def _values_text(values: Sequence[Any]) -> str:
    first, last = values[0], values[-1]
    if len(values) == 1 or all(value == first for value in values):
        return _number_text(first)
    if not all(isinstance(value, (int, float)) for value in values):
        return ", ".join(dict.fromkeys(map(_number_text, values)))
    ends = f"{_number_text(first)} to {_number_text(last)}"
    low, high = min(values), max(values)
    extremes = {low, high} - {first, last}
    return (
        f"{ends}, by way of {', '.join(map(_number_text, sorted(extremes)))}" if extremes else ends
    )


def _number_text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)
