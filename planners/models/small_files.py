"""Reads small, untrusted JSON files."""

from __future__ import annotations

from typing import Any

from mergeloom.engine.base import bounded_json
from mergeloom.engine.base.errors import COPY_AGAIN, CheckpointError
from mergeloom.engine.storage.folder import Folder

MAX_JSON_BYTES = 64 << 20


def read_object(folder: Folder, name: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: it cannot be read, is too large, or is something else.
    """
    return parse_object(folder.read(name, MAX_JSON_BYTES), f"'{folder.name}/{name}'")


def parse_object(content: bytes, where: str) -> dict[str, Any]:
    """A JSON object; ``where`` names the file in messages.

    Raises:
        CheckpointError: it is something else.
    """
    document = _parsed(content, where)
    if not isinstance(document, dict):
        raise CheckpointError(f"{where} is not a JSON object", remedy=COPY_AGAIN)
    return document


def read_list(folder: Folder, name: str) -> list[Any]:
    """Read a JSON list.

    Raises:
        CheckpointError: it cannot be read, is too large, or is something else.
    """
    where = f"'{folder.name}/{name}'"
    document = _parsed(folder.read(name, MAX_JSON_BYTES), where)
    if not isinstance(document, list):
        raise CheckpointError(f"{where} is not a JSON list", remedy=COPY_AGAIN)
    return document


def _parsed(content: bytes, where: str) -> Any:
    try:
        return bounded_json.parse(content)
    except ValueError as error:
        raise CheckpointError(f"{where} is not valid JSON: {error}", remedy=COPY_AGAIN) from error
