"""``mergeloom status``: the progress of a merge."""

from __future__ import annotations

from mergeloom.options import AsJson, OutputArgument
from mergeloom.printer import Printer


def status(output: OutputArgument, as_json: AsJson = False) -> None:
    """Show whether the merge in OUT is running, interrupted or finished, and its progress."""
    from mergeloom import questions
    from mergeloom.report.terminal.status import render_status

    found = questions.status(output)
    Printer(as_json).answer(found, lambda: render_status(found))
