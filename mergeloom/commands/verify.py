"""``mergeloom verify``: check an output against its recorded digests."""

from __future__ import annotations

from typing import Annotated

import click

from mergeloom.command_line import Option
from mergeloom.options import AsJson, OutputPath
from mergeloom.printer import Printer


def verify(
    output: OutputPath,
    load: Annotated[
        bool,
        Option(
            "--load",
            help="Also check that transformers can load the model; reads no weights.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check the tensors of a finished or interrupted merge against their recorded digests."""
    from mergeloom import queries
    from mergeloom.report.terminal.verification import render_verify

    found = queries.verify(output, load=load)
    Printer(as_json).answer(found, lambda: render_verify(found))
    if not found.sound:
        raise click.exceptions.Exit(1)
