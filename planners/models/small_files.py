"""Small files of untrusted JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mergeloom.engine.base import bounded_json
from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.storage.folder import Folder, LocalFolder

MAX_JSON_BYTES = 64 << 20


def read_object(folder: Folder, name: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: it cannot be read, is too large, or is something else.
    """
    document = _parsed(folder, name)
    if not isinstance(document, dict):
        raise CheckpointError(f"'{folder.name}/{name}' is not a JSON object")
    return document


def read_list(folder: Folder, name: str) -> list[Any]:
    """A JSON list.

    Raises:
        CheckpointError: it cannot be read, is too large, or is something else.
    """
    document = _parsed(folder, name)
    if not isinstance(document, list):
        raise CheckpointError(f"'{folder.name}/{name}' is not a JSON list")
    return document


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file of this machine; see `read_object`."""
    return read_object(LocalFolder(path.parent), path.name)


def read_json_list(path: Path) -> list[Any]:
    """A JSON list in a file of this machine; see `read_list`."""
    return read_list(LocalFolder(path.parent), path.name)


def check_inside(directory: Path, name: str) -> None:
    """Check that a file of a checkpoint is one of its own; see `LocalFolder`.

    Raises:
        CheckpointError: it is a link that leads elsewhere.
    """
    LocalFolder(directory).check(name)


def _parsed(folder: Folder, name: str) -> Any:
    content = folder.read(name, MAX_JSON_BYTES)
    try:
        return bounded_json.parse(content)
    except ValueError as error:
        raise CheckpointError(f"'{folder.name}/{name}' is not valid JSON: {error}") from error
