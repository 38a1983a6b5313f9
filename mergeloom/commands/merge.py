"""``mergeloom merge``: a merge, run into a directory."""

from __future__ import annotations

from typing import Annotated

import typer

from mergeloom.options import (
    AsJson,
    Config,
    Finding,
    Meaning,
    OutputArgument,
    Resources,
    grouped,
    planned,
)
from mergeloom.printer import Printer


class Interrupted(Exception):
    """A merge was interrupted; the message says how it goes on."""


@grouped
def merge(
    config: Config,
    output: OutputArgument,
    finding: Finding,
    meaning: Meaning,
    resources: Resources,
    io: Annotated[
        str,
        typer.Option(metavar="auto|direct|buffered", help="How files are accessed; auto clones."),
    ] = "auto",
    restart: Annotated[
        bool, typer.Option("--restart", help="Discard what an earlier run left in OUT.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Compare what is finished already with its digests, not its size only."
        ),
    ] = False,
    check: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Compute N random tensors again in another way."),
    ] = 0,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show nothing but warnings and errors.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Merge into OUT; the same command again continues after an interruption."""
    from mergeloom import api, arguments
    from mergeloom.engine.storage.source import IOMode

    arguments.choice(io, "--io", [mode.value for mode in IOMode])
    printer = Printer(as_json, quiet)
    found = planned(config, finding, meaning, resources, printer.planning(), output)
    with printer.running(found) as observer:
        try:
            result = api.merge(
                found,
                output,
                io=io,
                restart=restart,
                verify=verify,
                check=check,
                observer=observer,
            )
        except KeyboardInterrupt as stop:
            raise Interrupted(f"the same command continues '{output}' where it stopped") from stop
    from mergeloom.report.terminal.run import render_outcome

    printer.result(result.report, lambda: render_outcome(result.report))
