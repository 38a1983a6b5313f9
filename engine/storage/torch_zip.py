"""Read files of ``torch.save``: zip archives with one record per storage.

    NAME/data.pkl      a pickle of the saved object, with references to storages
    NAME/data/KEY      the bytes of one storage, not compressed
    NAME/byteorder     "little" or "big"

Only the archive's directory and the pickle are read; the pickle is not executed
(`engine.storage.pickled`), and no storage is read. Files are untrusted.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

from mergeloom.engine.base.dtypes import BY_NAME, DType
from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.storage.pickled import (
    PickledTensor,
    PickleFault,
    UnknownObject,
    read_pickle,
)
from mergeloom.engine.storage.source import Source
from mergeloom.engine.storage.source_file import opened_file

MAX_PICKLE_BYTES = 256 << 20
MAX_RECORDS = 1_000_000
MAX_ENTRIES = 2_000_000
MAX_DIMENSIONS = 32
MAX_NAME = 1000
_MAX_NESTING = 4
_LOCAL = struct.Struct("<4s5H3L2H")
_LEGACY = (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"\x80\x02\x8a\x0a")
"""The first bytes of files of torch before 1.6: a pickled magic number."""

_DAMAGE_ERRORS = (
    *(zipfile.BadZipFile, EOFError, RuntimeError, ValueError, LookupError, OverflowError),
    struct.error,
)
"""Exceptions raised for damaged archives."""

_USUAL_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "module", "weights")
"""Keys under which training programs store a model's tensors among other values."""

_PARALLEL_PREFIX = "module."
"""The prefix that data-parallel training adds to names."""


class StridedEntry(NamedTuple):
    """One tensor, at byte ``offset`` of its file; ``strides`` are in elements."""

    dtype: DType
    shape: tuple[int, ...]
    offset: int
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TorchFile:
    """The tensors of a file by name; ``raw`` has the bytes of the pickle."""

    entries: Mapping[str, StridedEntry]
    raw: bytes


def read_torch(source: Source) -> TorchFile:
    """The tensors in a file written by ``torch.save``; reads only its directory and pickle.

    Raises:
        CheckpointError: the file cannot be read, is damaged, compressed, of another format, or
            does not contain exactly one set of named tensors.
    """
    path = source.name
    try:
        with opened_file(source) as file:
            _check_kind(path, file.read(32))
            with zipfile.ZipFile(file) as archive:
                archive_file = _Archive(path, file, source.size, archive.infolist())
            pickle = archive_file.pickle()
            named = _find_tensors(path, read_pickle(pickle))
            entries = {name: archive_file.entry(name, tensor) for name, tensor in named.items()}
    except _DAMAGE_ERRORS as error:
        raise CheckpointError(
            f"'{path}' is damaged: it is not a valid zip archive",
            remedy="copy or download it again",
        ) from error
    except PickleFault as error:
        raise CheckpointError(
            f"'{path}' cannot be read without executing its pickle: {error}",
            remedy="load it with torch.load and save its state_dict(), or save it as safetensors",
        ) from error
    return TorchFile(entries, pickle)


def _check_kind(path: str, start: bytes) -> None:
    if start.startswith(b"PK\x03\x04"):
        return
    again = "load it with torch.load and save it again with torch.save, or as safetensors"
    if start.startswith(_LEGACY) or start.startswith(b"\x80"):
        raise CheckpointError(
            f"'{path}' has the format of torch before 1.6, which is not supported", remedy=again
        )
    raise CheckpointError(
        f"'{path}' was not written by torch.save", remedy="check that it is the right file"
    )


class _Archive:
    """The records of an archive and their positions in the file."""

    def __init__(self, path: str, file: Any, size: int, records: list[zipfile.ZipInfo]) -> None:
        if len(records) > MAX_RECORDS:
            raise CheckpointError(f"'{path}' has more than {MAX_RECORDS} records")
        names = {record.filename: record for record in records}
        roots = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise CheckpointError(f"'{path}' is a zip archive that torch.save did not write")
        self._path, self._file, self._size, self._records = path, file, size, names
        self._root = roots[0].removesuffix("data.pkl")
        self._starts: dict[str, int] = {}

    def pickle(self) -> bytes:
        """The pickle of the saved object."""
        if f"{self._root}constants.pkl" in self._records:
            raise CheckpointError(
                f"'{self._path}' is a TorchScript program, not weights alone",
                remedy="load it with torch.jit.load and save its state_dict() with torch.save",
            )
        order = self._records.get(f"{self._root}byteorder")
        if order is not None and self._content(order, 16) != b"little":
            raise CheckpointError(f"'{self._path}' is big-endian, which is not supported")
        return self._content(self._records[f"{self._root}data.pkl"], MAX_PICKLE_BYTES)

    def entry(self, name: str, tensor: PickledTensor) -> StridedEntry:
        """The position of a tensor in the file."""
        dtype = BY_NAME.get(tensor.dtype)
        if dtype is None:
            raise _no_dtype(self._path, name, tensor.dtype)
        shape, strides = tensor.shape, tensor.strides
        if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
            raise CheckpointError(f"'{self._path}' is damaged: '{name}' has an invalid shape")
        record = self._records.get(f"{self._root}data/{tensor.storage.key}")
        if record is None:
            raise CheckpointError(
                f"'{self._path}' is damaged: the bytes of '{name}' are missing",
                remedy="copy or download it again",
            )
        offset = tensor.offset if all(shape) else 0
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if all(shape) and (last + 1) * dtype.size > record.file_size:
            raise CheckpointError(f"'{self._path}' is damaged: '{name}' is larger than its storage")
        return StridedEntry(dtype, shape, self._start(record) + offset * dtype.size, strides)

    def _content(self, record: zipfile.ZipInfo, limit: int) -> bytes:
        if record.file_size > limit:
            raise CheckpointError(f"'{self._path}': a record is larger than {limit} bytes")
        self._file.seek(self._start(record))
        content: bytes = self._file.read(record.file_size)
        return content

    def _start(self, record: zipfile.ZipInfo) -> int:
        """The position of a record's bytes, after its own header of variable length."""
        start = self._starts.get(record.filename)
        if start is None:
            if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1:
                raise CheckpointError(
                    f"'{self._path}' is compressed or encrypted, which torch.save never does",
                    remedy="unpack it and pack it again without compression",
                )
            self._file.seek(record.header_offset)
            header = _LOCAL.unpack(self._file.read(_LOCAL.size))
            if header[0] != b"PK\x03\x04":
                raise zipfile.BadZipFile
            start = record.header_offset + _LOCAL.size + header[-2] + header[-1]
            if start + record.file_size > self._size:
                raise zipfile.BadZipFile
            self._starts[record.filename] = start
        return start


def _no_dtype(path: str, name: str, dtype: str) -> CheckpointError:
    """The error for a tensor whose dtype no output can have."""
    narrower = {"complex128": "complex64", "complex32": "complex64"}.get(dtype)
    how = f"x.to(torch.{narrower})" if narrower else "in another dtype"
    return CheckpointError(
        f"'{path}': '{name}' has the dtype {dtype[:40]!a}, which is not supported",
        remedy=f"save it as {how}, or without this tensor",
    )


def _find_tensors(path: str, value: Any) -> dict[str, PickledTensor]:
    """The set of named tensors in the saved object.

    That is the saved dictionary itself, or a dictionary inside it: under one of the usual keys, or
    the only one with tensors. Keys of nested dictionaries are joined with dots.
    """
    if isinstance(value, UnknownObject):
        raise CheckpointError(
            f"'{path}' holds an object of class {value.called[:200]!a}, not named tensors",
            remedy="load it where that class is defined, and save its state_dict()",
        )
    if not isinstance(value, dict):
        raise CheckpointError(f"'{path}' holds a {type(value).__name__}, not named tensors")
    if _has_tensors(value):
        return _check_names(path, _flattened(path, value))
    inside = {str(key): item for key, item in value.items() if isinstance(item, dict)}
    usable = {key: tensors for key, item in inside.items() if (tensors := _flattened(path, item))}
    for key in _USUAL_KEYS:
        if key in usable:
            return _check_names(path, usable[key])
    direct = [key for key in usable if _has_tensors(inside[key])]
    if len(direct) == 1:
        return _check_names(path, usable[direct[0]])
    if not usable:
        raise CheckpointError(f"'{path}' holds no named tensors")
    listed = ", ".join(ascii(key[:80]) for key in (direct or list(usable))[:6])
    raise CheckpointError(
        f"'{path}' holds several sets of tensors ({listed})",
        remedy="save the right one to a file of its own",
    )


def _has_tensors(value: Mapping[Any, Any]) -> bool:
    return any(isinstance(item, PickledTensor) for item in value.values())


def _is_tensor(value: Any) -> bool:
    """Whether a value is a tensor or an object with tensors, which must not be dropped silently."""
    return isinstance(value, PickledTensor) or (
        isinstance(value, UnknownObject) and value.has_tensors
    )


def _flattened(path: str, value: Mapping[Any, Any]) -> dict[str, PickledTensor | UnknownObject]:
    """The tensors in a dictionary and in those within it, by their keys joined with dots."""
    found: dict[str, PickledTensor | UnknownObject] = {}
    waiting: list[tuple[str, Mapping[Any, Any], int]] = [("", value, 0)]
    entries = 0
    while waiting:
        prefix, items, depth = waiting.pop()
        entries += len(items)
        if entries > MAX_ENTRIES:
            raise CheckpointError(f"'{path}' has more than {MAX_ENTRIES} entries")
        inner = []
        for key, item in items.items():
            if _is_tensor(item) and isinstance(key, str):
                found[prefix + key] = item
            elif isinstance(item, dict) and isinstance(key, str) and depth < _MAX_NESTING:
                inner.append((f"{prefix}{key}.", item, depth + 1))
        waiting += reversed(inner)
    return found


def _check_names(
    path: str, tensors: Mapping[str, PickledTensor | UnknownObject]
) -> dict[str, PickledTensor]:
    found: dict[str, PickledTensor] = {}
    wrapped = all(name.startswith(_PARALLEL_PREFIX) for name in tensors)
    for name, tensor in tensors.items():
        if not name or not name.isprintable() or len(name) > MAX_NAME:
            raise CheckpointError(f"'{path}': {name[:80]!a} is not a valid tensor name")
        if isinstance(tensor, UnknownObject):
            raise CheckpointError(
                f"'{path}': '{name}' is created by {tensor.called[:200]!a}, which is not supported",
                remedy="save it as a plain tensor (dequantize(), to_dense()), or without it",
            )
        found[name.removeprefix(_PARALLEL_PREFIX) if wrapped else name] = tensor
    return found
