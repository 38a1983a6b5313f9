"""Files are read around the page cache unless they lie in it; to ask changes nothing."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from mergeloom.engine.storage.file_system import DIRECT
from mergeloom.engine.storage.files import FileReader, FileSource
from mergeloom.engine.storage.source import IOMode, read_part

SIZE = 16 << 20


def _is_direct(path: Path, mode: IOMode = IOMode.AUTO) -> bool:
    with contextlib.closing(FileReader(FileSource.at(path), mode)) as reader:
        return reader.is_direct


def _forget(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that is in the page cache."""
    found = tmp_path / "model.safetensors"
    found.write_bytes(os.urandom(SIZE))
    if not DIRECT or not _is_direct(found, IOMode.DIRECT):
        pytest.skip("no direct requests here")
    if not hasattr(os, "RWF_NOWAIT"):
        pytest.skip("nothing says here what is in the page cache")
    return found


def test_a_file_is_read_directly_until_it_is_cached(path: Path) -> None:
    _forget(path)
    for _ in range(4):  # a plan asks before a run does, and the next run asks again
        assert _is_direct(path)
    path.read_bytes()
    assert not _is_direct(path)


def test_reading_a_header_does_not_probe_the_page_cache(path: Path) -> None:
    _forget(path)
    for _ in range(40):
        with contextlib.closing(FileReader(FileSource.at(path), IOMode.BUFFERED)) as reader:
            read_part(reader, 0, 1000)
    assert _is_direct(path)


@pytest.mark.parametrize("cached", [True, False])
def test_a_run_evicts_only_the_pages_that_it_brought_into_the_cache(
    path: Path, cached: bool
) -> None:
    _forget(path)
    if cached:
        path.read_bytes()
    with contextlib.closing(FileReader(FileSource.at(path), IOMode.BUFFERED)) as reader:
        for start in range(0, SIZE, 2 << 20):
            read_part(reader, start, start + (2 << 20))
    assert _is_direct(path) == (not cached)
