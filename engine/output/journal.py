"""The journal: the durable tensors of an unfinished output, with their digests.

One record per line: the xxh3-64 of the rest of the line, a space, JSON. Records are appended only
after their data is durable, so an undamaged record is true. If the process is killed, the last line
may be incomplete. Damaged lines are ignored, so that at worst a tensor is merged again. A run that
continues checks the data against the digests.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from mergeloom.engine.base import bounded_json
from mergeloom.engine.base.errors import OutputError, unreadable
from mergeloom.engine.base.records import dataclass, record
from mergeloom.engine.graph.graph import Graph
from mergeloom.engine.storage.file_system import FILES, Files, reported, write_all

VERSION = 1
START_OVER = "start over with --restart"
"""Remedy for records that cannot be used."""
MAX_BYTES = 1 << 30
MAX_RECORD_BYTES = 32 << 20
_to_json = json.JSONEncoder(separators=(",", ":")).encode


@record(frozen=True, slots=True)
class FinishedTensor:
    """One durable tensor: its digest over blocks of ``block_bytes`` bytes, its size in bytes (0 in
    older records) and, if it was quantised, the relative error ‖written - computed‖ / ‖computed‖.

    A clone has no digest: a run that continues clones it again at no cost.
    """

    file: str
    tensor: str
    digest: str
    block_bytes: int
    nbytes: int = 0
    error: float | None = None


@dataclass(frozen=True, slots=True)
class Totals:
    """The amount of output of a run: number of tensors, and bytes of their data."""

    tensors: int
    nbytes: int

    @classmethod
    def of(cls, graph: Graph) -> Totals:
        """The totals of a graph."""
        return cls(len(graph.writes), sum(write.nbytes for write in graph.writes))


@dataclass(frozen=True, slots=True)
class JournalContent:
    """The content of a journal.

    ``files`` are the names of all files of the run, ``totals`` how much it writes (``None`` in
    older journals); ``damaged`` counts unreadable records, except an incomplete last line.
    """

    fingerprint: str
    identity: Mapping[str, str]
    files: tuple[str, ...]
    finished: tuple[FinishedTensor, ...]
    damaged: int
    totals: Totals | None = None


def read_journal(path: Path) -> JournalContent | None:
    """Read a journal; ``None`` if there is none, or if it has no complete line.

    Raises:
        OutputError: it was written by a newer version, or its first record is damaged.
    """
    head: dict[str, Any] | None = None
    finished: list[FinishedTensor] = []
    damaged = 0
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                raise OutputError(f"'{path}' is too large for a journal", remedy=START_OVER)
            lines = _lines(file)
            first = next(lines, None)
            if first is None:
                return None
            head = _decode(first)
            if head is None or not _is_head(head):
                raise OutputError(f"'{path}' is damaged in its first record", remedy=START_OVER)
            if head["version"] != VERSION:
                raise OutputError(
                    f"'{path}' has version {head['version']}, this program writes {VERSION}",
                    remedy=f"finish it with the program that began it, or {START_OVER}",
                )
            for line in lines:
                entry = _finished(_decode(line))
                if entry is None:
                    damaged += 1
                else:
                    finished.append(entry)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(path, error, OutputError) from error
    return JournalContent(
        head["fingerprint"],
        head["identity"],
        tuple(head["files"]),
        tuple(finished),
        damaged,
        _totals(head),
    )


class Journal:
    """Appends records; `append` returns when they are durable."""

    def __init__(self, path: Path, files: Files = FILES) -> None:
        self._path = path
        self._files = files
        with reported("write", path):
            self._fd = files.open(path, os.O_RDWR | os.O_CREAT)
            try:
                self._end = self._cut_incomplete_line()
            except BaseException:
                self.close()
                raise

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been recorded yet, not even the first record."""
        return self._end == 0

    def begin(
        self,
        fingerprint: str,
        identity: Mapping[str, str],
        files: Sequence[str],
        totals: Totals | None = None,
    ) -> None:
        """Write the first record of a new journal; ``files`` are the names of all files of the
        run."""
        head = {
            "version": VERSION,
            "fingerprint": fingerprint,
            "identity": dict(identity),
            "files": list(files),
        }
        if totals is not None:
            head |= {"tensors": totals.tensors, "bytes": totals.nbytes}
        self._append([head])
        with reported("write", self._path):
            self._files.sync_directory(self._path.parent)

    def append(self, finished: Iterable[FinishedTensor]) -> None:
        """Record tensors whose data is durable.

        Raises:
            RunError: the disk is full, or writing fails.
        """
        self._append(
            {
                "file": entry.file,
                "tensor": entry.tensor,
                "digest": entry.digest,
                "block_bytes": entry.block_bytes,
                "bytes": entry.nbytes,
                **({} if entry.error is None else {"error": entry.error}),
            }
            for entry in finished
        )

    def close(self) -> None:
        self._files.close(self._fd)

    def _append(self, records: Iterable[Mapping[str, Any]]) -> None:
        content = b"".join(_encode(record) for record in records)
        with reported("write", self._path):
            self._end = write_all(self._files, self._fd, content, self._end)
            self._files.sync(self._fd)

    def _cut_incomplete_line(self) -> int:
        content = self._path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            self._files.truncate(self._fd, whole)
        return whole


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Complete lines without line ends; lines longer than any record are split."""
    while line := file.readline(MAX_RECORD_BYTES):
        if line.endswith(b"\n"):
            yield line[:-1]
        elif len(line) == MAX_RECORD_BYTES:
            yield line


def _encode(record: Mapping[str, Any]) -> bytes:
    text = _to_json(record).encode()
    return xxhash.xxh3_64_hexdigest(text).encode() + b" " + text + b"\n"


def _decode(line: bytes) -> dict[str, Any] | None:
    checksum, _, text = line.partition(b" ")
    if xxhash.xxh3_64_hexdigest(text).encode() != checksum:
        return None
    try:
        record = bounded_json.parse(text)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _is_head(record: Mapping[str, Any]) -> bool:
    """Whether a record has the form written by `Journal.begin`; a checksum does not prove that."""
    identity, files = record.get("identity"), record.get("files")
    return (
        isinstance(record.get("version"), int)
        and isinstance(record.get("fingerprint"), str)
        and isinstance(identity, dict)
        and all(isinstance(value, str) for value in identity.values())
        and isinstance(files, list)
        and all(isinstance(name, str) for name in files)
    )


def _finished(record: Mapping[str, Any] | None) -> FinishedTensor | None:
    if record is None:
        return None
    file, tensor, digest = (record.get(key) for key in ("file", "tensor", "digest"))
    if not (isinstance(file, str) and isinstance(tensor, str) and isinstance(digest, str)):
        return None
    block, size = _size(record.get("block_bytes")), _size(record.get("bytes", 0))
    if block is None or size is None:
        return None
    error = record.get("error")
    known = error if isinstance(error, float) and math.isfinite(error) else None
    return FinishedTensor(file, tensor, digest, block, size, known)


def _totals(head: Mapping[str, Any]) -> Totals | None:
    tensors, nbytes = _size(head.get("tensors")), _size(head.get("bytes"))
    return None if tensors is None or nbytes is None else Totals(tensors, nbytes)


def _size(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None
