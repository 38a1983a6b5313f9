"""``mergeloom report``: the stored report of a finished merge."""

from __future__ import annotations

from typing import Annotated

from mergeloom.command_line import Option
from mergeloom.options import AsJson, HtmlFile, OutputPath, Ram, Threads
from mergeloom.printer import Printer


def report(
    output: OutputPath,
    diff: Annotated[
        bool,
        Option(
            "--diff",
            help="Read the weights of OUT and its inputs, and show how much they differ.",
        ),
    ] = False,
    ram: Ram = None,
    threads: Threads = None,
    quiet: Annotated[bool, Option("--quiet", "-q", help="Show no progress.")] = False,
    html: HtmlFile = None,
    as_json: AsJson = False,
) -> None:
    """Show the plan and the measurements of the merge in OUT."""
    from mergeloom import queries

    found = queries.read_report(output)
    printer = Printer(as_json, quiet)
    compared = None
    if diff:
        with printer.measuring() as observer:
            compared = queries.diff_inputs(output, ram=ram, threads=threads, observer=observer)
    if html is not None:
        from mergeloom.report.html.page import merge_page

        printer.page(merge_page(found, queries.read_details(output), compared), html)
    if compared is not None:
        from mergeloom.report.terminal.inputs_diff import render_inputs_diff

        known = compared
        printer.answer(known, lambda: render_inputs_diff(known))
        return
    from mergeloom.report.terminal.run import render_report

    printer.answer(found, lambda: render_report(found))
