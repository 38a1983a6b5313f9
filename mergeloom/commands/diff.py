"""``mergeloom diff``: the differences of two models, also from a base."""

from __future__ import annotations

from typing import Annotated

from mergeloom.command_line import Argument, Option
from mergeloom.options import AsJson, HtmlFile, ModelSearch, Ram, Threads
from mergeloom.printer import Printer


def diff(
    a: Annotated[str, Argument(metavar="A", help="A model: a directory or a hub id.")],
    b: Annotated[str, Argument(metavar="B", help="Another one.")],
    search: ModelSearch,
    base: Annotated[
        str | None,
        Argument(metavar="[BASE]", help="The base that both were fine-tuned from."),
    ] = None,
    values: Annotated[bool, Option("--values", help="Read and compare the weights.")] = False,
    match: Annotated[
        str | None,
        Option(metavar="TEXT", help="Compare only tensors whose names contain TEXT."),
    ] = None,
    tensors: Annotated[bool, Option("--tensors", help="List every tensor.")] = False,
    ram: Ram = None,
    threads: Threads = None,
    quiet: Annotated[bool, Option("--quiet", "-q", help="Show no progress.")] = False,
    html: HtmlFile = None,
    as_json: AsJson = False,
) -> None:
    """Show how model B differs from A, and how both differ from BASE."""
    from mergeloom import queries
    from mergeloom.report.terminal.diff import render_diff

    printer = Printer(as_json, quiet)
    with printer.measuring() as observer:
        found = queries.diff(
            a,
            b,
            base,
            values=values,
            match=match,
            ram=ram,
            threads=threads,
            **search.arguments,
            observer=observer,
        )
    if html is not None:
        from mergeloom.report.html.page import diff_page

        printer.page(diff_page(found), html)
    printer.answer(found, lambda: render_diff(found, tensors))
