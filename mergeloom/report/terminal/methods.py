"""Merge methods as text: a list of all, or one in full."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mergeloom.methods.declare import Base
from mergeloom.report.records import MethodReport, ParameterReport
from mergeloom.report.terminal.console import plain_table


def render_methods(methods: Iterable[MethodReport]) -> RenderableType:
    """All methods, one per line."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for method in methods:
        table.add_row(method.name, method.summary)
    return table


def render_method(method: MethodReport) -> RenderableType:
    """One method: idea, formula, what it needs, its parameters."""
    about = Table.grid(padding=(0, 2))
    about.add_column(no_wrap=True)
    about.add_column(overflow="fold")
    about.add_row("formula", "\n".join(re.split(r";  |   (?=\()", method.formula)))
    about.add_row("models", number_of_models(method))
    if method.works:
        about.add_row("works", method.works)
    if method.draws:
        about.add_row("draws", "at random; --seed chooses another draw")
    about.add_row("reference", method.reference)
    parts: list[RenderableType] = [
        Text.assemble((method.name, "bold"), f": {method.summary}"),
        Text(),
        about,
    ]
    for title, parameters in (
        ("for each model", method.model_parameters),
        ("for all models together", method.parameters),
    ):
        if parameters:
            parts += [
                Text(),
                Text(f"parameters {title}", style="bold"),
                _parameter_table(parameters),
            ]
    return Group(*parts)


def number_of_models(method: MethodReport) -> str:
    """The number of models of a method, and its use of a base, as text."""
    low, high = method.models
    number = f"{low} or more" if high is None else str(low) if low == high else f"{low} to {high}"
    base = {
        Base.NONE.value: "no base model",
        Base.OPTIONAL.value: "a base model if given",
        Base.REQUIRED.value: "beside a base model",
    }[method.base_model]
    return f"{number}, {base}"


def _parameter_table(parameters: Iterable[ParameterReport]) -> RenderableType:
    table = plain_table("name", "default", "range", "meaning")
    for column in table.columns[:3]:
        column.no_wrap = True
    for each in parameters:
        default = "required" if each.required else str(each.default).lower()
        table.add_row(each.name, default, each.range, each.help)
    return Padding(table, (0, 0, 0, 2), expand=False)
