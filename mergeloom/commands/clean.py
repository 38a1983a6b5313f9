"""``mergeloom clean``: remove what can be had anew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from mergeloom.command_line import Argument, Option
from mergeloom.options import AsJson, read_path
from mergeloom.printer import Printer


def clean(
    outputs: Annotated[
        list[Path] | None,
        Argument(metavar="[OUT]...", help="Interrupted merges to remove.", parser=read_path),
    ] = None,
    everything: Annotated[
        bool,
        Option(
            "--all", help="Also the machine code in use, and what is known of this machine's speed."
        ),
    ] = False,
    dry: Annotated[
        bool, Option("--dry-run", "-n", help="Say what would be removed; remove nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Remove machine code that is not used any more, and what interrupted merges left in OUT."""
    from mergeloom import questions
    from mergeloom.report.terminal.status import render_clean

    found = questions.clean(outputs or [], everything=everything, dry=dry)
    Printer(as_json).answer(found, lambda: render_clean(found))
