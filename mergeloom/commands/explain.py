"""``mergeloom explain``: where output tensors come from."""

from __future__ import annotations

from typing import Annotated

from mergeloom.command_line import Argument, Option
from mergeloom.engine.base.gc_pause import collection_spared
from mergeloom.options import (
    AsJson,
    Config,
    ModelSearch,
    OutputOptions,
    ResourceOptions,
    plan_from_options,
)
from mergeloom.printer import Printer


def explain(
    config: Config,
    search: ModelSearch,
    output_options: OutputOptions,
    tensor: Annotated[
        str | None,
        Argument(metavar="[TENSOR]", help="An output tensor, or part of its name."),
    ] = None,
    token: Annotated[
        str | None,
        Option("--token", metavar="TOKEN", help="Show where the rows of a token come from."),
    ] = None,
    lines: Annotated[
        bool, Option("--lines", help="Show CONFIG line by line, and what each line sets.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show where output tensors come from, and which entry of CONFIG sets each parameter."""
    from mergeloom import queries
    from mergeloom.report.terminal.tensors import render_explain

    printer = Printer(as_json)
    if lines:
        plan = plan_from_options(
            config, search, output_options, ResourceOptions(device="cpu"), printer.planning()
        )
        from mergeloom.report.terminal.lines import render_lines

        whole = queries.explain_lines(plan)
        printer.answer(whole, lambda: render_lines(whole))
        return
    with collection_spared():
        found = queries.explain(
            config,
            tensor,
            token=token,
            **output_options.arguments,
            **search.arguments,
            observer=printer.planning(),
        )
    printer.answer(found, lambda: render_explain(found))
