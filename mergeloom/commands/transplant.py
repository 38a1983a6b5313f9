"""``mergeloom transplant``: give a model the tokenizer of another."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated

from mergeloom.command_line import HIDDEN, Argument, Option
from mergeloom.commands.merge import run_merge
from mergeloom.engine.base.records import dataclass
from mergeloom.mergekit_flags import MergekitFlags, apply_flags
from mergeloom.options import (
    AsJson,
    ModelSearch,
    OutputOptions,
    OutputPath,
    ResourceOptions,
)
from mergeloom.printer import Printer


@dataclass(frozen=True)
class RowOptions:
    """Options that say how rows of tokens are computed that MODEL lacks."""

    method: Annotated[
        str,
        Option(
            "--method",
            "-a",
            "--approximation-method",
            metavar="omp|interpolation|landmarks|subword|mean|zero|random",
            help="How rows of tokens that MODEL lacks are computed.",
        ),
    ] = "omp"
    k: Annotated[
        int,
        Option("-k", "--k", min=1, metavar="N", help="Number of tokens a row is computed from."),
    ] = 64
    cosine: Annotated[
        bool,
        Option(
            "--cosine",
            "-c",
            "--cosine-similarity",
            help="interpolation: find the nearest by angle.",
        ),
    ] = False
    weights: Annotated[
        str,
        Option(
            "--weights",
            "-w",
            "--weight-scheme",
            metavar="distance|barycentric|least_squares",
            help="interpolation: weights of the nearest.",
        ),
    ] = "distance"
    subword: Annotated[
        str,
        Option(
            "--subword",
            "-s",
            "--subword-method",
            metavar="mean|sum|weighted|first_last",
            help="subword: weights of the pieces of a token.",
        ),
    ] = "mean"
    prefix: Annotated[
        str,
        Option(
            "--prefix",
            "-pm",
            "--prefix-match",
            metavar="no|embed|head|yes",
            help="Where a token gets the row of its longest prefix token.",
        ),
    ] = "no"
    exclude_undertrained: Annotated[
        bool,
        Option(
            "--exclude-undertrained",
            "--magikarp",
            help="Ignore tokens that seem untrained.",
        ),
    ] = False


@dataclass(frozen=True)
class IgnoredOptions:
    """Options of mergekit-tokensurgeon that change nothing here."""

    byte_match: Annotated[
        str | None,
        Option(
            "--byte-match",
            "-bm",
            metavar="no|embed|lm_head|yes",
            help="No effect: tokens that stand for the same bytes always match.",
        ),
    ] = None
    batch_size: Annotated[
        int | None,
        Option(metavar="N", help="No effect: --ram limits memory."),
    ] = None


def transplant(
    model: Annotated[str, Argument(metavar="MODEL", help="A directory or a hub id.")],
    donor: Annotated[str, Argument(metavar="DONOR", help="The model whose tokenizer MODEL gets.")],
    output: OutputPath,
    search: ModelSearch,
    resources: ResourceOptions,
    rows: RowOptions,
    mergekit: Annotated[MergekitFlags, HIDDEN],
    ignored: IgnoredOptions,
    pad_to_multiple_of: Annotated[
        int | None,
        Option(min=1, metavar="N", help="Pad the number of rows to a multiple of N."),
    ] = None,
    dtype: Annotated[
        str | None, Option(metavar="TYPE", help="Dtype of the output. [default: MODEL's]")
    ] = None,
    seed: Annotated[int, Option(metavar="N", help="random: seed.")] = 0,
    max_shard_size: Annotated[
        str, Option("--max-shard-size", metavar="SIZE", help="Largest output shard.")
    ] = "5GB",
    dry_run: Annotated[bool, Option("--dry-run", help="Show the plan; reads no weights.")] = False,
    restart: Annotated[
        bool, Option("--restart", help="Discard what an earlier run left in OUT.")
    ] = False,
    quiet: Annotated[
        bool, Option("--quiet", "-q", help="Show nothing but warnings and errors.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write MODEL with the tokenizer of DONOR to OUT; the same command continues if interrupted.

    Tokens that both have keep MODEL's rows. Rows of other tokens are computed: by default DONOR's
    row is approximated by its rows of shared tokens, and the coefficients are applied to MODEL's
    rows (orthogonal matching pursuit, arXiv:2506.06607).
    """
    from mergeloom import transplanting

    printer = Printer(as_json, quiet)
    output_options, resources = apply_flags(
        mergekit,
        OutputOptions(seed=seed, max_shard_size=max_shard_size),
        resources,
        printer.note,
    )
    seed = output_options.seed
    if ignored.byte_match is not None:
        printer.note("--byte-match: no effect: tokens that stand for the same bytes always match")
    if ignored.batch_size is not None:
        printer.note("--batch-size: no effect: --ram bounds the memory")
    planned = transplanting.plan_transplant(
        model,
        donor,
        **{field.name: getattr(rows, field.name) for field in fields(rows)},
        pad_to_multiple_of=pad_to_multiple_of,
        dtype=dtype,
        output=output,
        **resources.arguments,
        **search.arguments,
        seed=seed,
        max_shard_size=output_options.max_shard_size,
        observer=printer.planning(),
    )
    if dry_run:
        from mergeloom.report.terminal.plan import render_plan

        printer.answer(planned.report, lambda: render_plan(planned.report))
        return
    run_merge(planned, output, printer, restart=restart)
