"""Reads and builds headers of safetensors files; no tensor bytes are read.

    8 bytes: length N of the header, little endian
    N bytes: JSON, {name: {"dtype", "shape", "data_offsets": [start, stop]}, "__metadata__": {...}}
    the rest: the tensors' bytes, contiguous, without gap or overlap

Files are untrusted: everything returned has been validated. The JSON is parsed tensor by tensor, so
that memory depends on the tensors described, not on arbitrary JSON (``[[],[],...`` takes 20 bytes
of memory per byte).
"""

from __future__ import annotations

import codecs
import hashlib
import json
import math
import re
import sys
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from json.encoder import encode_basestring
from typing import Any, NamedTuple, TypeVar

from mergeloom.engine.base.dtypes import BY_CODE, DType
from mergeloom.engine.base.errors import COPY_AGAIN, CheckpointError
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.storage.source import Source, read_part
from mergeloom.engine.storage.source_file import planning_reader

MAX_HEADER_BYTES = 100 << 20
MAX_DIMENSIONS = 32
MAX_NAME = 1000
MAX_TENSORS = 1_000_000
MAX_METADATA_BYTES = 16 << 20
MAX_METADATA_ENTRIES = 100_000
_MAX_ELEMENTS = 1 << 62
_MAX_VALUE = 2000
_PREFIX = 8
_METADATA = "__metadata__"
"""The member of a header that is no tensor."""
_LFS_POINTER = b"version https://git-lfs"
"""The first bytes of a Git LFS pointer file."""

_SPACE = rb"[ \t\n\r]*"
_NUMBER = rb"(?:0|[1-9]\d{0,18})"


def _tokens(*patterns: bytes) -> re.Pattern[bytes]:
    return re.compile(_SPACE + _SPACE.join(patterns) + _SPACE)


_END = _tokens(rb"\}")
_NEXT = _tokens(rb"([,}])")
_METADATA_START = re.compile(r"(\{[ \t\n\r]*\}|\{)[ \t\n\r]*")
_METADATA_COLON = re.compile(r"[ \t\n\r]*:[ \t\n\r]*")
_METADATA_NEXT = re.compile(r"[ \t\n\r]*([,}])[ \t\n\r]*")
_KEY = _tokens(rb'"([^"\\\x00-\x1f]*(?:\\.[^"\\\x00-\x1f]*)*)"', rb":")
_TENSOR = re.compile(
    rb'"([^"\\\x00-\x1f]{0,%d})":\{("dtype":"\w+","shape":\[[\d,]{0,700}\]),' % MAX_NAME
    + rb'"data_offsets":\[(%s),(%s)\]\}([,}])' % (_NUMBER, _NUMBER)
)
"""A tensor as all known writers format it; other formats are parsed by the slower
`_Scanner._unusual`."""


class Entry(NamedTuple):
    """One tensor: bytes ``[start, stop)`` of its file."""

    dtype: DType
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a file.

    ``entries`` are in the order of their data; ``digest`` is the hexadecimal digest of the header's
    bytes.
    """

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    digest: str


T = TypeVar("T")


class HeaderReader:
    """Reads headers of many files, and parses equal ones only once: merged models usually share
    theirs."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], Header] = {}
        self._worked_out: dict[Hashable, Any] = {}
        self._parsing = threading.Lock()  # threads that parse at once only hinder each other

    def read(self, source: Source) -> Header:
        """Read and validate the header of a safetensors file. Thread-safe.

        Raises:
            CheckpointError: the file cannot be read, or is malformed.
        """
        with planning_reader(source) as reader:
            prefix = read_part(reader, 0, min(_PREFIX, source.size))
            length = _header_length(prefix, source.size, source.name)
            content = read_part(reader, _PREFIX, _PREFIX + length)
        digest = hashlib.blake2b(content, digest_size=12).hexdigest()
        with self._parsing:
            known = self._known.get((digest, source.size))
            if known is None:
                known = Header(*parse_header(content, source.size, source.name), digest)
                self._known[digest, source.size] = known
        return known

    def once(self, key: Hashable, work: Callable[[], T]) -> T:
        """The result of ``work``, called once for equal keys: what files with the same contents
        say of a checkpoint."""
        if key not in self._worked_out:
            self._worked_out[key] = work()
        found: T = self._worked_out[key]
        return found


def read_header(source: Source) -> Header:
    """The header of one file; raises like `HeaderReader.read`."""
    return HeaderReader().read(source)


def parse_header(content: bytes, size: int, path: str) -> tuple[dict[str, Entry], dict[str, str]]:
    """Tensors and metadata of a header in a file of ``size`` bytes.

    Raises:
        CheckpointError: the header is malformed.
    """
    try:
        entries, metadata = _Scanner(content).scan()
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"'{path}' has a broken header: {error}", remedy=COPY_AGAIN
        ) from error
    except _Unsupported as error:
        raise CheckpointError(
            f"'{path}' has an unsupported tensor: {error}",
            remedy="save it in another dtype, or without this tensor",
        ) from error
    except _Malformed as error:
        raise CheckpointError(f"'{path}' is malformed: {error}", remedy=COPY_AGAIN) from error
    end = _PREFIX + len(content)
    for name, (_, _, start, stop) in entries.items():
        if start != end:
            how = "overlaps the tensor before it" if start < end else "leaves a gap before it"
            raise CheckpointError(f"'{path}' is malformed: '{name}' {how}", remedy=COPY_AGAIN)
        end = stop
    if end != size:
        how = "is truncated" if end > size else "has bytes after its last tensor"
        raise CheckpointError(
            f"'{path}' {how}: its header describes {end} bytes, the file has {size}",
            remedy=COPY_AGAIN,
        )
    return entries, metadata


def build_header(
    tensors: Sequence[tuple[str, DType, tuple[int, ...]]],
    metadata: Mapping[str, str],
    alignment: int,
    remainder: int = 0,
) -> tuple[bytes, list[int]]:
    """The header of a file with ``tensors`` in this order, and the file offset of each tensor.

    The header is padded with spaces so that the data starts ``remainder`` bytes after a multiple
    of ``alignment``.
    """
    text = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
    members = [f'"__metadata__":{text(dict(metadata))}'] if metadata else []
    kinds: dict[tuple[int, tuple[int, ...]], tuple[str, int]] = {}  # shared by most tensors
    ends = [0]
    for name, dtype, shape in tensors:
        kind = kinds.get((id(dtype), shape))
        if kind is None:
            described = text({"dtype": dtype.code, "shape": list(shape)}).removesuffix("}")
            kind = kinds[id(dtype), shape] = described, dtype.nbytes(math.prod(shape))
        start, stop = ends[-1], ends[-1] + kind[1]
        members.append(f'{encode_basestring(name)}:{kind[0]},"data_offsets":[{start},{stop}]}}')
        ends.append(stop)
    content = f"{{{','.join(members)}}}".encode()
    start = -(-(_PREFIX + len(content) - remainder) // alignment) * alignment + remainder
    content = content.ljust(start - _PREFIX)
    header = len(content).to_bytes(_PREFIX, "little") + content
    return header, [start + end for end in ends[:-1]]


def _header_length(prefix: bytes, size: int, path: str) -> int:
    if len(prefix) < _PREFIX:
        raise CheckpointError(
            f"'{path}' is not a safetensors file: it has only {size} bytes", remedy=COPY_AGAIN
        )
    length = int.from_bytes(prefix, "little")
    if prefix == _LFS_POINTER[:_PREFIX]:
        raise CheckpointError(
            f"'{path}' is a Git LFS pointer, not the weights",
            remedy="run 'git lfs pull' in its directory",
        )
    if length > MAX_HEADER_BYTES or length > size - _PREFIX:
        raise CheckpointError(
            f"'{path}' is truncated or not a safetensors file: its header would have {length} "
            f"bytes, the file has {size}",
            remedy=COPY_AGAIN,
        )
    return length


class _Malformed(Exception):
    """JSON that does not describe a tensor."""


class _Unsupported(_Malformed):
    """A tensor that may be valid but is not supported."""


class _Scanner:
    """Parses the members of the header's JSON object one by one.

    All methods raise `ValueError` for invalid JSON and `_Malformed` for invalid tensors.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._data_start = _PREFIX + len(content)
        self._layouts: dict[bytes, _Layout] = {}
        """By text; a tensor with one of these only needs its offsets to be read."""
        self._entries: dict[str, Entry] = {}
        self._metadata: dict[str, str] | None = None

    def scan(self) -> tuple[dict[str, Entry], dict[str, str]]:
        """Tensors in the order of their data, and metadata."""
        if not self._content.startswith(b"{"):
            raise ValueError("not a JSON object")
        empty = _END.match(self._content, 1)
        position, more = (1, True) if empty is None else (empty.end(), False)
        while more:
            position, more = self._usual(position)
            if more:
                following = _NEXT.match(self._content, self._unusual(position))
                if following is None:
                    raise ValueError(f"',' or '}}' expected at byte {position}")
                position, more = following.end(), following[1] == b","
            if len(self._entries) > MAX_TENSORS:
                raise ValueError(f"it has more than {MAX_TENSORS} tensors")
        if self._content[position:].strip(b" \t\n\r"):
            raise ValueError(f"unexpected content after its end, at byte {position}")
        starts = [start for _, _, start, _ in self._entries.values()]
        if starts != sorted(starts):
            by_place = sorted(self._entries.items(), key=lambda item: item[1][2:])
            self._entries = dict(by_place)
        return self._entries, self._metadata or {}

    def _usual(self, position: int) -> tuple[int, bool]:
        """Parse members from ``position`` on until one has a layout that no earlier one has, or is
        not formatted as usual; the position after them, and whether there are more."""
        entries, layouts, data_start = self._entries, self._layouts, self._data_start
        new, intern = tuple.__new__, sys.intern
        before, stop = b"", 0  # the end of the tensor before, where the next one starts
        for found in _TENSOR.finditer(self._content, position):
            if found.start() != position:
                break
            raw, described, first, last, following = found.groups()
            name = intern(raw.decode())  # merged models share names
            if name in entries or name == _METADATA or not name.isprintable():
                break  # which is an error, or no tensor
            layout = layouts.get(described)
            start = stop if first == before else int(first) + data_start
            before, stop = last, int(last) + data_start
            if layout is None or stop - start != layout[2]:
                break
            entries[name] = new(Entry, (layout[0], layout[1], start, stop))
            position = found.end()
            if following == b"}":
                return position, False
        return position, True

    def _unusual(self, position: int) -> int:
        """Parse the member at ``position``; the position after it."""
        name, value = self._name(position)
        if len(name) > MAX_NAME or not name.isprintable():
            raise ValueError(f"{name[:80]!r} is not a valid tensor name")
        if name in self._entries or (name == _METADATA and self._metadata is not None):
            raise ValueError(f"it has '{name}' twice")
        if name == _METADATA:
            self._metadata, end = self._texts(value)
            return end
        try:
            layout, start, stop, end = self._described(value)
        except _Malformed as error:
            raise type(error)(f"'{name}': {error}") from error
        usual = _TENSOR.match(self._content, position)
        if usual is not None:
            self._layouts[usual[2]] = layout
        begin = self._data_start
        self._entries[sys.intern(name)] = Entry(layout[0], layout[1], begin + start, begin + stop)
        return end

    def _name(self, position: int) -> tuple[str, int]:
        """The name at ``position``, and the position of its value."""
        match = _KEY.match(self._content, position, position + 8 * MAX_NAME)
        if match is None:
            raise ValueError(f"a name of at most {MAX_NAME} characters expected at byte {position}")
        name = match[1].decode()
        return json.loads(f'"{name}"') if "\\" in name else name, match.end()

    def _described(self, position: int) -> tuple[_Layout, int, int, int]:
        """The layout and data offsets of the tensor described at ``position``, and the position
        after it."""
        stop = self._content.find(b"}", position, position + _MAX_VALUE) + 1
        if self._content[position : position + 1] != b"{":
            raise _Malformed("it needs dtype, shape and data_offsets, and nothing else")
        if not stop:
            raise ValueError(f"an object of at most {_MAX_VALUE} bytes expected at byte {position}")
        text = self._content[position:stop].decode()
        value = json.loads(text, object_pairs_hook=_unique)
        if value.keys() != {"dtype", "shape", "data_offsets"}:
            raise _Malformed("it needs dtype, shape and data_offsets, and nothing else")
        offsets = _numbers(value["data_offsets"], "data_offsets")
        if len(offsets) != 2:
            raise _Malformed("its data_offsets are not a range")
        layout = _layout(value["dtype"], value["shape"])
        first, last = offsets
        if first > last:
            raise _Malformed("its data_offsets are not a range")
        if last - first != layout[2]:
            raise _Malformed("its dtype and shape do not fit its data_offsets")
        return layout, first, last, stop

    def _texts(self, position: int) -> tuple[dict[str, str], int]:
        """The metadata at ``position``, and the position after it."""
        window = self._content[position : position + MAX_METADATA_BYTES]
        text = codecs.getincrementaldecoder("utf-8")().decode(window)
        if text.startswith("null"):
            return {}, position + len("null")
        result: dict[str, str] = {}
        match = _METADATA_START.match(text)
        while match is not None and match[1] in {"{", ","}:
            key, at = _metadata_text(text, match.end())
            colon = _METADATA_COLON.match(text, at)
            if colon is None:
                break
            value, at = _metadata_text(text, colon.end())
            if key in result:
                raise ValueError(f"'__metadata__' has {key[:80]!r} twice")
            result[key] = value
            if len(result) > MAX_METADATA_ENTRIES:
                raise ValueError(f"'__metadata__' has more than {MAX_METADATA_ENTRIES} entries")
            match = _METADATA_NEXT.match(text, at)
        if match is None or not match[1].endswith("}"):
            raise ValueError("'__metadata__' is not text")
        return result, position + len(text[: match.end()].encode())


def _metadata_text(text: str, position: int) -> tuple[str, int]:
    if text[position : position + 1] != '"':
        raise ValueError("'__metadata__' is not text")
    value: str
    value, end = json.JSONDecoder().raw_decode(text, position)
    return value, end


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("the description of a tensor has a key twice")
    return result


_Layout = tuple[DType, tuple[int, ...], int]
"""Dtype, shape and size in bytes of a tensor."""


def _layout(code: object, sizes: object) -> _Layout:
    """Dtype, shape and size in bytes of a tensor."""
    dtype = BY_CODE.get(code) if isinstance(code, str) else None
    if dtype is None:
        unreadable = _Unsupported if isinstance(code, str) else _Malformed
        raise unreadable(f"its dtype {str(code)[:40]!r} is unknown")
    shape = _numbers(sizes, "shape")
    if len(shape) > MAX_DIMENSIONS:
        raise _Malformed(f"it has {len(shape)} dimensions, more than {MAX_DIMENSIONS}")
    if math.prod(max(size, 1) for size in shape) > _MAX_ELEMENTS:
        raise _Malformed("its shape is impossibly large")
    if (shape[-1] if shape else 1) % dtype.block:
        raise _Malformed("its rows are not whole numbers of bytes")
    return dtype, shape, dtype.nbytes(math.prod(shape))


def _numbers(value: object, what: str) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise _Malformed(f"its {what} is not a list of numbers")
    for item in value:
        if type(item) is not int or item < 0:
            raise _Malformed(f"its {what} has {str(item)[:40]!r} instead of a number from 0 on")
    return tuple(value)
