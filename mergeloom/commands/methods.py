"""``mergeloom methods``: the available merge methods."""

from __future__ import annotations

from typing import Annotated

from mergeloom.command_line import Argument
from mergeloom.options import AsJson, method_names
from mergeloom.printer import Printer


def methods(
    name: Annotated[
        str | None, Argument(metavar="[NAME]", help="One method.", completions=method_names)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the merge methods, or describe one."""
    from mergeloom import queries
    from mergeloom.report.terminal.methods import render_method, render_methods

    found = queries.list_methods(name)
    Printer(as_json).answer(
        found,
        lambda: render_method(found.methods[0]) if name else render_methods(found.methods),
    )
