"""``mergeloom merge``: run a merge."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mergeloom.command_line import HIDDEN, Interrupted, Option
from mergeloom.mergekit_flags import MergekitFlags, apply_flags
from mergeloom.options import (
    AsJson,
    Config,
    HtmlFile,
    ModelSearch,
    OutputOptions,
    OutputPath,
    ResourceOptions,
    plan_from_options,
)
from mergeloom.printer import Printer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mergeloom.results import PlannedMerge


def merge(
    config: Config,
    output: OutputPath,
    search: ModelSearch,
    output_options: OutputOptions,
    resources: ResourceOptions,
    mergekit: Annotated[MergekitFlags, HIDDEN],
    io: Annotated[
        str,
        Option(metavar="auto|direct|buffered", help="How files are accessed; auto clones."),
    ] = "auto",
    restart: Annotated[
        bool, Option("--restart", help="Discard what an earlier run left in OUT.")
    ] = False,
    verify: Annotated[
        bool,
        Option("--verify", help="Check finished files by digest, not only by size."),
    ] = False,
    check: Annotated[
        int,
        Option(min=0, metavar="N", help="Recompute N random tensors independently."),
    ] = 0,
    quiet: Annotated[
        bool, Option("--quiet", "-q", help="Show nothing but warnings and errors.")
    ] = False,
    html: HtmlFile = None,
    json_progress: Annotated[
        bool,
        Option(
            "--json-progress",
            help="Print one JSON document per line on stdout: progress, then the result or error.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Merge into OUT; the same command again continues after an interruption."""
    from mergeloom import arguments
    from mergeloom.engine.run.devices import start_early
    from mergeloom.engine.storage.source import IOMode

    arguments.one_of(io, "--io", [mode.value for mode in IOMode])
    printer = Printer(as_json, quiet, json_progress)
    output_options, resources = apply_flags(mergekit, output_options, resources, printer.note)
    start_early(resources.device)
    planned = plan_from_options(
        config, search, output_options, resources, printer.planning(), output
    )
    run_merge(
        planned, output, printer, io=io, restart=restart, verify=verify, check=check, html=html
    )


_OWN_CONDITIONS = frozenset({"finished", "incomplete", "interrupted", "damaged"})
"""Conditions of directories that an earlier merge wrote into."""


def run_merge(
    planned: PlannedMerge,
    output: Path,
    printer: Printer,
    *,
    io: str = "auto",
    restart: bool = False,
    verify: bool = False,
    check: int = 0,
    html: Path | None = None,
) -> None:
    """Run a planned merge, and print progress and result.

    Raises:
        Interrupted: the merge was interrupted.
    """
    from mergeloom import api

    state = planned.output_state
    if restart and state is not None and state.condition in _OWN_CONDITIONS:
        message = f"'{output}' holds an earlier merge, which --restart discards"
        state = replace(state, will="start", message=message)
        planned = replace(planned, output_state=state)
    chosen_printer = printer
    if state is not None and state.will in ("refuse", "nothing") and not (restart or verify):
        chosen_printer = replace(printer, quiet=True)  # the error or the result says everything
    with chosen_printer.running(planned) as observer:
        try:
            result = api.merge(
                planned,
                output,
                io=io,
                restart=restart,
                verify=verify,
                check=check,
                observer=observer,
            )
        except KeyboardInterrupt as stop:
            raise Interrupted(f"the same command continues '{output}' where it stopped") from stop

    def render() -> RenderableType:
        from mergeloom.report.terminal.run import render_outcome

        return render_outcome(result.report)

    printer.result(result.report, render)
    if html is not None:
        printer.page(result.page(), html)
