"""``mergeloom inspect``: the contents of a checkpoint."""

from __future__ import annotations

from typing import Annotated

from mergeloom.command_line import Argument, Option
from mergeloom.options import AsJson, Finding
from mergeloom.printer import Printer


def inspect(
    model: Annotated[str, Argument(metavar="MODEL", help="A directory or a hub id.")],
    finding: Finding,
    tensors: Annotated[bool, Option("--tensors", help="List every tensor.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show tensors, layers, dtypes and sizes of a checkpoint, from its headers."""
    from mergeloom import questions
    from mergeloom.report.terminal.checkpoint import render_inspect

    printer = Printer(as_json)
    found = questions.inspect(
        model,
        model_dirs=finding.model_dirs,
        search=finding.folders,
        observer=printer.planning(),
    )
    printer.answer(found, lambda: render_inspect(found, tensors))
