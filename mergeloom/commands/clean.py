"""``mergeloom clean``: remove caches and interrupted merges."""

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
            "--all", help="Also the machine code in use, and the measured speed of this machine."
        ),
    ] = False,
    dry_run: Annotated[
        bool, Option("--dry-run", "-n", help="Show what would be removed; remove nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Remove machine code that is no longer used, and interrupted merges in OUT."""
    from mergeloom import queries
    from mergeloom.report.terminal.status import render_clean

    found = queries.clean(outputs or [], everything=everything, dry_run=dry_run)
    Printer(as_json).answer(found, lambda: render_clean(found))
