"""Comparison of tensors in files with their recorded digests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from mergeloom.engine.output.manifest import Origin, TensorRecord
from mergeloom.engine.storage.digest import PIECE_BYTES, ContentDigest

_THREADS = 4


def tensor_digest(path: Path, record: TensorRecord) -> str | None:
    """Digest of a recorded tensor's bytes in the file ``path``; ``None`` if the file is too short.

    Takes `PIECE_BYTES` bytes of memory. The result equals that of
    `engine.storage.digest.TensorDigest`.

    Raises:
        OSError: the file cannot be read.
    """
    digest = ContentDigest()
    step = max(record.block_bytes, 1)
    with open(path, "rb", buffering=0) as file:
        file.seek(record.offset)
        for start in range(0, record.nbytes, step):
            block = ContentDigest()
            left = min(step, record.nbytes - start)
            while left:
                piece = file.read(min(left, PIECE_BYTES))
                if not piece:
                    return None
                block.update(piece)
                left -= len(piece)
            digest.update(block.digest())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), record.offset, record.nbytes, os.POSIX_FADV_DONTNEED)
    return digest.hexdigest()


def _fault_of_clone(
    record: TensorRecord, origin: Origin, found: str
) -> tuple[TensorRecord, str] | None:
    """The fault of a clone whose bytes have the digest ``found``; ``None`` if they equal those it
    was cloned from."""
    path = Path(origin.path)
    try:
        status = path.stat()
        if (status.st_size, status.st_mtime_ns) != (origin.size, origin.modified):
            return record, f"it was cloned from '{path}', which has changed: its bytes are unknown"
        expected = tensor_digest(path, replace(record, offset=origin.offset))
    except OSError as error:
        return record, f"it was cloned from '{path}', which cannot be read: {error.strerror}"
    return None if found == expected else (record, f"its bytes differ from those in '{path}'")


def verify_tensors(
    places: Iterable[tuple[Path, TensorRecord]],
    progress: Callable[[TensorRecord], None] | None = None,
) -> Iterator[tuple[TensorRecord, str]]:
    """Check tensors against their digests; yields those that differ, with the reason."""

    def check(place: tuple[Path, TensorRecord]) -> tuple[TensorRecord, str] | None:
        path, record = place
        try:
            found = tensor_digest(path, record)
        except OSError as error:
            return record, f"'{path.name}' cannot be read: {error.strerror}"
        if progress is not None:
            progress(record)
        if found is None:
            return record, f"'{path.name}' ends before it"
        if record.origin is not None:
            return _fault_of_clone(record, record.origin, found)
        return None if found == record.digest else (record, "its bytes differ from its digest")

    with ThreadPoolExecutor(_THREADS) as pool:
        yield from (wrong for wrong in pool.map(check, places) if wrong is not None)
