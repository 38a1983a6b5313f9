"""Headers of safetensors files, read and written by position; no tensor byte is touched.

    8 bytes: length N of the header, little endian
    N bytes: JSON, {name: {"dtype", "shape", "data_offsets": [start, stop]}, "__metadata__": {...}}
    the rest: the tensors' bytes, contiguous, without gap or overlap

Every byte of a file is untrusted: what is returned has been checked completely.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from engine.dtypes import BY_CODE, DType
from engine.errors import CheckpointError

MAX_HEADER_BYTES = 100 << 20
MAX_DIMENSIONS = 32
_MAX_ELEMENTS = 1 << 62
_PREFIX = 8


class Entry(NamedTuple):
    """One tensor: bytes ``[start, stop)`` of its file."""

    dtype: DType
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a file holds. ``entries`` stand in the order of the data; ``size`` is the file's
    length in bytes, ``modified`` its modification time in nanoseconds, ``raw`` the header's bytes.
    """

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    size: int
    modified: int
    raw: bytes


def read_header(path: Path) -> Header:
    """Read and validate the header of a safetensors file.

    Raises:
        CheckpointError: the file cannot be read, or breaks the format.
    """
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            raw = _raw_header(file.read(_PREFIX), status.st_size, path)
            content = file.read(raw)
    except OSError as error:
        raise CheckpointError(f"cannot read '{path}': {error.strerror}") from error
    if len(content) != raw:
        raise CheckpointError(f"'{path}' ends within its header: copy or download it again")
    entries, metadata = parse_header(content, status.st_size, str(path))
    return Header(entries, metadata, status.st_size, status.st_mtime_ns, content)


def parse_header(content: bytes, size: int, path: str) -> tuple[dict[str, Entry], dict[str, str]]:
    """Tensors and metadata of a header in a file of ``size`` bytes.

    Raises:
        CheckpointError: the format is broken.
    """
    try:
        document = json.loads(content, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"'{path}' has a broken header: {error}") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"'{path}' has a broken header: not a JSON object")
    metadata = document.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"'{path}' has a broken header: '__metadata__' is not text")
    data_start = _PREFIX + len(content)
    shapes: dict[tuple[int, ...], tuple[int, ...]] = {}
    entries = [
        (name, _entry(name, value, data_start, shapes, path)) for name, value in document.items()
    ]
    entries.sort(key=lambda item: (item[1].start, item[1].stop))
    end = data_start
    for name, entry in entries:
        if entry.start != end:
            how = "overlaps the tensor before it" if entry.start < end else "leaves a gap before it"
            raise CheckpointError(f"'{path}' is malformed: '{name}' {how}")
        end = entry.stop
    if end != size:
        how = "is truncated" if end > size else "has bytes that no tensor covers"
        raise CheckpointError(
            f"'{path}' {how}: its header describes {end} bytes, the file has {size}"
        )
    return dict(entries), metadata


def build_header(
    tensors: Sequence[tuple[str, DType, tuple[int, ...]]],
    metadata: Mapping[str, str],
    alignment: int,
) -> tuple[bytes, list[int]]:
    """First bytes of a file that holds ``tensors`` in this order, and each one's file offset.

    The header is padded with spaces so that the data starts at a multiple of ``alignment``.
    """
    document: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    ends = [0]
    for name, dtype, shape in tensors:
        stop = ends[-1] + _nbytes(dtype, shape)
        offsets = [ends[-1], stop]
        document[name] = {"dtype": dtype.code, "shape": list(shape), "data_offsets": offsets}
        ends.append(stop)
    content = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    start = -(-(_PREFIX + len(content)) // alignment) * alignment
    content = content.ljust(start - _PREFIX)
    header = len(content).to_bytes(_PREFIX, "little") + content
    return header, [start + end for end in ends[:-1]]


def _raw_header(prefix: bytes, size: int, path: Path) -> int:
    if len(prefix) < _PREFIX:
        raise CheckpointError(f"'{path}' is no safetensors file: it has {size} bytes")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES or length > size - _PREFIX:
        raise CheckpointError(
            f"'{path}' is no safetensors file, or truncated: its header would have {length} bytes, "
            f"the file has {size}"
        )
    return length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"'{key}' stands there twice")
            seen.add(key)
    return result


def _entry(
    name: str,
    value: object,
    data_start: int,
    shapes: dict[tuple[int, ...], tuple[int, ...]],
    path: str,
) -> Entry:
    try:
        if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError("it needs dtype, shape and data_offsets")
        dtype = BY_CODE.get(value["dtype"]) if isinstance(value["dtype"], str) else None
        if dtype is None:
            raise ValueError(f"its dtype {str(value['dtype'])[:40]!r} is not known")
        shape = _numbers(value["shape"], "shape")
        if len(shape) > MAX_DIMENSIONS:
            raise ValueError(f"it has {len(shape)} dimensions")
        offsets = _numbers(value["data_offsets"], "data_offsets")
        if len(offsets) != 2 or offsets[0] > offsets[1]:
            raise ValueError("its data_offsets are not a range")
        if offsets[1] - offsets[0] != _nbytes(dtype, shape):
            raise ValueError("its dtype and shape do not fit its data_offsets")
    except ValueError as error:
        raise CheckpointError(f"'{path}' is malformed: '{name[:200]}': {error}") from error
    shape = shapes.setdefault(shape, shape)
    return Entry(dtype, shape, data_start + offsets[0], data_start + offsets[1])


def _numbers(value: object, what: str) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise ValueError(f"its {what} is not a list")
    for item in value:
        if type(item) is not int or item < 0:
            raise ValueError(f"its {what} holds {str(item)[:40]!r}")
    return tuple(value)


def _nbytes(dtype: DType, shape: tuple[int, ...]) -> int:
    elements = 1
    for dimension in shape:
        elements *= dimension
        if elements > _MAX_ELEMENTS:
            raise ValueError("its shape is beyond any memory")
    return elements * dtype.size
