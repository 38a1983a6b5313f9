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
            seed=output_options.seed,
            max_shard_size=output_options.max_shard_size,
            allow_truncated_embeddings=output_options.allow_truncated_embeddings,
            allow_different_architectures=output_options.allow_different_architectures,
            strict=output_options.strict,
            settings=output_options.settings or (),
            model_dirs=search.model_dirs,
            search=search.folders,
            observer=printer.planning(),
        )
    printer.answer(found, lambda: render_explain(found))
