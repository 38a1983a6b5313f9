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
from mergeloom.engine.base.errors import OutputError
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.graph import OutputFile, Write
from mergeloom.engine.output.journal import Finished
from mergeloom.engine.storage.digest import ALGORITHM, digest_of

if TYPE_CHECKING:
    from pydantic import TypeAdapter

VERSION = 2
DIRECTORY = ".mergeloom"
NAME = "manifest.json"
MAX_BYTES = 512 << 20
MAX_VALUES = 16_000_000
_NO_TENSORS = '\n "tensors": []'
"""What stands in a manifest for no tensors, and nowhere else: texts have no line breaks."""
_LEAST_BLOCK_BYTES = 4096
_MOST_BLOCKS = 1 << 16
"""Digests are over grains, which are larger where the tensor is; those of scales are small."""


def is_block(block_bytes: int, nbytes: int) -> bool:
    """Whether a tensor of so many bytes may have digests over blocks of ``block_bytes``."""
    few = block_bytes > 0 and -(-nbytes // block_bytes) <= _MOST_BLOCKS
    return few or block_bytes >= min(nbytes, _LEAST_BLOCK_BYTES)


@dataclass(frozen=True, slots=True)
class Origin:
    """What a tensor was cloned from: bytes of the file ``path`` from ``offset`` on, when it had
    ``size`` bytes and was ``modified`` last, in nanoseconds."""

    path: str
    offset: int
    size: int
    modified: int


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """Where one tensor lies and what its bytes are: ``digest`` over blocks of ``block_bytes``.

    Of one that was written as codes, ``error`` is how far they are from what was computed:
    ‖written - computed‖ / ‖computed‖. A tensor that was cloned has no digest, for nothing has read
    it, but an ``origin``.
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
        """The record as JSON, as it stands in a manifest."""
        members: dict[str, Any] = {
            "name": self.name,
            "file": self.file,
            "offset": self.offset,
            "nbytes": self.nbytes,
            "digest": self.digest,
            "block_bytes": self.block_bytes,
        }
        text = json.dumps(members, separators=(",\n   ", ": "))[1:-1]
        origin, error = "null", json.dumps(self.error)
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
    """Everything that is recorded of a finished merge.

    ``files`` are the shards by name, ``side_files`` the digests of the other files written.
    ``identity`` names what the result depends on, as the fingerprint does; ``about`` is the
    caller's own record (configuration, resolved inputs, versions, measured figures).
    """

    fingerprint: str
    identity: Mapping[str, str]
    files: Mapping[str, FileRecord]
    side_files: Mapping[str, str]
    tensors: tuple[TensorRecord, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def all_files(self) -> tuple[str, ...]:
        """Names of all files that were written, shards first."""
        return (*self.files, *self.side_files)

    @property
    def errors(self) -> dict[str, float]:
        """The relative errors of tensors that were written as codes, by name."""
        return {each.name: each.error for each in self.tensors if each.error is not None}

    def encode(self) -> bytes:
        """The manifest as JSON."""
        document = {"version": VERSION, "digests": ALGORITHM, **asdict(replace(self, tensors=()))}
        text = json.dumps(document, indent=1)
        if self.tensors:  # in a tenth of the time that indentation takes otherwise
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
                raise OutputError(f"'{path}' is larger than any manifest: merge with --restart")
            document = bounded_json.parse(file.read(), MAX_VALUES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise OutputError(f"cannot read '{path}': {error.strerror}") from error
    except ValueError as error:
        raise OutputError(f"'{path}' is damaged ({error}): merge with --restart") from error
    if not isinstance(document, dict):
        raise OutputError(f"'{path}' is damaged (no JSON object): merge with --restart")
    if document.pop("version", None) != VERSION or document.pop("digests", None) != ALGORITHM:
        raise OutputError(f"'{path}' was written by another version of this program")
    # Late: most runs begin in a new directory, and pydantic takes a tenth of a second to import.
    from pydantic import ValidationError

    try:
        manifest = _validator().validate_python(document)
    except (ValidationError, RecursionError) as error:
        raise OutputError(f"'{path}' is damaged ({_first(error)}): merge with --restart") from error
    fault = _fault(manifest)
    if fault is not None:
        raise OutputError(f"'{path}' is damaged ({fault}): merge with --restart")
    return manifest


@lru_cache(maxsize=1)
def _validator() -> TypeAdapter[Manifest]:
    from pydantic import TypeAdapter

    return TypeAdapter(Manifest)


def is_inside(name: str) -> bool:
    """Whether a recorded name is one of a file below the output directory."""
    if not name.isprintable() or "\\" in name:
        return False
    path = PurePath(name)
    short = len(path.parts) <= 8 and all(len(part.encode()) <= 240 for part in path.parts)
    return short and bool(path.parts) and ".." not in path.parts and not path.is_absolute()


def _fault(manifest: Manifest) -> str | None:
    """What a manifest says that no run can have written."""
    for name in (*manifest.files, *manifest.side_files):
        if not is_inside(name):
            return f"it names {name[:200]!r}, which is no file of the output"
    for record in manifest.tensors:
        file = manifest.files.get(record.file)
        if file is None or not 0 <= record.offset <= record.offset + record.nbytes <= file.size:
            return f"{record.name[:200]!r} lies outside its file"
        if record.nbytes < 0 or not is_block(record.block_bytes, record.nbytes):
            return f"{record.name[:200]!r} has sizes that make no sense"
    return None


def _first(error: Exception) -> str:
    """The first thing that is wrong, in one line."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return "it is nested too deeply"
    first = error.errors(include_input=False, include_url=False)[0]
    place = ".".join(str(part)[:80] for part in first["loc"])
    return ascii(f"{place}: {first['msg']}")[1:-1]


def file_record(file: OutputFile) -> FileRecord:
    """The manifest's record of one shard."""
    return FileRecord(file.size, len(file.header), digest_of([file.header]))


def tensor_record(write: Write, entry: Finished, origin: Origin | None = None) -> TensorRecord:
    """The manifest's record of one finished write."""
    return TensorRecord(
        *(write.name, write.file.name, write.offset, write.nbytes),
        *(entry.digest, entry.block_bytes, origin, entry.error),
    )
