"""Parameters over the layers of an output, as text: one line per configuration entry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mergeloom.report.plan_records import ParameterLine
from mergeloom.report.terminal.bars import curve
from mergeloom.report.terminal.console import ByWidth, columns, layers_text, picture_columns, shown

_LINES = 24


def render_parameters(lines: Sequence[ParameterLine]) -> RenderableType:
    """Values with their tensors and layers; gradients as small charts."""
    return ByWidth(lambda width: _table(lines, picture_columns(width)))


def _table(lines: Sequence[ParameterLine], chart: int) -> Table:
    table = columns("parameter", "of", "tensors named", "layers", *([""] if chart else []), "")
    for column in table.columns[3:]:
        column.no_wrap = True
    filtered = {(line.parameter, line.model) for line in lines if line.filter is not None}
    for line in lines[:_LINES]:
        rest = "all others" if (line.parameter, line.model) in filtered else "all"
        name = rest if line.filter is None else f"*{line.filter}*"
        numbers = [value for value in line.values if isinstance(value, (int, float))]
        is_curve = len(line.values) > 1 and len(numbers) == len(line.values)
        table.add_row(
            line.parameter,
            shown(line.model or ""),
            shown(name),
            layers_text(line.layers),
            *([Text(curve(numbers, chart) if is_curve else "", style="cyan")] if chart else []),
            _text(line.values),
        )
    if len(lines) > _LINES:
        table.add_row(Text(f"and {len(lines) - _LINES} more", style="dim"))
    return table


def _text(values: Sequence[Any]) -> str:
    first, last = values[0], values[-1]
    if len(values) == 1 or all(value == first for value in values):
        return _number(first)
    if not all(isinstance(value, (int, float)) for value in values):
        return ", ".join(dict.fromkeys(map(_number, values)))
    ends = f"{_number(first)} to {_number(last)}"
    low, high = min(values), max(values)
    beyond = {low, high} - {first, last}
    return f"{ends}, by way of {', '.join(map(_number, sorted(beyond)))}" if beyond else ends


def _number(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)
