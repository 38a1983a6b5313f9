"""How an output differs from its inputs, as text: one column per input."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mergeloom.report.diff_records import DiffReport, GroupReport, InputsDiffReport, ValuesReport
from mergeloom.report.terminal.console import ByWidth, plain_table, printable
from mergeloom.report.terminal.diff import cosine_text, percent_text
from mergeloom.report.units import data_text

_NUMBER_WIDTH = 8
"""Columns that a difference takes."""
_NAME_WIDTH = 24
"""Maximum width of a model's name above its numbers."""


def render_inputs_diff(report: InputsDiffReport) -> RenderableType:
    """The whole, then the differences by layer and by kind of tensor."""
    read = data_text(report.read_bytes)
    title = f"'{printable(report.output)}' compared with its inputs ({read} read)"
    legend = Text("difference: ‖output-input‖/‖input‖", style="dim")
    parts: list[RenderableType] = [Text(title), legend, Text(), _whole_table(report.inputs)]
    for name, groups in (
        ("difference", lambda found: found.layers),
        ("kind of tensor", lambda found: found.kinds),
    ):
        parts += [Text(), _groups_table(name, report.inputs, groups)]
    return Group(*parts)


def _whole_table(inputs: Sequence[DiffReport]) -> Table:
    has_base = any(found.base is not None for found in inputs)
    more = ("cos of changes", "opposed") if has_base else ()
    table = plain_table("", "difference", "cosine", "changed", *more)
    for column in table.columns[1:]:
        column.justify = "right"
    for found in inputs:
        values = found.whole
        if values is None:
            table.add_row(_short_name(found.a.name), "nothing to compare")
            continue
        own = [cosine_text(values.change_cosine), percent_text(values.opposed)] if has_base else []
        table.add_row(_short_name(found.a.name), *_cells(values), *own)
    return table


def _cells(values: ValuesReport) -> list[str]:
    return [
        percent_text(values.difference),
        cosine_text(values.cosine),
        percent_text(values.changed),
    ]


def _groups_table(
    title: str,
    inputs: Sequence[DiffReport],
    groups: Callable[[DiffReport], Sequence[GroupReport]],
) -> ByWidth:
    """One row per group, with as many inputs as fit."""
    found = {each.a.name: {group.name: group for group in groups(each)} for each in inputs}
    rows = {name: group.layer for own in found.values() for name, group in own.items()}
    if any(layer is not None for layer in rows.values()):
        rows = dict(sorted(rows.items(), key=lambda row: -1 if row[1] is None else row[1]))

    def table_of_width(width: int) -> RenderableType:
        room = width - max(map(len, [title, *rows]))
        shown_models: list[str] = []
        for model in found:
            room -= max(len(_short_name(model)), _NUMBER_WIDTH) + 2
            if room >= 0 or not shown_models:
                shown_models.append(model)
        table = plain_table(title, *map(_short_name, shown_models))
        for column in table.columns[1:]:
            column.justify = "right"
        for name in rows:
            cells = [found[model].get(name) for model in shown_models]
            table.add_row(
                printable(name),
                *("" if each is None else percent_text(each.values.difference) for each in cells),
            )
        left = len(found) - len(shown_models)
        if not left:
            return table
        return Group(table, Text(f"and {left} more in the page of --html and in --json", "dim"))

    return ByWidth(table_of_width)


def _short_name(name: str) -> str:
    name = printable(name)
    return name if len(name) <= _NAME_WIDTH else f"…{name[1 - _NAME_WIDTH :]}"
