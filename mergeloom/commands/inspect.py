"""``mergeloom inspect``: the contents of a checkpoint."""

from __future__ import annotations

from typing import Annotated

from mergeloom.command_line import Argument, Option
from mergeloom.options import AsJson, ModelSearch
from mergeloom.printer import Printer


def inspect(
    model: Annotated[str, Argument(metavar="MODEL", help="A directory or a hub id.")],
    search: ModelSearch,
    tensors: Annotated[bool, Option("--tensors", help="List every tensor.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show tensors, layers, dtypes and sizes of a checkpoint, from its headers."""
    from mergeloom import queries
    from mergeloom.report.terminal.checkpoint import render_inspect

    printer = Printer(as_json)
    found = queries.inspect(
        model,
        **search.arguments,
        observer=printer.planning(),
    )
    printer.answer(found, lambda: render_inspect(found, tensors))
