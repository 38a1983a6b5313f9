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
from mergeloom.engine.base.errors import COPY_AGAIN, CheckpointError
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.storage.pickled import (
    PickledTensor,
    PickleFault,
    StorageRef,
    UnknownObject,
    contains_tensors,
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

_SAVE_AGAIN = "load it with torch.load and save it again with torch.save, or as safetensors"
_SAVE_TENSORS = "save a state_dict() alone"
_RIGHT_FILE = "check that it is the right file"

_ARRAYS = ("numpy._core.multiarray._reconstruct", "numpy.core.multiarray._reconstruct")
"""Functions that make arrays of numpy."""

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
            remedy=COPY_AGAIN,
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
    if start.startswith(_LEGACY) or start.startswith(b"\x80"):
        raise CheckpointError(
            f"'{path}' has the format of torch before 1.6, which is not supported",
            remedy=_SAVE_AGAIN,
        )
    raise CheckpointError(f"'{path}' was not written by torch.save", remedy=_RIGHT_FILE)


class _Archive:
    """The records of an archive and their positions in the file."""

    def __init__(self, path: str, file: Any, size: int, records: list[zipfile.ZipInfo]) -> None:
        if len(records) > MAX_RECORDS:
            raise CheckpointError(
                f"'{path}' has more than {MAX_RECORDS} records", remedy=_SAVE_TENSORS
            )
        names = {record.filename: record for record in records}
        roots = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise CheckpointError(
                f"'{path}' is a zip archive that torch.save did not write", remedy=_RIGHT_FILE
            )
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
            raise CheckpointError(
                f"'{self._path}' is big-endian, which is not supported", remedy=_SAVE_AGAIN
            )
        return self._content(self._records[f"{self._root}data.pkl"], MAX_PICKLE_BYTES)

    def entry(self, name: str, tensor: PickledTensor) -> StridedEntry:
        """The position of a tensor in the file."""
        dtype = BY_NAME.get(tensor.dtype)
        if dtype is None:
            raise _no_dtype(self._path, name, tensor.dtype)
        shape, strides = tensor.shape, tensor.strides
        if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
            raise CheckpointError(
                f"'{self._path}' is damaged: '{name}' has an invalid shape", remedy=COPY_AGAIN
            )
        record = self._records.get(f"{self._root}data/{tensor.storage.key}")
        if record is None:
            raise CheckpointError(
                f"'{self._path}' is damaged: the bytes of '{name}' are missing",
                remedy=COPY_AGAIN,
            )
        offset = tensor.offset if all(shape) else 0
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if all(shape) and (last + 1) * dtype.size > record.file_size:
            raise CheckpointError(
                f"'{self._path}' is damaged: '{name}' is larger than its storage",
                remedy=COPY_AGAIN,
            )
        return StridedEntry(dtype, shape, self._start(record) + offset * dtype.size, strides)

    def _content(self, record: zipfile.ZipInfo, limit: int) -> bytes:
        if record.file_size > limit:
            raise CheckpointError(
                f"'{self._path}': '{record.filename}' in it has {record.file_size} bytes, more "
                f"than {limit}",
                remedy=_SAVE_TENSORS,
            )
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
    how = f"as x.to(torch.{narrower})" if narrower else "in another dtype"
    return CheckpointError(
        f"'{path}': '{name}' has the dtype {dtype[:40]!a}, which is not supported",
        remedy=f"save it {how}, or without this tensor",
    )


class _Obstacle(NamedTuple):
    """Why an entry with tensors cannot be used, and what to do."""

    what: str
    remedy: str


_Found = dict[str, PickledTensor | _Obstacle]
"""Tensors by name, and what cannot be left out silently."""

_ARRAY = _Obstacle("is an array of numpy, not a tensor", "save it as a tensor, or without it")
_LIST = _Obstacle("is a list of tensors", "save each under a name of its own, or without them")
_STORAGE = _Obstacle("is a storage, without a shape", "save its tensor, or without it")
_NO_TEXT = _Obstacle(
    "is a key that is not text, of tensors", "save them under names, or without them"
)
_TWICE = _Obstacle("is the name of two tensors", "rename one of them")
_DEEP = _Obstacle(
    f"has tensors within more than {_MAX_NESTING} dictionaries", "save them by their whole names"
)
_PLAIN = "to_dense(), dequantize(), full_tensor(), resolve_conj(), resolve_neg()"


def _obstacle(value: Any) -> _Obstacle | None:
    """Why a value that is no dictionary cannot be used, if it must not be left out silently."""
    if isinstance(value, UnknownObject):
        if value.called in _ARRAYS:
            return _ARRAY
        what = f"is created by {value.called[:200]!a}, which is not supported"
        plain = _Obstacle(what, f"save it as a plain tensor ({_PLAIN}), or without it")
        return plain if value.has_tensors else None
    if isinstance(value, StorageRef):
        return _STORAGE
    return _LIST if isinstance(value, list | tuple) and contains_tensors(value) else None


def _find_tensors(path: str, value: Any) -> dict[str, PickledTensor]:
    """The set of named tensors in the saved object.

    That is the saved dictionary itself, or a dictionary inside it: under one of the usual keys, or
    the only one with tensors. Keys of nested dictionaries are joined with dots.
    """
    if not isinstance(value, dict):
        raise _no_tensors(path, "", value)
    if _has_tensors(value):
        return _checked(path, _flattened(path, value))
    sets: dict[str, Any] = {}
    for key, item in value.items():
        found = _flattened(path, item) if isinstance(item, dict) else None
        if any(each is not _ARRAY for each in (found or {}).values()):
            sets[str(key)] = found
        elif isinstance(item, UnknownObject) and item.has_tensors:
            sets[str(key)] = item
    usual = [key for key in _USUAL_KEYS if key in sets][:1]
    direct = [key for key, item in value.items() if key in sets and _has_tensors(item)]
    chosen = usual or direct or list(sets)
    if not chosen:
        raise CheckpointError(f"'{path}' holds no named tensors", remedy=_RIGHT_FILE)
    if len(chosen) > 1:
        listed = ", ".join(ascii(key[:80]) for key in chosen[:6])
        raise CheckpointError(
            f"'{path}' holds several sets of tensors ({listed})",
            remedy="save the right one to a file of its own",
        )
    found = sets[chosen[0]]
    if isinstance(found, UnknownObject):
        raise _no_tensors(path, f" as {chosen[0][:80]!a}", found)
    return _checked(path, found)


def _no_tensors(path: str, where: str, value: Any) -> CheckpointError:
    """The error for something else in the place of named tensors."""
    if isinstance(value, UnknownObject):
        what = f"an object of class {value.called[:200]!a}"
        remedy = "load it where that class is defined, and save its state_dict()"
    else:
        what = "one tensor" if isinstance(value, PickledTensor) else f"a {type(value).__name__}"
        remedy = "save a dictionary of tensors by name"
    return CheckpointError(f"'{path}' holds {what}{where}, not named tensors", remedy=remedy)


def _has_tensors(value: Any) -> bool:
    """Whether a value is an object with tensors, or has tensors as its own items."""
    if not isinstance(value, dict):
        return isinstance(value, UnknownObject)
    return any(isinstance(item, PickledTensor) for item in value.values())


def _flattened(path: str, value: Mapping[Any, Any]) -> _Found:
    """The tensors in a dictionary and in those within it, by their keys joined with dots."""
    found: _Found = {}
    waiting: list[tuple[str, Mapping[Any, Any], int]] = [("", value, 0)]
    entries = 0
    while waiting:
        prefix, items, depth = waiting.pop()
        entries += len(items)
        if entries > MAX_ENTRIES:
            raise CheckpointError(
                f"'{path}' has more than {MAX_ENTRIES} entries", remedy=_SAVE_TENSORS
            )
        inner = []
        for key, item in items.items():
            if not isinstance(key, str):
                if contains_tensors(item):
                    found[f"{prefix}{key if isinstance(key, int) else '...'}"] = _NO_TEXT
            elif isinstance(item, dict):
                if depth < _MAX_NESTING:
                    inner.append((f"{prefix}{key}.", item, depth + 1))
                elif contains_tensors(item):
                    found[prefix + key] = _DEEP
            elif (
                entry := item if isinstance(item, PickledTensor) else _obstacle(item)
            ) is not None:
                found[prefix + key] = _TWICE if prefix + key in found else entry
        waiting += reversed(inner)
    return found


def _checked(path: str, found: _Found) -> dict[str, PickledTensor]:
    """The tensors, if all of them can be used."""
    tensors: dict[str, PickledTensor] = {}
    wrapped = all(name.startswith(_PARALLEL_PREFIX) for name in found)
    for name, tensor in found.items():
        if not name or not name.isprintable() or len(name) > MAX_NAME:
            raise CheckpointError(
                f"'{path}': {name[:80]!a} is not a valid tensor name",
                remedy="save the tensor under another name",
            )
        if isinstance(tensor, _Obstacle):
            raise CheckpointError(f"'{path}': '{name}' {tensor.what}", remedy=tensor.remedy)
        tensors[name.removeprefix(_PARALLEL_PREFIX) if wrapped else name] = tensor
    return tensors
