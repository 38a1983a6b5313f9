"""``mergeloom explain``: where output tensors come from."""

from __future__ import annotations

from typing import Annotated

from mergeloom.command_line import Argument, Option
from mergeloom.engine.base.gc_pause import collection_spared
from mergeloom.options import AsJson, Config, Finding, Meaning, Resources, planned
from mergeloom.printer import Printer


def explain(
    config: Config,
    finding: Finding,
    meaning: Meaning,
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
    from mergeloom import questions
    from mergeloom.report.terminal.tensors import render_explain

    printer = Printer(as_json)
    if lines:
        plan = planned(config, finding, meaning, Resources(device="cpu"), printer.planning())
        from mergeloom.report.terminal.lines import render_lines

        whole = questions.explain_lines(plan)
        printer.answer(whole, lambda: render_lines(whole))
        return
    with collection_spared():
        found = questions.explain(
            config,
            tensor,
            token=token,
            seed=meaning.seed,
            max_shard_size=meaning.max_shard_size,
            allow_truncated_embeddings=meaning.allow_truncated_embeddings,
            allow_different_architectures=meaning.allow_different_architectures,
            strict=meaning.strict,
            settings=meaning.settings or (),
            model_dirs=finding.model_dirs,
            search=finding.folders,
            observer=printer.planning(),
        )
    printer.answer(found, lambda: render_explain(found))
