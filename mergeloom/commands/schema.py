"""``mergeloom schema``: what the JSON documents look like."""

from __future__ import annotations

import json
from typing import Annotated

from mergeloom.command_line import Argument
from mergeloom.printer import Printer


def schema(
    document: Annotated[
        str | None,
        Argument(metavar="[DOCUMENT]", help="One document, as 'plan'; all without it."),
    ] = None,
) -> None:
    """Print the JSON schemas of the documents that --json prints."""
    from mergeloom import questions

    Printer(as_json=True).lines([json.dumps(questions.schema(document), indent=2)])
