"""``mergeloom init``: write a configuration to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from mergeloom.command_line import Argument, Option
from mergeloom.options import ModelSearch, method_names, read_path
from mergeloom.printer import Printer


def init(
    models: Annotated[list[str], Argument(metavar="MODEL...", help="Directories or hub ids.")],
    search: ModelSearch,
    base: Annotated[
        str | None,
        Option(metavar="MODEL", help="The base that the others were fine-tuned from."),
    ] = None,
    method: Annotated[
        str | None,
        Option(
            metavar="NAME",
            help="The merge method. [default: a suitable one]",
            completions=method_names,
        ),
    ] = None,
    stack: Annotated[bool, Option("--stack", help="Stack the layers of the models.")] = False,
    output: Annotated[
        Path,
        Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The file to write; - is stdout.",
            parser=read_path,
        ),
    ] = Path("merge.yml"),
    force: Annotated[bool, Option("--force", help="Replace FILE if it exists.")] = False,
) -> None:
    """Write a commented configuration for some models, as a starting point."""
    from mergeloom import queries

    printer = Printer()
    to_stdout = str(output) == "-"
    text = queries.init(
        models,
        base=base,
        method=method,
        stack=stack,
        folder=None if to_stdout else output.parent,
        **search.arguments,
        observer=printer.planning(),
    )
    if to_stdout:
        printer.lines(text.splitlines())
        return
    from mergeloom.engine.base.errors import OutputError

    try:
        with open(output, "w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise OutputError(
            f"'{output}' exists already", remedy="choose another file with --output, or use --force"
        ) from error
    except OSError as error:
        raise OutputError(f"cannot write '{output}': {error.strerror}") from error
    printer.note(f"wrote '{output}'; 'mergeloom plan {output}' shows what it does")
