"""Power may fail after any call: a share of `scripts/run power_loss`, and its own proof."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergeloom.engine.base.errors import LoomError
from mergeloom.engine.job import Job
from scripts.robustness.power_loss import (
    WAYS,
    Call,
    Disk,
    Recording,
    RecordingFiles,
    record,
    write_out,
)
from scripts.robustness.small_merges import make_job, make_models, memory_directory

seeds = st.integers(0, 1 << 32)


NewFolder = Callable[[], Path]


@pytest.fixture(scope="module")
def new_folder() -> Iterator[NewFolder]:
    with tempfile.TemporaryDirectory(dir=memory_directory()) as folder:
        yield lambda: Path(tempfile.mkdtemp(dir=folder))


@pytest.fixture(scope="module")
def job(new_folder: NewFolder) -> Job:
    return make_job("passthrough", make_models(new_folder()))


@pytest.fixture(scope="module")
def recording(job: Job, new_folder: NewFolder) -> Recording:
    return record(job, new_folder())


@settings(max_examples=60)
@given(data=st.data(), way=st.sampled_from(WAYS), seed=seeds)
def test_power_may_fail_after_any_call(
    recording: Recording,
    new_folder: NewFolder,
    data: st.DataObject,
    way: str,
    seed: int,
) -> None:
    length = data.draw(st.integers(0, len(recording.calls)))
    recording.replay(length, way, seed, new_folder())


@settings(max_examples=8)
@given(data=st.data(), seed=seeds, restart=st.booleans())
def test_power_may_fail_again_while_it_continues(
    recording: Recording,
    new_folder: NewFolder,
    data: st.DataObject,
    seed: int,
    restart: bool,
) -> None:
    root = new_folder()
    disk = Disk()
    for call in recording.calls[: round(data.draw(st.floats(0, 1)) * len(recording.calls))]:
        disk.apply(call)
    write_out(disk.contents("torn", random.Random(seed)), root)
    second = record(recording.job, root, recording.expected, restart)
    for _ in range(3):
        # The number of calls depends on time too, so a share of them is drawn.
        share = data.draw(st.floats(0, 1))
        second.replay(round(share * len(second.calls)), "torn", seed, new_folder())


def test_empty_directories_after_a_power_loss_are_no_obstacle(
    recording: Recording, new_folder: NewFolder
) -> None:
    root = new_folder()
    (root / "out" / ".mergeloom").mkdir(parents=True)
    second = record(recording.job, root, recording.expected)
    for length in (0, len(second.calls) // 2, len(second.calls)):
        second.replay(length, "dropped", 0, new_folder())


class SyncsNoFile(RecordingFiles):
    def sync(self, fd: int) -> None:
        pass


class SyncsNoDirectory(RecordingFiles):
    def sync_directory(self, path: Path) -> None:
        pass


class RenamesFirst(RecordingFiles):
    """Gives files their final names before their bytes are durable."""

    def sync(self, fd: int) -> None:
        super().sync(fd)
        *others, last = self.calls
        if others and others[-1].kind == "write":
            self.calls[:] = [*others[:-1], last, others[-1]]


@pytest.mark.parametrize("recorder", [SyncsNoFile, SyncsNoDirectory, RenamesFirst])
def test_a_program_that_syncs_too_little_is_found_out(
    job: Job, recorder: type[RecordingFiles], new_folder: NewFolder
) -> None:
    """What is recorded here is what a careless program would have done."""
    careless = record(job, new_folder(), recorder=recorder)
    found = 0
    for length in range(len(careless.calls) + 1):
        try:
            careless.replay(length, "dropped", 0, new_folder())
        except (AssertionError, LoomError):
            found += 1
    assert found


def test_the_disk_keeps_what_was_synced_and_may_lose_the_rest() -> None:
    calls = [
        Call("make_directory", path="d"),
        Call("sync_directory", path="."),
        Call("create", 0, "d/a"),
        Call("write", 0, size=0, content=b"x" * 2000),
        Call("sync", 0),
        Call("sync_directory", path="d"),
        Call("write", 0, size=1000, content=b"y" * 2000),
        Call("rename", 0, "d/a", "d/b"),
    ]
    disk = Disk()
    for call in calls:
        disk.apply(call)
    assert disk.contents("dropped", random.Random(0)) == {"d": None, "d/a": b"x" * 2000}
    assert disk.contents("kept", random.Random(0)) == {"d": None, "d/b": b"x" * 1000 + b"y" * 2000}
    for seed in range(50):
        found = disk.contents("torn", random.Random(seed))
        (name,) = found.keys() - {"d"}
        content = found[name]
        assert name in ("d/a", "d/b")
        assert content is not None
        assert content[:1000] == b"x" * 1000
        assert set(content[1024:1536]) in ({*b"x"}, {*b"y"})
