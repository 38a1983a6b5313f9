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
        if document.pop("version") != VERSION or document.pop("digests") != ALGORITHM:
            raise OutputError(f"'{path}' was written by another version of this program")
        tensors = tuple(TensorRecord(**record) for record in document.pop("tensors"))
        side_files = tuple(document.pop("side_files"))
        return Manifest(tensors=tensors, side_files=side_files, **document)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputError(f"'{path}' is damaged: {error}") from error
