"""``mergeloom status``: how far a merge is."""

from __future__ import annotations

from mergeloom.options import AsJson, OutputArgument
from mergeloom.printer import Printer


def status(output: OutputArgument, as_json: AsJson = False) -> None:
    """Say whether the merge in OUT runs, was interrupted or is finished, and how far it is."""
    from mergeloom import questions
    from mergeloom.report.terminal.status import render_status

    found = questions.status(output)
    Printer(as_json).answer(found, lambda: render_status(found))
