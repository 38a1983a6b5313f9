"""Reads small, untrusted JSON files."""

from __future__ import annotations

from typing import Any

from mergeloom.engine.base import bounded_json
from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.storage.folder import Folder

MAX_JSON_BYTES = 64 << 20


def read_object(folder: Folder, name: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: it cannot be read, is too large, or is something else.
    """
    document = _parsed(folder, name)
    if not isinstance(document, dict):
        raise CheckpointError(f"'{folder.name}/{name}' is not a JSON object")
    return document


def read_list(folder: Folder, name: str) -> list[Any]:
    """Read a JSON list.

    Raises:
        CheckpointError: it cannot be read, is too large, or is something else.
    """
    document = _parsed(folder, name)
    if not isinstance(document, list):
        raise CheckpointError(f"'{folder.name}/{name}' is not a JSON list")
    return document


def _parsed(folder: Folder, name: str) -> Any:
    content = folder.read(name, MAX_JSON_BYTES)
    try:
        return bounded_json.parse(content)
    except ValueError as error:
        raise CheckpointError(f"'{folder.name}/{name}' is not valid JSON: {error}") from error
