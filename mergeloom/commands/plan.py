"""``mergeloom plan``: a dry run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from mergeloom.command_line import HIDDEN, Argument, Option
from mergeloom.mergekit_flags import MergekitFlags, apply_flags
from mergeloom.options import (
    AsJson,
    Config,
    HtmlFile,
    ModelSearch,
    OutputOptions,
    ResourceOptions,
    optional_path,
    plan_from_options,
)
from mergeloom.printer import Printer


def plan(
    config: Config,
    search: ModelSearch,
    output_options: OutputOptions,
    resources: ResourceOptions,
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
    output_options, resources = apply_flags(mergekit, output_options, resources, printer.note)
    planned = plan_from_options(
        config, search, output_options, resources, printer.planning(), output
    )
    if graph is not None:
        from mergeloom.report.graph import write_graph

        write_graph(planned.plan.graph, graph)
        printer.note(f"wrote the task graph to '{graph}'")
    if html is not None:
        printer.page(planned.page(), html)
    if tasks:
        from mergeloom.report.tasks import task_list
        from mergeloom.report.terminal.tasks import task_lines

        listed = task_list(planned)
        if as_json:
            printer.answer(listed, lambda: "")
        else:
            printer.lines(task_lines(listed))
        return
    if budgets:
        from mergeloom.report.budgets import budgets_report
        from mergeloom.report.terminal.budgets import render_budgets

        rows = budgets_report(planned)
        printer.answer(rows, lambda: render_budgets(rows))
        return
    from mergeloom.report.terminal.plan import render_plan

    printer.answer(planned.report, lambda: render_plan(planned.report))
