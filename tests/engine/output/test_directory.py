"""Journal, output directory, files by position: what a crash or a fault may leave behind."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from mergeloom.engine import job as jobs
from mergeloom.engine.base.dtypes import F32
from mergeloom.engine.base.errors import OutputError, RunError
from mergeloom.engine.graph.kernel import Copy
from mergeloom.engine.memory.ledger import Block, Ledger
from mergeloom.engine.memory.pages import PAGE, block_bytes, page_offset, span_bytes
from mergeloom.engine.output.directory import OutputDirectory
from mergeloom.engine.output.journal import FinishedTensor, Journal, read_journal
from mergeloom.engine.output.manifest import DIRECTORY, manifest_path, read_manifest
from mergeloom.engine.output.side_files import SideFile
from mergeloom.engine.storage.file_system import Files
from mergeloom.engine.storage.files import FileReader, FileSource, FileWriter, write_file
from mergeloom.engine.storage.source import IOMode
from tests.engine.support import GraphMaker, file_source, job

ENTRIES = [FinishedTensor("a.bin", f"tensor-{i}", f"{i:032x}", 1 << 20) for i in range(5)]


def journal_of(path: Path) -> bytes:
    journal = Journal(path)
    journal.begin("f" * 32, {"seed": "1"}, ["a.bin"])
    for entry in ENTRIES:
        journal.append([entry])
    journal.close()
    return path.read_bytes()


def test_a_journal_torn_anywhere_is_a_prefix(tmp_path: Path) -> None:
    content = journal_of(tmp_path / "journal")
    head = content.index(b"\n") + 1
    for end in range(len(content) + 1):
        (tmp_path / "torn").write_bytes(content[:end])
        found = read_journal(tmp_path / "torn")
        if end < head:
            assert found is None
            continue
        assert found is not None
        assert (found.fingerprint, found.identity, found.damaged) == ("f" * 32, {"seed": "1"}, 0)
        assert list(found.finished) == ENTRIES[: content[head:end].count(b"\n")]


@given(st.data())
def test_damage_in_a_journal_never_adds_a_record(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal"
    content = bytearray(journal_of(path))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        found = read_journal(path)
    except OutputError:
        return
    if found is not None:
        assert set(found.finished) <= set(ENTRIES)
        assert len(found.finished) + found.damaged >= len(ENTRIES) - 1


def test_journals_of_other_versions_are_refused(tmp_path: Path) -> None:
    content = journal_of(tmp_path / "journal")
    (tmp_path / "journal").write_bytes(b"0" * 16 + content[16:])
    with pytest.raises(OutputError, match="damaged in its first record"):
        read_journal(tmp_path / "journal")
    head, _, rest = content.partition(b"\n")
    text = head[17:].replace(b'"version":1', b'"version":9')
    checksum = xxhash.xxh3_64_hexdigest(text).encode()
    (tmp_path / "journal").write_bytes(checksum + b" " + text + b"\n" + rest)
    with pytest.raises(OutputError, match="has version 9, this program writes 1"):
        read_journal(tmp_path / "journal")


LOCKED = (
    "import sys; from pathlib import Path\n"
    "from mergeloom.engine.output.directory import OutputDirectory\n"
)


def test_a_second_process_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    code = LOCKED + "OutputDirectory(Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    with OutputDirectory(tmp_path / "out"):
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "another process is writing" in second.stderr
    assert subprocess.run(command, check=False).returncode == 0


def test_clearing_removes_what_was_recorded_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "outside").write_text("mine")
    with OutputDirectory(out) as directory:
        journal = Journal(directory.journal_path)
        journal.begin("f", {}, ["a.bin", "../outside"])
        journal.close()
        (out / "a.bin").write_text("ours")
        (out / "b.bin.partial").write_text("not recorded")
        (out / "notes.txt").write_text("mine")
        directory.clear()
        assert directory.interrupted() is None
    assert (tmp_path / "outside").exists()
    assert {path.name for path in out.iterdir()} == {DIRECTORY, "b.bin.partial", "notes.txt"}


def test_a_discarded_output_does_not_look_finished_however_it_is_interrupted(
    tmp_path: Path,
) -> None:
    (tmp_path / "in").mkdir()
    maker = GraphMaker(tmp_path / "in")
    (load,) = maker.loads(F32, [(100,)])
    graph = maker.graph({"t": (maker.builder.merge([load], Copy(), "c"), F32)})
    out = tmp_path / "out"
    jobs.run(job(graph), out, jobs.Options())

    class Stopping(Files):
        def remove(self, path: Path) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jobs.run(job(graph), out, jobs.Options(restart=True, files=Stopping()))
    assert read_manifest(out) is None
    with OutputDirectory(out):
        assert [path.name for path in out.iterdir()] == [DIRECTORY]
        assert not list((out / DIRECTORY).iterdir())


def test_side_files_of_an_interrupted_run_are_discarded_too(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    maker = GraphMaker(tmp_path / "in")
    (load,) = maker.loads(F32, [(100,)])
    graph = maker.graph({"t": (maker.builder.merge([load], Copy(), "c"), F32)})
    side_files = [
        SideFile.from_content("template", b"one"),
        SideFile.from_content("tokenizer", b"two"),
    ]
    before = replace(job(graph), fingerprint="before", identity={}, side_files=side_files)

    class Stopping(Files):
        def rename(self, source: Path, target: Path) -> None:
            if target.name == "tokenizer":
                raise OSError(28, "No space left on device")
            super().rename(source, target)

    out = tmp_path / "out"
    with pytest.raises(RunError, match="tokenizer': No space left on device"):
        jobs.run(before, out, jobs.Options(files=Stopping()))
    assert (out / "template").exists()
    jobs.run(job(graph), out, jobs.Options(restart=True))
    assert {path.name for path in out.iterdir()} == {DIRECTORY, "out.bin"}


def test_a_damaged_header_is_written_again(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    maker = GraphMaker(tmp_path / "in")
    (load,) = maker.loads(F32, [(100,)])
    graph = maker.graph({"t": (maker.builder.merge([load], Copy(), "c"), F32)})
    out = tmp_path / "out"

    class Stopping(Files):
        def rename(self, source: Path, target: Path) -> None:
            if target.name == "out.bin":
                raise OSError(5, "Input/output error")
            super().rename(source, target)

    with pytest.raises(
        RunError, match=r"out\.bin': Input/output error: fix this, and the same command"
    ):
        jobs.run(job(graph), out, jobs.Options(files=Stopping()))
    content = (out / "out.bin.partial").read_bytes()
    (out / "out.bin.partial").write_bytes(b"xx" + content[2:])
    outcome = jobs.run(job(graph), out, jobs.Options())
    assert outcome.resumed == 1
    assert (out / "out.bin").read_bytes() == content


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"version": 1, "digests": "xxh3-128/grains"}']
)
def test_damaged_manifests_are_named(tmp_path: Path, content: bytes) -> None:
    manifest_path(tmp_path).parent.mkdir()
    manifest_path(tmp_path).write_bytes(content)
    with pytest.raises(OutputError, match=r"manifest\.json") as caught:
        read_manifest(tmp_path)
    assert caught.value.remedy.endswith("start over with --restart")
    assert "--restart" not in caught.value.cause


def test_a_disk_that_is_too_small_is_named_before_the_start(tmp_path: Path) -> None:
    from mergeloom.engine.graph.graph import Graph, OutputFile

    graph = Graph((), (), (), (OutputFile("huge.bin", b"", 1 << 60),))
    with (
        OutputDirectory(tmp_path / "out") as directory,
        pytest.raises(RunError, match="GB free"),
    ):
        directory.check_space(graph)


@settings(max_examples=40)
@given(data=st.data(), mode=st.sampled_from(IOMode))
def test_reads_and_writes_at_any_position(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, mode: IOMode
) -> None:
    directory = tmp_path_factory.mktemp("files")
    size = data.draw(st.integers(1, 40 * PAGE))
    content = os.urandom(size)
    (directory / "in").write_bytes(content)
    cuts = sorted({0, size, *data.draw(st.lists(st.integers(0, size), max_size=6))})
    reader = FileReader(file_source(directory / "in"), mode)
    writer = FileWriter(directory / "out", size, mode)
    spans = data.draw(st.permutations(list(itertools.pairwise(cuts))))
    for start, stop in spans:
        block = Block(block_bytes(span_bytes(stop - start)))
        at = page_offset(start)
        reader.read(start, stop, block, at)
        assert bytes(block.memory[at : at + stop - start]) == content[start:stop]
        writer.write(start, stop, block, at)
    reader.close()
    writer.sync()
    writer.close()
    assert (directory / "out").read_bytes() == content


def test_a_file_that_shrinks_or_changes_under_the_reader_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(bytes(10 * PAGE))
    reader = FileReader(file_source(path), IOMode.BUFFERED)
    block = Block(block_bytes(span_bytes(10 * PAGE)))
    os.truncate(path, 5 * PAGE)
    with pytest.raises(RunError, match="ends at byte"):
        reader.read(0, 10 * PAGE, block, 0)
    with pytest.raises(RunError, match="has changed since planning"):
        reader.check_unchanged()
    reader.close()


def test_files_that_cannot_be_opened_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot open"):
        FileReader(FileSource(str(tmp_path / "none"), 1, 1, "x"), IOMode.AUTO)
    with pytest.raises(RunError, match="cannot create"):
        FileWriter(tmp_path / "no" / "directory", 1, IOMode.AUTO)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        write_file(tmp_path / "file" / "below", b"")


@given(st.lists(st.tuples(st.integers(1, 40 * PAGE), st.integers(0, 3)), max_size=40))
def test_a_ledger_never_maps_more_than_its_capacity(steps: list[tuple[int, int]]) -> None:
    ledger = Ledger(64 * PAGE)
    held: list[Block] = []
    for nbytes, releases in steps:
        size = block_bytes(nbytes)
        while held and ledger.granted + size > ledger.capacity:
            ledger.release(held.pop(0))
        block = ledger.grant(nbytes)
        assert block.size >= nbytes
        assert block.address % PAGE == 0
        held.append(block)
        for _ in range(min(releases, len(held))):
            ledger.release(held.pop())
        assert ledger.granted == sum(block.size for block in held)
        assert ledger.peak <= ledger.capacity
    with pytest.raises(ValueError, match="exceeds the ledger"):
        ledger.grant(65 * PAGE)
