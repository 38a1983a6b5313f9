"""``mergeloom mergekit-yaml``: a merge with mergekit's command-line arguments."""

from __future__ import annotations

from pathlib import Path

from mergeloom.commands.merge import run_merge
from mergeloom.mergekit_flags import MergekitFlags, apply_flags
from mergeloom.options import (
    Config,
    MergekitDevice,
    MergekitQuiet,
    ModelSearch,
    OutputOptions,
    OutputPath,
    Ram,
    ResourceOptions,
    plan_from_options,
)
from mergeloom.printer import Printer


def mergekit_yaml(
    config: Config,
    output: OutputPath,
    flags: MergekitFlags,
    search: ModelSearch,
    device: MergekitDevice = None,
    ram: Ram = None,
    quiet: MergekitQuiet = False,
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
