"""Comparing the tensors of an output with their digests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engine.digest import TensorDigest
from engine.manifest import TensorRecord

_THREADS = 4


def digest_of(path: Path, record: TensorRecord) -> str | None:
    """Digest of the bytes at a record's place in the file ``path``; ``None`` if it ends early.

    Reads one block of ``block_bytes`` at a time.
    """
    block_bytes = max(record.block_bytes, 1)
    digest = TensorDigest(-(-record.nbytes // block_bytes))
    buffer = memoryview(bytearray(min(block_bytes, max(record.nbytes, 1))))
    with open(path, "rb", buffering=0) as file:
        file.seek(record.offset)
        for index, start in enumerate(range(0, record.nbytes, block_bytes)):
            block = buffer[: min(block_bytes, record.nbytes - start)]
            done = 0
            while done < len(block):
                count = file.readinto(block[done:])
                if not count:
                    return None
                done += count
            digest.add(index, block)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), record.offset, record.nbytes, os.POSIX_FADV_DONTNEED)
    return digest.hexdigest()


def verify_tensors(
    places: Iterable[tuple[Path, TensorRecord]],
    progress: Callable[[TensorRecord], None] | None = None,
) -> list[tuple[TensorRecord, str]]:
    """Check tensors against their digests; returns what is wrong, with the reason."""

    def check(place: tuple[Path, TensorRecord]) -> tuple[TensorRecord, str] | None:
        path, record = place
        try:
            found = digest_of(path, record)
        except OSError as error:
            return record, f"'{path.name}' cannot be read: {error.strerror}"
        if progress is not None:
            progress(record)
        if found is None:
            return record, f"'{path.name}' ends before it"
        return None if found == record.digest else (record, "its bytes differ from its digest")

    with ThreadPoolExecutor(_THREADS) as pool:
        return [wrong for wrong in pool.map(check, places) if wrong is not None]
