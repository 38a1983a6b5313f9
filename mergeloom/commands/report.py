"""``mergeloom report``: what a merge was and took, from what it left with its output."""

from __future__ import annotations

from mergeloom.options import AsJson, HtmlFile, OutputArgument
from mergeloom.printer import Printer


def report(output: OutputArgument, html: HtmlFile = None, as_json: AsJson = False) -> None:
    """Show the plan that OUT was merged by, and what the merge took."""
    from mergeloom import questions
    from mergeloom.report.terminal.run import render_report

    found = questions.read_report(output)
    printer = Printer(as_json)
    if html is not None:
        from mergeloom.report.html.page import merge_page

        printer.page(merge_page(found, questions.read_details(output)), html)
    printer.answer(found, lambda: render_report(found))
