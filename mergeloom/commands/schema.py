"""``mergeloom schema``: JSON schemas of the documents."""

from __future__ import annotations

import json
from typing import Annotated

from mergeloom.command_line import Argument
from mergeloom.printer import Printer


def schema(
    document: Annotated[
        str | None,
        Argument(metavar="[DOCUMENT]", help="One document, such as 'plan'. [default: all]"),
    ] = None,
) -> None:
    """Print the JSON schemas of the documents that --json prints."""
    from mergeloom import queries

    Printer(as_json=True).lines([json.dumps(queries.schema(document), indent=2)])
