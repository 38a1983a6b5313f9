"""Simulate a power failure after every step of a merge; resuming it must lose nothing.

    scripts/run power_loss                  each step of one run of each kind, in three ways
    scripts/run power_loss --rounds 20      the same, with 20 random torn writes for each step

A merge runs on a layer that records all its effects on the file system. `Disk` replays the first n
of them under the guarantees of a disk and its file system: data written to a file is certain to be
there only after a sync of the file, and a name only after a sync of its directory. Later effects
may be present, absent or partial, sector by sector, in any order. The merge is then resumed from
this state. It must end with the bytes of an undisturbed run and keep every tensor whose record was
durable; and what looks finished must be finished.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mergeloom.engine.job import Job, Options, run
from mergeloom.engine.output.journal import read_journal
from mergeloom.engine.output.manifest import DIRECTORY, manifest_path
from mergeloom.engine.run.outcome import Outcome
from mergeloom.engine.storage.file_system import Files
from mergeloom.engine.storage.source import IOMode
from scripts.robustness.small_merges import (
    KINDS,
    MACHINE,
    digests,
    make_job,
    make_models,
    memory_directory,
)

SECTOR = 512
WAYS = ("dropped", "kept", "torn")
"""What becomes of what no sync had made durable."""


@dataclass(frozen=True, slots=True)
class Call:
    """One effect on the file system. ``file`` is the number of the file concerned; paths are
    relative to the watched directory; ``size`` is a length or a position, in bytes.
    """

    kind: str
    file: int = -1
    path: str = ""
    target: str = ""
    size: int = 0
    content: bytes = b""


class RecordingFiles(Files):
    """Records every effect below ``root``, in a possible order of execution."""

    def __init__(self, root: Path, pause: float = 0.0) -> None:
        self.calls: list[Call] = []
        self._root = root
        self._pause = pause
        self._names: dict[str, int] = {}
        self._open: dict[int, int] = {}
        self._count = 0
        self._lock = threading.RLock()
        for path in sorted(root.rglob("*")):
            if path.is_file():
                self._names[self._at(path)] = self._new()

    def open(self, path: Path | str, flags: int) -> int:
        with self._lock:
            if not Path(path).is_relative_to(self._root):
                return super().open(path, flags)
            name = self._at(Path(path))
            fd = super().open(path, flags)
            if name not in self._names:
                self._names[name] = self._new()
                self.calls.append(Call("create", self._names[name], name))
            self._open[fd] = self._names[name]
            return fd

    def close(self, fd: int) -> None:
        with self._lock:
            self._open.pop(fd, None)
            super().close(fd)

    def write(self, fd: int, content: memoryview | bytes, position: int) -> int:
        time.sleep(self._pause)
        with self._lock:
            count = super().write(fd, content, position)
            written = bytes(memoryview(content)[:count])
            self.calls.append(Call("write", self._open[fd], size=position, content=written))
            return count

    def truncate(self, fd: int, size: int) -> None:
        with self._lock:
            super().truncate(fd, size)
            self.calls.append(Call("truncate", self._open[fd], size=size))

    def sync(self, fd: int) -> None:
        with self._lock:
            super().sync(fd)
            self.calls.append(Call("sync", self._open[fd]))

    def make_directory(self, path: Path) -> None:
        with self._lock:
            super().make_directory(path)
            self.calls.append(Call("make_directory", path=self._at(path)))

    def rename(self, source: Path, target: Path) -> None:
        with self._lock:
            super().rename(source, target)
            number = self._names.pop(self._at(source))
            self._names[self._at(target)] = number
            self.calls.append(Call("rename", number, self._at(source), self._at(target)))

    def remove(self, path: Path) -> None:
        with self._lock:
            super().remove(path)
            number = self._names.pop(self._at(path))
            self.calls.append(Call("remove", number, self._at(path)))

    def sync_directory(self, path: Path) -> None:
        with self._lock:
            super().sync_directory(path)
            self.calls.append(Call("sync_directory", path=self._at(path)))

    def _new(self) -> int:
        self._count += 1
        return self._count - 1

    def _at(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()


@dataclass
class _Pending:
    """The durable state of a file or directory, and the calls since its last sync."""

    calls: list[Call] = field(default_factory=list)
    content: bytearray = field(default_factory=bytearray)
    names: dict[str, int] = field(default_factory=dict)


class Disk:
    """The possible contents of a disk after a power failure, from a replay of recorded calls.

    ``before`` has the durable contents at the start of the recording, by path; ``None`` marks a
    directory. Directories have the number -1.
    """

    def __init__(self, before: Mapping[str, bytes | None] | None = None) -> None:
        self._files: dict[int, _Pending] = {}
        self._directories: dict[str, _Pending] = {".": _Pending()}
        for path, content in sorted((before or {}).items()):  # a directory before its contents
            number = -1 if content is None else len(self._files)
            self._enter(path, number)
            if content is None:
                self._directories[path] = _Pending()
            else:
                self._files[number] = _Pending(content=bytearray(content))

    def _enter(self, path: str, number: int) -> None:
        self._directories[_parent(path)].names[path] = number

    def apply(self, call: Call) -> None:
        """Replay one call that has returned."""
        if call.kind == "sync":
            state = self._files[call.file]
            for each in state.calls:
                _change(state.content, each)
            state.calls.clear()
        elif call.kind == "sync_directory":
            if call.path in self._directories:
                state = self._directories[call.path]
                for each in state.calls:
                    _rename(state.names, each)
                state.calls.clear()
        elif call.kind in ("write", "truncate"):
            self._files[call.file].calls.append(call)
        else:
            if call.kind == "create":
                self._files[call.file] = _Pending()
            if call.kind == "make_directory":
                self._directories[call.path] = _Pending()
            self._directories[_parent(call.path)].calls.append(call)

    def contents(self, way: str, chance: random.Random) -> dict[str, bytes | None]:
        """The files by path if the power fails now; ``None`` for a directory."""
        found: dict[str, bytes | None] = {}
        waiting = ["."]
        while waiting:
            state = self._directories[waiting.pop()]
            names = dict(state.names)
            for call in state.calls:
                if way == "kept" or (way == "torn" and chance.random() < 0.5):
                    _rename(names, call)
            for path, number in names.items():
                if number < 0:
                    found[path] = None
                    waiting.append(path)
                else:
                    found[path] = self._content(self._files[number], way, chance)
        return found

    def _content(self, state: _Pending, way: str, chance: random.Random) -> bytes:
        content = bytearray(state.content)
        if way == "dropped":
            return bytes(content)
        for call in state.calls:
            if way == "kept":
                _change(content, call)
                continue
            likely = chance.choice((0.0, 0.1, 0.5, 0.9, 1.0))
            for part in _parts(call):
                if chance.random() < likely:
                    _change(content, part)
        return bytes(content)


def _parts(call: Call) -> Iterator[Call]:
    """Split a write at the sectors of the disk."""
    if call.kind != "write":
        yield call
        return
    start = 0
    while start < len(call.content):
        stop = start + SECTOR - (call.size + start) % SECTOR
        yield Call("write", call.file, size=call.size + start, content=call.content[start:stop])
        start = stop


def _change(content: bytearray, call: Call) -> None:
    if call.kind == "truncate":
        del content[call.size :]
        content.extend(bytes(call.size - len(content)))
        return
    content.extend(bytes(max(call.size - len(content), 0)))
    content[call.size : call.size + len(call.content)] = call.content


def _rename(names: dict[str, int], call: Call) -> None:
    if call.kind == "remove":
        names.pop(call.path, None)
    elif call.kind == "rename":
        names.pop(call.path, None)
        names[call.target] = call.file
    else:
        names[call.path] = call.file


def _parent(path: str) -> str:
    return Path(path).parent.as_posix()


def write_out(contents: Mapping[str, bytes | None], root: Path) -> None:
    """Write the contents of a simulated disk to ``root``."""
    for path in sorted(contents):
        content = contents[path]
        if content is None:
            (root / path).mkdir(parents=True, exist_ok=True)
        else:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content)


def read_in(root: Path) -> dict[str, bytes | None]:
    """The files below ``root`` by path; ``None`` for a directory."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(root.rglob("*"))
    }


@dataclass(frozen=True)
class Recording:
    """A recorded run: its calls, the files before it, and the digests of its result.

    ``records[i]`` is the number of tensors whose records were durable before call ``i``.
    """

    job: Job
    calls: Sequence[Call]
    before: Mapping[str, bytes | None]
    expected: Mapping[str, str]
    records: Sequence[int]

    def replay(self, length: int, way: str, seed: int, root: Path) -> Outcome:
        """Cut the power after ``length`` calls, resume the merge in ``root``, and check the result.

        Raises:
            AssertionError: something was lost, or looked finished but was not.
        """
        chance = random.Random(seed)
        disk = Disk(self.before)
        for call in self.calls[:length]:
            disk.apply(call)
        write_out(disk.contents(way, chance), root)
        looked_finished = manifest_path(root / "out").exists()
        io = chance.choice([*IOMode])
        outcome = run(self.job, root / "out", Options(8 << 30, MACHINE, io))
        assert digests(root / "out") == self.expected, "the result differs"
        assert outcome.was_finished == looked_finished, "it looked finished"
        assert looked_finished or length < len(self.calls), "it was finished and forgot it"
        if not looked_finished:
            recorded = self.records[length]
            assert outcome.resumed >= recorded, f"{recorded} were recorded"
        if way != "torn":
            assert not outcome.warnings, outcome.warnings
        return outcome


def record(
    job: Job,
    root: Path,
    expected: Mapping[str, str] | None = None,
    restart: bool = False,
    recorder: type[RecordingFiles] = RecordingFiles,
) -> Recording:
    """Run ``job`` with output ``root / 'out'``, which may hold an earlier run; record its calls."""
    before = read_in(root)
    files = recorder(root, pause=0.001)
    options = Options(
        8 << 30, MACHINE, IOMode.AUTO, restart=restart, commit_seconds=0.01, files=files
    )
    run(job, root / "out", options)
    return Recording(
        job, files.calls, before, expected or digests(root / "out"), _records(files.calls, before)
    )


def _records(calls: Sequence[Call], before: Mapping[str, bytes | None]) -> list[int]:
    """The number of tensors with a durable record before each call, and at the end.

    A restart moves the journal aside. From then on its records may be lost, whether or not the move
    is durable.
    """
    disk = Disk(before)
    counts = [_recorded(disk, "dropped")]
    for call in calls:
        disk.apply(call)
        count = counts[-1]
        if call.kind in ("sync", "sync_directory"):
            count = _recorded(disk, "dropped")
        elif call.kind in ("rename", "remove"):
            count = min(count, _recorded(disk, "kept"))
        counts.append(count)
    return counts


def _recorded(disk: Disk, way: str) -> int:
    """The number of tensors in the journal of a disk after a power failure of kind ``way``."""
    content = disk.contents(way, random.Random(0)).get(f"out/{DIRECTORY}/journal")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal"
        path.write_bytes(content or b"")
        found = read_journal(path)
    return len({(e.file, e.tensor) for e in found.finished}) if found else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; the result is its exit status."""
    parser = argparse.ArgumentParser(prog="run power_loss", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--rounds",
        type=int,
        default=1,
        metavar="N",
        help="random torn writes per step [default: 1]",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of random choices [default: 0]")
    options = parser.parse_args(arguments)
    chance = random.Random(options.seed)
    counts: Counter[str] = Counter()
    lengths: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="power-loss-", dir=memory_directory()) as folder:
        models = make_models(Path(folder) / "models")
        for kind in KINDS:
            for name, recording in _recordings(make_job(kind, models), Path(folder) / kind):
                lengths[f"{kind}, {name}"] = len(recording.calls)
                for length in range(len(recording.calls) + 1):
                    for way in ("dropped", "kept", *["torn"] * options.rounds):
                        seed = chance.randrange(1 << 32)
                        with tempfile.TemporaryDirectory(dir=folder) as root:
                            try:
                                recording.replay(length, way, seed, Path(root))
                            except Exception:
                                print(f"{kind}, {name}: {way} after {length} calls, seed {seed}")
                                raise
                        counts[way] += 1
    for name, length in lengths.items():
        print(f"{name}: power cut before each of {length} calls, and after the last")
    print(", ".join(f"{count} {way}" for way, count in counts.items()))
    print(f"power failures: {counts.total()}; every result has the digests of the undisturbed run")
    return 0


def _recordings(job: Job, directory: Path) -> Iterator[tuple[str, Recording]]:
    """Record a first run, a run resumed after a power failure, and one that restarts a finished
    output.
    """
    directory.mkdir()
    (directory / "first").mkdir()
    first = record(job, directory / "first")
    yield "from the start", first
    half = len(first.calls) // 2
    disk = Disk(first.before)
    for call in first.calls[:half]:
        disk.apply(call)
    (directory / "second").mkdir()
    write_out(disk.contents("torn", random.Random(1)), directory / "second")
    yield "resumed", record(job, directory / "second", first.expected)
    yield "with --restart", record(job, directory / "first", first.expected, restart=True)
