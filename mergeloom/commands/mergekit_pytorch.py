"""``mergeloom mergekit-pytorch``: a merge of weight files with mergekit's command-line
arguments."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from mergeloom.command_line import Option
from mergeloom.commands.mergekit_yaml import run_as_mergekit
from mergeloom.engine.base.errors import Finding, LoomError
from mergeloom.mergekit_flags import MergekitFlags
from mergeloom.options import (
    Config,
    MergekitDevice,
    MergekitQuiet,
    ModelSearch,
    OutputOptions,
    OutputPath,
    Ram,
)


def mergekit_pytorch(
    config: Config,
    output: OutputPath,
    flags: MergekitFlags,
    search: ModelSearch,
    union: Annotated[
        bool, Option("-u", "--tensor-union", help="Merge tensors that any input has.")
    ] = False,
    intersection: Annotated[
        bool, Option("-i", "--tensor-intersection", help="Merge tensors that all inputs have.")
    ] = False,
    device: MergekitDevice = None,
    ram: Ram = None,
    quiet: MergekitQuiet = False,
) -> None:
    """Merge weight files into OUT, with the arguments of mergekit's command of this name.

    Without -u or -i, it is an error if an input lacks a tensor.
    """
    if union and intersection:
        raise LoomError(
            "--tensor-union and --tensor-intersection cannot be combined", remedy="give one"
        )
    tensors = "union" if union else "intersection" if intersection else "same"
    output_options = OutputOptions(settings=[f"tensors={tensors}"])
    try:
        run_as_mergekit(config, output, flags, search, device, ram, quiet, output_options)
    except LoomError as error:
        error.reword(_with_flags)
        raise


def _with_flags(finding: Finding) -> Finding:
    """A finding whose remedy is a flag of this command, which the user gives in place of a key."""
    if finding.code != "missing-tensors":
        return finding
    return replace(
        finding, remedy="-u merges each from the inputs that have it, -i leaves them out"
    )
