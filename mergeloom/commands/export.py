"""``mergeloom export``: write a model to a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from mergeloom.command_line import Argument, Interrupted, Option
from mergeloom.options import AsJson, ModelSearch, Ram, Threads
from mergeloom.printer import Printer


def export(
    model: Annotated[
        str, Argument(metavar="MODEL", help="A directory, a hub id, or a merge's output.")
    ],
    output: Annotated[Path, Argument(metavar="OUT.gguf", help="The file to write.")],
    search: ModelSearch,
    kind: Annotated[
        str, Option("--type", metavar="f16|bf16|q8_0|f32", help="Type of matrices.")
    ] = "f16",
    tokenizer: Annotated[
        bool, Option("--tokenizer/--no-tokenizer", help="Include the tokenizer.")
    ] = True,
    overwrite: Annotated[
        bool, Option("--overwrite", help="Replace the file if it exists.")
    ] = False,
    ram: Ram = None,
    threads: Threads = None,
    quiet: Annotated[bool, Option("--quiet", "-q", help="Show no progress.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a model to a GGUF file, which llama.cpp and similar programs load."""
    from mergeloom import exporting
    from mergeloom.report.terminal.run import render_export

    printer = Printer(as_json, quiet)
    with printer.measuring() as observer:
        try:
            found = exporting.export(
                model,
                output,
                type=kind,
                tokenizer=tokenizer,
                overwrite=overwrite,
                ram=ram,
                threads=threads,
                **search.arguments,
                observer=observer,
            )
        except KeyboardInterrupt as stop:
            raise Interrupted(f"the same command continues '{output}' where it stopped") from stop
    printer.answer(found, lambda: render_export(found))
