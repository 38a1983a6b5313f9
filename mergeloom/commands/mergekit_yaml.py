"""``mergeloom mergekit-yaml``: a merge with mergekit's command-line arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from mergeloom.command_line import Option
from mergeloom.commands.merge import run_merge
from mergeloom.mergekit_flags import MergekitFlags, apply_flags
from mergeloom.options import (
    Config,
    ModelSearch,
    OutputOptions,
    OutputPath,
    ResourceOptions,
    plan_from_options,
)
from mergeloom.printer import Printer


def mergekit_yaml(
    config: Config,
    output: OutputPath,
    flags: MergekitFlags,
    search: ModelSearch,
    device: Annotated[
        str | None, Option(metavar="auto|cpu|cuda|cuda:N|mps", help="Where to compute.")
    ] = None,
    ram: Annotated[
        str | None, Option(metavar="SIZE", help="Memory budget of the whole process.")
    ] = None,
    quiet: Annotated[
        bool,
        Option("--quiet/--no-quiet", "-q", help="Show nothing but warnings and errors."),
    ] = False,
) -> None:
    """Merge into OUT, with the arguments and flags of mergekit's command of this name.

    As in mergekit, another merge in OUT is replaced; other files there are not touched.
    """
    run_as_mergekit(config, output, flags, search, device, ram, quiet, OutputOptions())


def run_as_mergekit(
    config: Path,
    output: Path,
    flags: MergekitFlags,
    search: ModelSearch,
    device: str | None,
    ram: str | None,
    quiet: bool,
    output_options: OutputOptions,
) -> None:
    """Merge with mergekit's flags; ``output_options`` has the options that these do not cover."""
    printer = Printer(quiet=quiet)
    resources = ResourceOptions(ram=ram, device=device or "auto")
    output_options, resources = apply_flags(flags, output_options, resources, printer.note)
    planned = plan_from_options(
        config, search, output_options, resources, printer.planning(), output
    )
    state = planned.report.output_state
    other = state is not None and state.will == "refuse" and state.same is False
    if other:
        printer.note(f"'{output}' holds another merge: it is made anew, as mergekit does")
    run_merge(planned, output, printer, restart=other)
