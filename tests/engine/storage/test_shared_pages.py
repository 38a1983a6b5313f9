"""Pages that two writes share: in any order, with several threads, whatever fails."""

from __future__ import annotations

import errno
import itertools
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mergeloom.engine.base.errors import RunError
from mergeloom.engine.memory.ledger import Block
from mergeloom.engine.memory.pages import PAGE, block_bytes, page_offset, span_bytes
from mergeloom.engine.storage.file_system import DIRECT, Files
from mergeloom.engine.storage.files import FileWriter
from mergeloom.engine.storage.shared_pages import SharedPages
from mergeloom.engine.storage.source import IOMode

TILE = 20 * PAGE
SIZE = 30 * TILE + 77


class _Counted(Files):
    """Counts requests that are no whole pages; refuses the direct ones that are named."""

    def __init__(self) -> None:
        self.small = 0
        self.refused: set[int] = set()
        self.lock = threading.Lock()

    def write(self, fd: int, content: memoryview | bytes, position: int) -> int:
        with self.lock:
            self.small += len(content) < PAGE
            if position // PAGE in self.refused and len(content) > PAGE:
                raise OSError(errno.EIO, "refused")
        return super().write(fd, content, position)


def _blocks(content: bytes, cuts: list[int]) -> list[tuple[int, int, Block, int]]:
    made = []
    for start, stop in itertools.pairwise(cuts):
        block = Block(block_bytes(span_bytes(stop - start)))
        at = page_offset(start)
        block.memory[:] = b"\xff" * block.size
        block.memory[at : at + stop - start] = content[start:stop]
        made.append((start, stop, block, at))
    return made


def _cuts(rng: random.Random) -> list[int]:
    """Tiles that begin anywhere, and now and then something small between them."""
    cuts = {0, SIZE, *(index * TILE + 1234 for index in range(30))}
    cuts |= {rng.randrange(SIZE) for _ in range(4)}
    cuts |= {cut + 100 for cut in rng.sample(sorted(cuts)[:-1], 3)}
    return sorted(cuts)


@pytest.mark.parametrize("seed", range(6))
def test_tiles_written_in_any_order_make_the_file(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    content = os.urandom(SIZE)
    tiles = _blocks(content, _cuts(rng))
    rng.shuffle(tiles)
    writer = FileWriter(tmp_path / "out", SIZE, IOMode.AUTO)
    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(writer.write, *tile) for tile in tiles]
        for _ in range(5):
            writer.sync()
        for each in done:
            each.result()
    writer.sync()
    writer.close()
    assert (tmp_path / "out").read_bytes() == content


@pytest.mark.skipif(not DIRECT, reason="no direct requests here")
def test_ends_are_written_with_their_neighbours(tmp_path: Path) -> None:
    files = _Counted()
    content = os.urandom(31 * TILE + 99)
    writer = FileWriter(tmp_path / "out", len(content), IOMode.DIRECT, files)
    if not writer.is_direct:
        pytest.skip("the file system has no direct requests")
    tiles = _blocks(content, [0, *(index * TILE + 1234 for index in range(1, 31)), len(content)])
    for tile in tiles:
        writer.write(*tile)
    assert files.small == 0
    writer.sync()
    assert files.small == 1  # the end of the file
    writer.close()
    assert (tmp_path / "out").read_bytes() == content


@pytest.mark.skipif(not DIRECT, reason="no direct requests here")
def test_a_kept_edge_is_durable_even_if_its_neighbour_fails(tmp_path: Path) -> None:
    files = _Counted()
    content = os.urandom(2 * TILE)
    cut = TILE + 1234
    writer = FileWriter(tmp_path / "out", len(content), IOMode.DIRECT, files)
    if not writer.is_direct:
        pytest.skip("the file system has no direct requests")
    first, second = _blocks(content, [0, cut, len(content)])
    writer.write(*first)
    files.refused = {cut // PAGE}
    with pytest.raises(RunError, match="refused"):
        writer.write(*second)
    writer.sync()
    writer.close()
    assert (tmp_path / "out").read_bytes()[:cut] == content[:cut]


def test_a_page_of_three_parts_is_never_joined() -> None:
    pages = SharedPages()
    assert pages.join(0, memoryview(b"a" * 10)) is None
    assert pages.join(PAGE - 5, memoryview(b"c" * 5)) is None
    assert pages.join(10, memoryview(b"b" * (PAGE - 15))) is None
    assert b"".join(content for _, content in sorted(pages.take())) == (
        b"a" * 10 + b"b" * (PAGE - 15) + b"c" * 5
    )
    assert pages.take() == []


def test_taking_what_is_left_waits_for_writes_in_progress() -> None:
    pages = SharedPages()
    pages.join(0, memoryview(b"a" * 10))
    part = pages.join(10, memoryview(b"b" * (PAGE - 10)))
    assert part == (0, b"a" * 10)
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(pages.take)
        assert not taken.done()
        pages.join(PAGE, memoryview(b"x"))
        pages.pages_written([part], False)
        assert sorted(taken.result(10)) == [(0, b"a" * 10), (PAGE, b"x")]
