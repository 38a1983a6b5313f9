"""Read headers of GGUF files, without tensor data.

    4 bytes "GGUF", version (u32), number of tensors (u64), number of values (u64)
    values:   key, type (u32), content; an array has a type (u32), a count (u64) and its items
    tensors:  name, number of dimensions (u32), dimensions (u64 each, fastest-varying first),
              type (u32), offset (u64) from the start of the data
    data:     starts, like each tensor, at a multiple of ``general.alignment`` (default 32)

Strings are a length (u64) and UTF-8 text. Everything is little-endian. The format is specified in
docs/gguf.md of ggml. Files are untrusted: everything returned has been validated.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

from mergeloom.engine.base.dtypes import BY_CODE, GGML, DType
from mergeloom.engine.base.errors import COPY_AGAIN, CheckpointError
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.storage.source import Source, read_part
from mergeloom.engine.storage.source_file import planning_reader

MAGIC = b"GGUF"
ALIGNMENT = "general.alignment"
DEFAULT_ALIGNMENT = 32

MAX_HEADER_BYTES = 512 << 20
MAX_TENSORS = 1_000_000
MAX_VALUES = 100_000
MAX_DIMENSIONS = 4
MAX_NAME = 1000
_MAX_ALIGNMENT = 1 << 20
_MAX_ELEMENTS = 1 << 62
_OTHER_WEIGHTS = "merge its original weights"
_FIRST_READ = 1 << 20
"""Bytes read at first; most headers are shorter."""

_NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
"""Value types of fixed size, and their `struct` format characters."""
_STRING, _ARRAY = 8, 9

TYPES: Mapping[int, DType] = {
    0: BY_CODE["F32"],
    1: BY_CODE["F16"],
    24: BY_CODE["I8"],
    25: BY_CODE["I16"],
    26: BY_CODE["I32"],
    27: BY_CODE["I64"],
    28: BY_CODE["F64"],
    30: BY_CODE["BF16"],
    **GGML,
}
"""Tensor types by their number in a file."""


class GgufTensor(NamedTuple):
    """One tensor, at byte ``offset`` of its file; ``shape`` has the slowest-varying dimension
    first."""

    dtype: DType
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True, eq=False)
class StringArray:
    """An array of ``count`` strings, decoded on demand; ``raw`` has their lengths and text."""

    raw: bytes
    count: int

    def __len__(self) -> int:
        return self.count

    @cached_property
    def values(self) -> tuple[str, ...]:
        """The strings; invalid UTF-8 becomes replacement characters."""
        return tuple(self._decoded())

    def _decoded(self) -> Iterator[str]:
        at, raw = 0, self.raw
        for _ in range(self.count):
            start = at + 8
            at = start + int.from_bytes(raw[at:start], "little")
            yield raw[start:at].decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """The header of a file.

    ``values`` are numbers, bools, strings, tuples of numbers and `StringArray`; ``raw`` has the
    bytes of the header.
    """

    values: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]
    raw: bytes


class _Incomplete(Exception):
    """The header is longer than the bytes read so far."""


class _Malformed(Exception):
    """The header is malformed; the text says how."""


class _Unsupported(Exception):
    """The file is valid but not supported; the text says why, ``remedy`` what to do."""

    def __init__(self, why: str, remedy: str) -> None:
        super().__init__(why)
        self.remedy = remedy


def read_gguf(source: Source) -> GgufHeader:
    """Read and validate the header of a GGUF file.

    Raises:
        CheckpointError: the file cannot be read, is malformed, or has a tensor of unknown type.
    """
    with planning_reader(source) as reader:
        length = min(_FIRST_READ, source.size)
        while True:
            content = read_part(reader, 0, length)
            header = parse_gguf(content, source.size, source.name)
            if header is not None:
                return header
            assert length < source.size, "a header in the whole file is read or refused"
            if length >= MAX_HEADER_BYTES:
                raise CheckpointError(
                    f"'{source.name}' has a header of more than {MAX_HEADER_BYTES >> 20} MiB",
                    remedy=_OTHER_WEIGHTS,
                )
            length = min(4 * length, source.size, MAX_HEADER_BYTES)


def parse_gguf(content: bytes, size: int, path: str) -> GgufHeader | None:
    """Parse the header at the start of a file of ``size`` bytes; ``path`` is for messages. Returns
    ``None`` if the header is longer than ``content``.

    Raises:
        CheckpointError: the header is malformed, or has a tensor of unknown type.
    """
    try:
        return _Parser(content, size, path).header()
    except _Incomplete:
        return None
    except _Malformed as error:
        raise CheckpointError(
            f"'{path}' is not a valid GGUF file: {error}", remedy=COPY_AGAIN
        ) from error
    except _Unsupported as error:
        raise CheckpointError(f"'{path}' {error}", remedy=error.remedy) from error


class _Parser:
    """Parses one header from the first bytes of a file of ``size`` bytes."""

    def __init__(self, content: bytes, size: int, path: str) -> None:
        self._content = content
        self._size = size
        self._path = path
        self._at = 0

    def header(self) -> GgufHeader:
        if self._content[:4] != MAGIC[: len(self._content)]:
            raise _Malformed("it does not begin with 'GGUF'")
        self._at = 4
        version = self._number("I")
        if version not in (2, 3):
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            if swapped in (2, 3):
                raise _Unsupported(
                    "is a big-endian GGUF file, which is not supported",
                    f"gguf-convert-endian '{self._path}' little (of the package gguf) converts it",
                )
            raise _Unsupported(
                f"has version {version} of GGUF, and only versions 2 and 3 are supported",
                _OTHER_WEIGHTS,
            )
        tensors, values = self._number("Q"), self._number("Q")
        if tensors > MAX_TENSORS:
            raise _Malformed(f"its header claims {tensors} tensors, more than {MAX_TENSORS}")
        if values > MAX_VALUES:
            raise _Malformed(f"its header claims {values} values, more than {MAX_VALUES}")
        found = self._values(values)
        alignment = found.get(ALIGNMENT, DEFAULT_ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment <= _MAX_ALIGNMENT or alignment % 8:
            raise _Malformed(
                f"'{ALIGNMENT}' must be a multiple of 8 from 8 to {_MAX_ALIGNMENT} bytes"
            )
        described = self._tensors(tensors)
        end = self._at
        start = -(-end // alignment) * alignment
        entries = {
            name: self._tensor_at(name, dtype, shape, start, offset, alignment)
            for name, (dtype, shape, offset) in described.items()
        }
        _check_apart(entries)
        return GgufHeader(found, entries, self._content[:end])

    def _values(self, count: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(count):
            key = self._name("key")
            if key in found:
                raise _Malformed(f"it has the key '{key}' twice")
            found[key] = self._value(key, self._number("I"))
        return found

    def _value(self, key: str, kind: int) -> Any:
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if kind == _STRING:
            return self._text(key)
        if kind != _ARRAY:
            raise _Malformed(f"'{key}' has the unknown value type {kind}")
        inner, count = self._number("I"), self._number("Q")
        if inner in _NUMBERS:
            letter = _NUMBERS[inner]
            raw = self._take(count * struct.calcsize(letter))
            return struct.unpack(f"<{count}{letter}", raw)
        if inner != _STRING:
            what = "an array of arrays" if inner == _ARRAY else f"an array of type {inner}"
            raise _Unsupported(f"has {what} as '{key}', which is not supported", _OTHER_WEIGHTS)
        return self._strings(count)

    def _strings(self, count: int) -> StringArray:
        if count > (self._size - self._at) // 8:
            raise _Malformed(f"its header claims {count} strings, more than fit into the file")
        content, start = self._content, self._at
        at, end, most = start, len(content), self._size
        for _ in range(count):
            stop = at + 8
            at = stop + int.from_bytes(content[at:stop], "little")
            if at > end or stop > end:
                if at > most:
                    raise _Malformed("a string extends beyond the end of the file")
                raise _Incomplete
        self._at = at
        return StringArray(content[start:at], count)

    def _tensors(self, count: int) -> dict[str, tuple[DType, tuple[int, ...], int]]:
        found: dict[str, tuple[DType, tuple[int, ...], int]] = {}
        for _ in range(count):
            name = self._name("tensor name")
            if name in found:
                raise _Malformed(f"it has the tensor '{name}' twice")
            dimensions = self._number("I")
            if dimensions > MAX_DIMENSIONS:
                raise _Malformed(
                    f"'{name}' has {dimensions} dimensions, more than {MAX_DIMENSIONS}"
                )
            shape = tuple(self._number("Q") for _ in range(dimensions))[::-1]
            kind, offset = self._number("I"), self._number("Q")
            dtype = TYPES.get(kind)
            if dtype is None:
                raise _Unsupported(
                    f"has the tensor '{name}' of the unknown type {kind}", _OTHER_WEIGHTS
                )
            if math.prod(shape) > _MAX_ELEMENTS:
                raise _Malformed(f"'{name}' has an impossibly large shape")
            if (shape[-1] if shape else 1) % dtype.block:
                raise _Malformed(
                    f"rows of '{name}' have {shape[-1] if shape else 1} elements, not a multiple "
                    f"of the {dtype.block} in a block of {dtype.code}"
                )
            found[name] = dtype, shape, offset
        return found

    def _tensor_at(
        self,
        name: str,
        dtype: DType,
        shape: tuple[int, ...],
        start: int,
        offset: int,
        alignment: int,
    ) -> GgufTensor:
        if offset % alignment:
            raise _Malformed(f"'{name}' is not aligned to {alignment} bytes")
        if start + offset + dtype.nbytes(math.prod(shape)) > self._size:
            raise _Malformed(f"it is truncated: '{name}' extends beyond its end")
        return GgufTensor(dtype, shape, start + offset)

    def _name(self, what: str) -> str:
        length = self._number("Q")
        if not 0 < length <= MAX_NAME:
            raise _Malformed(f"it has a {what} of {length} bytes, not 1 to {MAX_NAME}")
        try:
            name = self._take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise _Malformed(f"a {what} is not UTF-8") from error
        if not name.isprintable():
            raise _Malformed(f"{name[:80]!a} is not a valid {what}")
        return name

    def _text(self, key: str) -> str:
        try:
            return self._take(self._number("Q")).decode("utf-8")
        except UnicodeDecodeError as error:
            raise _Malformed(f"'{key}' is not UTF-8") from error

    def _number(self, letter: str) -> Any:
        (value,) = struct.unpack("<" + letter, self._take(struct.calcsize("<" + letter)))
        return value

    def _take(self, count: int) -> bytes:
        start = self._at
        stop = start + count
        if stop > len(self._content):
            if stop > self._size:
                raise _Malformed("it is truncated, or a length in its header is wrong")
            raise _Incomplete
        self._at = stop
        return self._content[start:stop]


def _check_apart(tensors: Mapping[str, GgufTensor]) -> None:
    end, before = 0, ""
    for name, (dtype, shape, offset) in sorted(tensors.items(), key=lambda item: item[1].offset):
        nbytes = dtype.nbytes(math.prod(shape))
        if nbytes and offset < end:
            raise _Malformed(f"'{name}' overlaps '{before}'")
        end, before = max(end, offset + nbytes), name
