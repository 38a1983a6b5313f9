"""``mergeloom status``: the progress of a merge."""

from __future__ import annotations

from mergeloom.options import AsJson, OutputPath
from mergeloom.printer import Printer


def status(output: OutputPath, as_json: AsJson = False) -> None:
    """Show whether the merge in OUT is running, interrupted or finished, and its progress."""
    from mergeloom import queries
    from mergeloom.report.terminal.status import render_status

    found = queries.status(output)
    Printer(as_json).answer(found, lambda: render_status(found))
