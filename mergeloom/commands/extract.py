"""``mergeloom extract``: an adapter from a fine-tuned model and its base model."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated

from mergeloom.command_line import Argument, Option
from mergeloom.commands.merge import run_merge
from mergeloom.engine.base.records import dataclass
from mergeloom.options import AsJson, ModelSearch, OutputPath, ResourceOptions
from mergeloom.printer import Printer


@dataclass(frozen=True)
class PartOptions:
    """Options that say what of MODEL is in the adapter, and how."""

    rank: Annotated[
        int, Option("--rank", "--max-rank", min=1, metavar="N", help="Rank of the factors.")
    ] = 32
    embeddings: Annotated[
        str,
        Option(metavar="save|lora|skip", help="Whether embedding and head are saved as they are."),
    ] = "save"
    save: Annotated[
        list[str] | None,
        Option("--save", "--save-module", metavar="REGEX", help="Modules saved as they are."),
    ] = None
    include: Annotated[
        list[str] | None,
        Option("--include", "--include-regex", "-i", metavar="REGEX", help="Only these modules."),
    ] = None
    exclude: Annotated[
        list[str] | None,
        Option("--exclude", "--exclude-regex", "-e", metavar="REGEX", help="Not these modules."),
    ] = None


def extract(
    model: Annotated[str, Argument(metavar="MODEL", help="The fine-tuned model.")],
    base: Annotated[str, Argument(metavar="BASE", help="The model that it was trained from.")],
    output: OutputPath,
    search: ModelSearch,
    resources: ResourceOptions,
    parts: PartOptions,
    dtype: Annotated[
        str | None, Option(metavar="TYPE", help="Dtype of the adapter. [default: MODEL's]")
    ] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Show the plan; reads no weights.")] = False,
    restart: Annotated[
        bool, Option("--restart", help="Discard what an earlier run left in OUT.")
    ] = False,
    quiet: Annotated[
        bool, Option("--quiet", "-q", help="Show nothing but warnings and errors.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a LoRA adapter to OUT that turns BASE into MODEL, approximately.

    Weights of linear layers become two factors of rank N, the best approximation of what training
    changed; norms, biases and tables of tokens are saved as they are. The same command continues
    if interrupted.
    """
    from mergeloom import extracting

    printer = Printer(as_json, quiet)
    planned = extracting.plan_extract(
        model,
        base,
        **{field.name: getattr(parts, field.name) for field in fields(parts)},
        dtype=dtype,
        output=output,
        **resources.arguments,
        **search.arguments,
        observer=printer.planning(),
    )
    if dry_run:
        from mergeloom.report.terminal.plan import render_plan

        printer.answer(planned.report, lambda: render_plan(planned.report))
        return
    run_merge(planned, output, printer, restart=restart)
