"""The manifest of a finished output: what it was made from, and a digest of every tensor."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, field, replace
from functools import lru_cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from mergeloom.engine.base import bounded_json
from mergeloom.engine.base.errors import OutputError, unreadable
from mergeloom.engine.base.records import dataclass, record
from mergeloom.engine.graph.graph import OutputFile, Write
from mergeloom.engine.output.journal import START_OVER, FinishedTensor
from mergeloom.engine.storage.digest import ALGORITHM, digest_of

if TYPE_CHECKING:
    from pydantic import TypeAdapter

VERSION = 2
DIRECTORY = ".mergeloom"
NAME = "manifest.json"
MAX_BYTES = 512 << 20
MAX_VALUES = 16_000_000
_NO_TENSORS = '\n "tensors": []'
"""JSON for an empty tensor list; unique in a manifest, because strings have no line breaks."""
_members_to_json = json.JSONEncoder(separators=(",\n   ", ": ")).encode
_MIN_BLOCK_BYTES = 4096
_MAX_BLOCKS = 1 << 16
"""Maximum number of blocks of a tensor, unless they have at least `_MIN_BLOCK_BYTES` bytes."""


def is_valid_block(block_bytes: int, nbytes: int) -> bool:
    """Whether a tensor of ``nbytes`` bytes may be digested in blocks of ``block_bytes``.

    It limits the number of blocks, which damaged records could make huge.
    """
    few = block_bytes > 0 and -(-nbytes // block_bytes) <= _MAX_BLOCKS
    return few or block_bytes >= min(nbytes, _MIN_BLOCK_BYTES)


@dataclass(frozen=True, slots=True)
class Origin:
    """The source of a cloned tensor: the file ``path`` from byte ``offset`` on, when the file had
    ``size`` bytes and the modification time ``modified`` in nanoseconds."""

    path: str
    offset: int
    size: int
    modified: int


@record(frozen=True, slots=True)
class TensorRecord:
    """The location of a tensor, and its ``digest`` over blocks of ``block_bytes``.

    ``error`` is the relative error ‖written - computed‖ / ‖computed‖ of a quantised tensor. A
    cloned tensor has an ``origin`` instead of a digest, because its bytes were not read.
    """

    name: str
    file: str
    offset: int
    nbytes: int
    digest: str
    block_bytes: int
    origin: Origin | None = None
    error: float | None = None

    def encode(self) -> str:
        """The record as JSON, in the format of the manifest."""
        members: dict[str, Any] = {
            "name": self.name,
            "file": self.file,
            "offset": self.offset,
            "nbytes": self.nbytes,
            "digest": self.digest,
            "block_bytes": self.block_bytes,
        }
        text = _members_to_json(members)[1:-1]
        origin, error = "null", "null" if self.error is None else json.dumps(self.error)
        if self.origin is not None:
            members = asdict(self.origin)
            inside = json.dumps(members, separators=(",\n    ", ": "))[1:-1]
            origin = f"{{\n    {inside}\n   }}"
        return f'  {{\n   {text},\n   "origin": {origin},\n   "error": {error}\n  }}'


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One shard: its size, and the digest of its first ``header_bytes`` bytes."""

    size: int
    header_bytes: int
    header_digest: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The records of a finished merge.

    ``files`` are the shards by name, ``side_files`` the digests of the other files. ``identity``
    lists what the result depends on, in readable form; ``about`` is a record of the caller
    (configuration, resolved inputs, versions, measurements).
    """

    fingerprint: str
    identity: Mapping[str, str]
    files: Mapping[str, FileRecord]
    side_files: Mapping[str, str]
    tensors: tuple[TensorRecord, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def all_files(self) -> tuple[str, ...]:
        """Names of all files, shards first."""
        return (*self.files, *self.side_files)

    @property
    def errors(self) -> dict[str, float]:
        """The relative errors of quantised tensors, by name."""
        return {each.name: each.error for each in self.tensors if each.error is not None}

    def encode(self) -> bytes:
        """The manifest as JSON."""
        document = {"version": VERSION, "digests": ALGORITHM, **asdict(replace(self, tensors=()))}
        text = json.dumps(document, indent=1)
        if self.tensors:  # ten times as fast as json's indentation
            records = ",\n".join([record.encode() for record in self.tensors])
            before, _, after = text.partition(_NO_TENSORS)
            text = f'{before}\n "tensors": [\n{records}\n ]{after}'
        return (text + "\n").encode()


def manifest_path(output: Path) -> Path:
    return output / DIRECTORY / NAME


def read_manifest(output: Path, name: str = NAME) -> Manifest | None:
    """The manifest of an output directory; ``None`` if it is not finished.

    Raises:
        OutputError: it cannot be read, is damaged, or was written by another version.
    """
    path = output / DIRECTORY / name
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                raise OutputError(f"'{path}' is too large for a manifest", remedy=START_OVER)
            document = bounded_json.parse(file.read(), MAX_VALUES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise unreadable(path, error, OutputError) from error
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(document, dict):
        raise _damaged(path, "no JSON object")
    if document.pop("version", None) != VERSION or document.pop("digests", None) != ALGORITHM:
        raise OutputError(
            f"'{path}' was written by another version of this program",
            remedy=f"use that version, or {START_OVER}",
        )
    # Imported late: most runs begin in a new directory, and importing pydantic takes 0.1 s.
    from pydantic import ValidationError

    try:
        manifest = _validator().validate_python(document)
    except (ValidationError, RecursionError) as error:
        raise _damaged(path, _first_fault(error)) from error
    fault = _fault(manifest)
    if fault is not None:
        raise _damaged(path, fault)
    return manifest


def _damaged(path: Path, why: str) -> OutputError:
    return OutputError(f"'{path}' is damaged ({why})", remedy=START_OVER)


@lru_cache(maxsize=1)
def _validator() -> TypeAdapter[Manifest]:
    from pydantic import TypeAdapter

    return TypeAdapter(Manifest)


def is_inside(name: str) -> bool:
    """Whether a recorded name can only be that of a file inside the output directory."""
    if not name.isprintable() or "\\" in name:
        return False
    path = PurePath(name)
    short = len(path.parts) <= 8 and all(len(part.encode()) <= 240 for part in path.parts)
    return short and bool(path.parts) and ".." not in path.parts and not path.is_absolute()


def _fault(manifest: Manifest) -> str | None:
    """An inconsistency in a manifest, as text; ``None`` if it is consistent."""
    for name in (*manifest.files, *manifest.side_files):
        if not is_inside(name):
            return f"it names {name[:200]!r}, which is not a file of the output"
    for each in manifest.tensors:
        file = manifest.files.get(each.file)
        if file is None or not 0 <= each.offset <= each.offset + each.nbytes <= file.size:
            return f"{each.name[:200]!r} is outside its file"
        if each.nbytes < 0 or not is_valid_block(each.block_bytes, each.nbytes):
            return f"{each.name[:200]!r} has impossible sizes"
    return None


def _first_fault(error: Exception) -> str:
    """The first validation error, in one line."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return "it is nested too deeply"
    first = error.errors(include_input=False, include_url=False)[0]
    place = ".".join(str(part)[:80] for part in first["loc"])
    return ascii(f"{place}: {first['msg']}")[1:-1]


def file_record(file: OutputFile) -> FileRecord:
    """The manifest record of a shard."""
    return FileRecord(file.size, len(file.header), digest_of([file.header]))


def tensor_record(
    write: Write, entry: FinishedTensor, origin: Origin | None = None
) -> TensorRecord:
    """The manifest record of a finished write."""
    return TensorRecord(
        *(write.name, write.file.name, write.offset, write.nbytes),
        *(entry.digest, entry.block_bytes, origin, entry.error),
    )
