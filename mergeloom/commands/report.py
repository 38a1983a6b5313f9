"""``mergeloom report``: what a merge was and took, from what it left with its output."""

from __future__ import annotations

from mergeloom.options import AsJson, OutputArgument
from mergeloom.printer import Printer


def report(output: OutputArgument, as_json: AsJson = False) -> None:
    """Show the plan that OUT was merged by, and what the merge took."""
    from mergeloom import questions
    from mergeloom.report.terminal.run import render_report

    found = questions.read_report(output)
    Printer(as_json).answer(found, lambda: render_report(found))
