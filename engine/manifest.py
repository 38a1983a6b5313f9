"""The manifest of a finished output: what it was made from, and a digest of every tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engine.digest import ALGORITHM
from engine.errors import OutputError

VERSION = 1
DIRECTORY = ".mergeloom"
NAME = "manifest.json"


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """Where one tensor lies and what its bytes are: ``digest`` over blocks of ``block_bytes``."""

    name: str
    file: str
    offset: int
    nbytes: int
    digest: str
    block_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything that is recorded of a finished merge.

    ``files`` are the shards with their sizes in bytes, ``side_files`` the other files written.
    ``identity`` names what the result depends on, as the fingerprint does; ``about`` is the
    caller's own record (configuration, resolved inputs, versions, measured figures).
    """

    fingerprint: str
    identity: Mapping[str, str]
    files: Mapping[str, int]
    side_files: tuple[str, ...]
    tensors: tuple[TensorRecord, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        """The manifest as JSON."""
        document = {"version": VERSION, "digests": ALGORITHM, **asdict(self)}
        return (json.dumps(document, indent=1) + "\n").encode()


def manifest_path(output: Path) -> Path:
    return output / DIRECTORY / NAME


def read_manifest(output: Path) -> Manifest | None:
    """The manifest of an output directory; ``None`` if it is not finished.

    Raises:
        OutputError: it cannot be read, or was written by another version.
    """
    path = manifest_path(output)
    try:
        document = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise OutputError(f"'{path}' cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise OutputError(f"'{path}' is damaged: it is not a JSON object")
    if document.pop("version", None) != VERSION or document.pop("digests", None) != ALGORITHM:
        raise OutputError(f"'{path}' was written by another version of this program")
    # Late: most runs begin in a new directory, and pydantic takes a tenth of a second to import.
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(Manifest).validate_python(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise OutputError(f"'{path}' is damaged: {place}: {first['msg']}") from error
