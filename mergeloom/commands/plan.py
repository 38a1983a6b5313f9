"""``mergeloom plan``: a dry run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from mergeloom.command_line import HIDDEN, Argument, Option
from mergeloom.mergekit_flags import MergekitFlags, take
from mergeloom.options import (
    AsJson,
    Config,
    Finding,
    HtmlFile,
    Meaning,
    Resources,
    optional_path,
    planned,
)
from mergeloom.printer import Printer


def plan(
    config: Config,
    finding: Finding,
    meaning: Meaning,
    resources: Resources,
    mergekit: Annotated[MergekitFlags, HIDDEN],
    output: Annotated[
        Path | None,
        Argument(
            metavar="[OUT]",
            help="Also show the state of this output directory.",
            parser=optional_path,
        ),
    ] = None,
    graph: Annotated[
        Path | None,
        Option(
            "--graph",
            metavar="FILE",
            help="Write the task graph to FILE: .graphml, .dot or .json.",
            parser=optional_path,
        ),
    ] = None,
    tasks: Annotated[bool, Option("--tasks", help="List the tasks in execution order.")] = False,
    budgets: Annotated[bool, Option("--budgets", help="Compare memory budgets.")] = False,
    html: HtmlFile = None,
    as_json: AsJson = False,
) -> None:
    """Show what a merge would do: layers, memory, time, bytes. Reads no weights."""
    printer = Printer(as_json)
    meaning, resources = take(mergekit, meaning, resources, printer.note)
    found = planned(config, finding, meaning, resources, printer.planning(), output)
    if graph is not None:
        from mergeloom.report.graph import write_graph

        write_graph(found.plan.graph, graph)
        printer.note(f"wrote the task graph to '{graph}'")
    if html is not None:
        printer.page(found.page(), html)
    if tasks:
        from mergeloom.report.tasks import task_list
        from mergeloom.report.terminal.tasks import task_lines

        listed = task_list(found)
        if as_json:
            printer.answer(listed, lambda: "")
        else:
            printer.lines(task_lines(listed))
        return
    if budgets:
        from mergeloom.report.budgets import budgets_report
        from mergeloom.report.terminal.budgets import render_budgets

        rows = budgets_report(found)
        printer.answer(rows, lambda: render_budgets(rows))
        return
    from mergeloom.report.terminal.plan import render_plan

    printer.answer(found.report, lambda: render_plan(found.report))
