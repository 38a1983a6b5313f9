"""The journal: which tensors of an unfinished output are durable, and their digests.

One record a line: the xxh3-64 of the rest of the line, a space, JSON. Records are appended only
after the data they speak of is durable, so a record that reads well speaks the truth. A torn last
line is what a kill leaves behind; a damaged line elsewhere is dropped, which at worst means that
a tensor is merged again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from engine.errors import OutputError, RunError

VERSION = 1


@dataclass(frozen=True, slots=True)
class Finished:
    """One tensor that is durable: its digest over blocks of ``block_bytes`` bytes."""

    file: str
    tensor: str
    digest: str
    block_bytes: int


@dataclass(frozen=True, slots=True)
class JournalContent:
    """What a journal says.

    ``files`` are the shards of its run; ``damaged`` counts unreadable records other than a torn
    last one.
    """

    fingerprint: str
    identity: Mapping[str, str]
    files: tuple[str, ...]
    finished: tuple[Finished, ...]
    damaged: int


def read_journal(path: Path) -> JournalContent | None:
    """Read a journal; ``None`` if there is none, or nothing of it became durable.

    Raises:
        OutputError: it was written by a newer version, or its first record is damaged.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OutputError(f"cannot read '{path}': {error.strerror}") from error
    records = [_decode(line) for line in lines[:-1]]
    if not records:
        return None
    head = records[0]
    if head is None or "fingerprint" not in head:
        raise OutputError(f"'{path}' is damaged in its first record: start anew with --restart")
    if head.get("version") != VERSION:
        raise OutputError(
            f"'{path}' has version {head.get('version')}, this program writes {VERSION}: "
            "finish it with the program that began it, or start anew with --restart"
        )
    finished = [
        Finished(record["file"], record["tensor"], record["digest"], record["block_bytes"])
        for record in records[1:]
        if record is not None
    ]
    return JournalContent(
        fingerprint=head["fingerprint"],
        identity=head.get("identity", {}),
        files=tuple(head.get("files", ())),
        finished=tuple(finished),
        damaged=sum(record is None for record in records[1:]),
    )


class Journal:
    """Appends records. `append` returns when they are durable."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            self._cut_torn_tail()
        except OSError as error:
            raise self._failed(error) from error

    def begin(self, fingerprint: str, identity: Mapping[str, str], files: Sequence[str]) -> None:
        """Write the first record of a new journal; ``files`` are the shards to come."""
        head = {
            "version": VERSION,
            "fingerprint": fingerprint,
            "identity": dict(identity),
            "files": list(files),
        }
        self._append([head])

    def append(self, finished: Iterable[Finished]) -> None:
        """Record tensors whose data is durable.

        Raises:
            RunError: the disk is full, or refuses otherwise.
        """
        self._append(
            {
                "file": entry.file,
                "tensor": entry.tensor,
                "digest": entry.digest,
                "block_bytes": entry.block_bytes,
            }
            for entry in finished
        )

    def close(self) -> None:
        os.close(self._fd)

    def _append(self, records: Iterable[Mapping[str, Any]]) -> None:
        content = b"".join(_encode(record) for record in records)
        try:
            while content:
                content = content[os.write(self._fd, content) :]
            os.fsync(self._fd)
        except OSError as error:
            raise self._failed(error) from error

    def _cut_torn_tail(self) -> None:
        size = os.fstat(self._fd).st_size
        tail = os.pread(self._fd, size, 0)
        whole = tail.rfind(b"\n") + 1
        if whole != size:
            os.ftruncate(self._fd, whole)

    def _failed(self, error: OSError) -> RunError:
        return RunError(f"cannot write '{self._path}': {error.strerror}")


def _encode(record: Mapping[str, Any]) -> bytes:
    text = json.dumps(record, separators=(",", ":")).encode()
    return xxhash.xxh3_64_hexdigest(text).encode() + b" " + text + b"\n"


def _decode(line: bytes) -> dict[str, Any] | None:
    checksum, _, text = line.partition(b" ")
    if xxhash.xxh3_64_hexdigest(text).encode() != checksum:
        return None
    record: dict[str, Any] = json.loads(text)
    return record
