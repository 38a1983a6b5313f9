"""Every source passes these tests: a new one is added to `SOURCES`, and so are wrappers."""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mergeloom.engine.base.errors import RunError
from mergeloom.engine.memory.ledger import Block
from mergeloom.engine.memory.pages import PAGE, page_offset, span_bytes
from mergeloom.engine.storage.files import FileSource
from mergeloom.engine.storage.folder import LocalFolder
from mergeloom.engine.storage.memory_source import MemorySource
from mergeloom.engine.storage.source import IOMode, Reader, ReadOptions, Source, read_part
from mergeloom.engine.storage.wrappers import (
    LimitedSource,
    RetryingSource,
    TransientError,
    WrappedSource,
)

CONTENT = random.Random(5).randbytes(3 * (1 << 20) + 1234)


def in_file(directory: Path) -> FileSource:
    (directory / "numbers").write_bytes(CONTENT)
    return FileSource.at(directory / "numbers")


SOURCES: dict[str, Callable[[Path], Source]] = {
    "file": in_file,
    "file of a folder": lambda path: (in_file(path), LocalFolder(path).source("numbers"))[1],
    "memory": lambda path: MemorySource(CONTENT, "numbers"),
    "identified": lambda path: in_file(path).identified("digest"),
    "retrying": lambda path: RetryingSource(Flaky(in_file(path)), sleep=lambda seconds: None),
    "limited": lambda path: LimitedSource(in_file(path), 2, 1e12),
}


@dataclass(frozen=True)
class Flaky(WrappedSource):
    """Fails the first ``failures`` times that a thread asks for the same thing."""

    failures: int = 1
    after: float = 0.0
    asked: Counter[object] = field(default_factory=Counter, compare=False)

    def open(self, options: ReadOptions) -> Reader:
        self.fail("open")
        return FlakyReader(super().open(options), self)

    def fail(self, *what: object) -> None:
        key = (threading.get_ident(), *what)
        self.asked[key] += 1
        if self.asked[key] <= self.failures:
            raise TransientError(f"'{self.name}' is busy", self.after)


class FlakyReader:
    connections = 4

    def __init__(self, inner: Reader, source: Flaky) -> None:
        self._inner = inner
        self._source = source

    def read(
        self, start: int, stop: int, block: Block, at: int, may_overwrite: bool = True
    ) -> None:
        self._source.fail(start, stop)
        self._inner.read(start, stop, block, at, may_overwrite)

    def check_unchanged(self) -> None:
        self._source.fail("check")
        self._inner.check_unchanged()

    def close(self) -> None:
        self._inner.close()


@pytest.fixture(params=[(name, mode) for name in SOURCES for mode in IOMode], ids=str)
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Source, Reader]]:
    name, mode = request.param
    source = SOURCES[name](tmp_path)
    reader = source.open(ReadOptions(mode))
    yield source, reader
    reader.close()


def test_a_source_is_read_at_any_place(opened: tuple[Source, Reader]) -> None:
    source, reader = opened
    assert source.size == len(CONTENT)
    assert source.name
    assert source.identity
    assert source.description
    assert source.identified("more").size == source.size
    assert reader.connections >= 1
    chance = random.Random(2)
    ends = [(0, 0), (0, 1), (len(CONTENT) - 1, len(CONTENT)), (0, len(CONTENT))]
    for start, stop in [*ends, *(drawn(chance) for _ in range(30))]:
        assert read_part(reader, start, stop) == CONTENT[start:stop]
    reader.check_unchanged()


def drawn(chance: random.Random) -> tuple[int, int]:
    start = chance.choice([chance.randrange(len(CONTENT)), chance.randrange(600) * PAGE])
    return start, min(len(CONTENT), start + chance.choice([1, 100, PAGE, 20 * PAGE, 1 << 20]))


def test_reading_into_part_of_a_buffer_leaves_the_rest(opened: tuple[Source, Reader]) -> None:
    _, reader = opened
    chance = random.Random(3)
    block = Block(1 << 22)
    for _ in range(30):
        start, stop = drawn(chance)
        at = PAGE + chance.choice([page_offset(start), chance.randrange(PAGE)])
        block.memory[:] = b"\xee" * block.size
        reader.read(start, stop, block, at, may_overwrite=False)
        end = at + stop - start
        assert block.memory[at:end] == CONTENT[start:stop]
        assert bytes(block.memory[:at]).strip(b"\xee") == b""
        assert bytes(block.memory[end:]).strip(b"\xee") == b""


def test_threads_read_at_once(opened: tuple[Source, Reader]) -> None:
    _, reader = opened
    wrong: list[tuple[int, int]] = []

    def read(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(10):
            start, stop = drawn(chance)
            if read_part(reader, start, stop) != CONTENT[start:stop]:
                wrong.append((start, stop))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("name", SOURCES)
def test_the_identity_is_that_of_the_content(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = SOURCES[name](tmp_path)
    if name != "memory":
        times = (tmp_path / "numbers").stat()
        monkeypatch.setattr(
            Path, "write_bytes", lambda path, content: os.utime(path, ns=(1, times.st_mtime_ns))
        )
    assert SOURCES[name](tmp_path).identity == first.identity
    if name != "memory":
        os.utime(tmp_path / "numbers", ns=(1, 1))
        monkeypatch.setattr(Path, "write_bytes", lambda path, content: None)
        assert SOURCES[name](tmp_path).identity != first.identity


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "memory"])
def test_a_changed_source_is_noticed(name: str, tmp_path: Path) -> None:
    source = SOURCES[name](tmp_path)
    reader = source.open(ReadOptions())
    os.utime(tmp_path / "numbers", ns=(1, 1))
    with pytest.raises(RunError, match=r"numbers' has changed since planning"):
        reader.check_unchanged()
    reader.close()
    with pytest.raises(RunError, match="changed"):
        source.open(ReadOptions())
    (tmp_path / "numbers").unlink()
    with pytest.raises(RunError, match=r"cannot open .*numbers'"):
        source.open(ReadOptions())


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "memory"])
def test_a_truncated_source_is_noticed(name: str, tmp_path: Path) -> None:
    source = SOURCES[name](tmp_path)
    reader = source.open(ReadOptions())
    os.truncate(tmp_path / "numbers", 1 << 20)
    with pytest.raises(RunError, match=r"ends at byte 1048576 instead of 2097152"):
        reader.read(1 << 19, 1 << 21, Block(span_bytes(1 << 21)), 0)
    reader.close()


# --- wrappers ---------------------------------------------------------------------------------


def test_waits_between_retries_double_and_end(tmp_path: Path) -> None:
    waits: list[float] = []
    never = RetryingSource(Flaky(in_file(tmp_path), 99), 4, 0.5, waits.append)
    with pytest.raises(TransientError, match="is busy"):
        never.open(ReadOptions())
    assert waits == [0.5, 1.0, 2.0]
    waits.clear()
    asked = RetryingSource(Flaky(in_file(tmp_path), after=7.0), 4, 0.5, waits.append)
    asked.open(ReadOptions()).close()
    assert waits == [7.0]


def test_a_permanent_failure_is_not_retried(tmp_path: Path) -> None:
    waits: list[float] = []
    source = RetryingSource(in_file(tmp_path), 4, 0.5, waits.append)
    (tmp_path / "numbers").unlink()
    with pytest.raises(RunError, match="cannot open"):
        source.open(ReadOptions())
    assert waits == []


def test_the_number_of_concurrent_requests_is_limited(tmp_path: Path) -> None:
    class Slow(WrappedSource):
        most = now = 0
        lock = threading.Lock()

        def open(self, options: ReadOptions) -> Reader:
            return SlowReader(super().open(options))

    class SlowReader(FlakyReader):
        def __init__(self, inner: Reader) -> None:
            super().__init__(inner, Flaky(in_file(tmp_path), 0))

        def read(
            self, start: int, stop: int, block: Block, at: int, may_overwrite: bool = True
        ) -> None:
            with Slow.lock:
                Slow.now += 1
                Slow.most = max(Slow.most, Slow.now)
            threading.Event().wait(0.01)
            with Slow.lock:
                Slow.now -= 1

    reader = LimitedSource(Slow(in_file(tmp_path)), 2).open(ReadOptions())
    assert reader.connections == 2
    threads = [threading.Thread(target=read_part, args=(reader, 0, 1)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Slow.most == 2


def test_bytes_per_second_are_limited(tmp_path: Path) -> None:
    now = [100.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    limited = LimitedSource(MemorySource(CONTENT, "numbers"), 4, 1e6, lambda: now[0], sleep)
    reader = limited.open(ReadOptions())
    for _ in range(5):
        read_part(reader, 0, 500_000)
    assert now[0] == pytest.approx(102.0)
