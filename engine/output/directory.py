"""The output directory: preallocated shards, journal, atomic finish, resume.

    NAME.partial ──tiles in place──► durable ──rename──► NAME ──all──► side files ──► manifest

A shard has its final name only when all its bytes are durable, the side files come after the
shards and the manifest last: a directory that looks finished is finished. Each step is durable
before the next one begins that relies on it, so this holds after a power failure too.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeloom.engine.base.errors import OutputError, RunError
from mergeloom.engine.graph.graph import Graph, OutputFile, Write
from mergeloom.engine.output.journal import Finished, Journal, JournalContent, read_journal
from mergeloom.engine.output.manifest import (
    DIRECTORY,
    MIN_BLOCK_BYTES,
    FileRecord,
    Manifest,
    TensorRecord,
    is_inside,
    manifest_path,
    read_manifest,
)
from mergeloom.engine.output.verify import verify_tensors
from mergeloom.engine.storage.digest import ContentDigest, digest_of, pieces_of
from mergeloom.engine.storage.file_system import FILES, Files, make_directories, reported
from mergeloom.engine.storage.files import FileWriter, IOMode, write_file

COMMIT_SECONDS = 1.0
"""How often finished tensors are made durable and recorded."""

_RESERVE = 1 << 20
_DISCARDED = "discarded-"


@dataclass(frozen=True, slots=True)
class SideFile:
    """A small file of the output: its bytes, or the path of the file to copy.

    ``digest`` is that of the content when the file was planned.
    """

    name: str
    content: bytes | Path
    digest: str
    size: int

    @classmethod
    def made(cls, name: str, content: bytes) -> SideFile:
        """A file of the output with this content."""
        return cls(name, content, digest_of([content]), len(content))

    @classmethod
    def copied(cls, name: str, path: Path) -> SideFile:
        """A copy of the file at ``path``.

        Raises:
            OSError: it cannot be read.
        """
        return cls(name, path, digest_of(pieces_of(path)), path.stat().st_size)

    def pieces(self) -> Iterator[bytes]:
        """The content, piece by piece.

        Raises:
            RunError: it cannot be read, or is no longer what was planned with.
        """
        if isinstance(self.content, bytes):
            yield self.content
            return
        digest = ContentDigest()
        with reported("read", self.content):
            for piece in pieces_of(self.content):
                digest.update(piece)
                yield piece
        if digest.hexdigest() != self.digest:
            raise RunError(
                f"'{self.content}' changed since it was planned with: restore it and the same "
                "command continues, or merge what is there now with --restart"
            )


class OutputDirectory:
    """One output directory, locked for as long as this object is open.

    Raises:
        OutputError: it is not empty and not ours.
        RunError: it cannot be made, or another process is writing it.
    """

    def __init__(self, path: Path, files: Files = FILES) -> None:
        self.path = path
        self.files = files
        self._check_ours()
        with reported("create", path):
            make_directories(files, path / DIRECTORY)
            self._lock = os.open(path / DIRECTORY, os.O_RDONLY)
        try:
            with reported("lock", path):
                self._take_lock()
            self._remove_discarded()
        except BaseException:
            os.close(self._lock)
            raise

    def __enter__(self) -> OutputDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)

    @property
    def journal_path(self) -> Path:
        return self.path / DIRECTORY / "journal"

    def finished(self) -> Manifest | None:
        """The manifest if this output is finished."""
        return read_manifest(self.path)

    def interrupted(self) -> JournalContent | None:
        """The journal if a run began here and did not finish."""
        return read_journal(self.journal_path)

    def clear(self) -> None:
        """Remove what earlier runs have put here, as they recorded it, and nothing else.

        Their records go aside first: from then on nothing here looks finished, and whoever
        opens the directory next completes what was interrupted.

        Raises:
            RunError: the disk refuses.
        """
        with reported("clear", self.path):
            for record in (manifest_path(self.path), self.journal_path):
                if record.exists():
                    self.files.rename(record, record.with_name(_DISCARDED + record.name))
            self.files.sync_directory(self.path / DIRECTORY)
        self._remove_discarded()

    def _take_lock(self) -> None:
        """Take a lock that the system gives back when this process ends, however it ends."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                f"another process is writing '{self.path}': wait for it, or choose another output"
            ) from error

    def _remove_discarded(self) -> None:
        """Remove the files of records that were set aside, and then the records."""
        own = self.path / DIRECTORY
        manifest = own / (_DISCARDED + manifest_path(self.path).name)
        journal = own / (_DISCARDED + self.journal_path.name)
        if not (manifest.exists() or journal.exists()):
            return
        names: dict[str, None] = {}
        with contextlib.suppress(OutputError):  # damaged: what it names is not known
            if (finished := read_manifest(self.path, manifest.name)) is not None:
                names.update(dict.fromkeys((*finished.files, *finished.side_files)))
        with contextlib.suppress(OutputError):
            if (interrupted := read_journal(journal)) is not None:
                names.update(dict.fromkeys(interrupted.files))
        with reported("clear", self.path):
            for name in filter(is_inside, names):
                path = self.path / name
                if path.parent.resolve().is_relative_to(self.path.resolve()):
                    for each in (path, partial_path(path)):
                        if each.is_file() or each.is_symlink():
                            self.files.remove(each)
            self.files.sync_directory(self.path)
            for record in (manifest, journal):
                if record.exists():
                    self.files.remove(record)

    def resumable(
        self, graph: Graph, journal: JournalContent, verify: bool = True
    ) -> dict[Write, Finished]:
        """The writes that need not be done again: recorded, and their bytes as recorded."""
        writes = {(write.file.name, write.name): write for write in graph.writes}
        recorded: dict[Write, Finished] = {}
        for entry in journal.finished:
            write = writes.get((entry.file, entry.tensor))
            if write is not None and entry.block_bytes >= min(write.nbytes, MIN_BLOCK_BYTES):
                recorded[write] = entry
        if verify:
            places = [
                (self.present(write.file), tensor_record(write, entry))
                for write, entry in recorded.items()
            ]
            wrong = {(record.file, record.name) for record, _ in verify_tensors(places)}
            for key in wrong:
                del recorded[writes[key]]
        return recorded

    def check_space(self, graph: Graph, side_files: Iterable[SideFile] = ()) -> None:
        """Compare the free space with what shards and side files still need.

        Raises:
            RunError: the disk is too small; the message says by how much.
        """
        needed = _RESERVE + sum(file.size for file in side_files)
        for file in graph.files:
            with contextlib.suppress(OSError):
                status = os.stat(self.present(file))
                needed -= min(status.st_blocks * 512, file.size)
            needed += file.size
        with reported("read", self.path):
            free = shutil.disk_usage(self.path).free
        if needed > free:
            raise RunError(
                f"'{self.path}' has {_amount(free)} free and the output needs {_amount(needed)} "
                f"more: free {_amount(needed - free)} and the same command continues, or choose "
                "another disk"
            )

    def present(self, file: OutputFile) -> Path:
        """Where a shard is: under its final name, or being written."""
        final = self.path / file.name
        return final if final.exists() else partial_path(final)

    def _check_ours(self) -> None:
        try:
            entries = {entry.name for entry in self.path.iterdir()}
        except FileNotFoundError:
            return
        except NotADirectoryError as error:
            raise OutputError(f"'{self.path}' is a file, not a directory") from error
        except OSError as error:
            raise OutputError(f"cannot read '{self.path}': {error.strerror}") from error
        if entries and DIRECTORY not in entries:
            raise OutputError(
                f"'{self.path}' is not empty and was not made by mergeloom: "
                "choose another output directory"
            )


class ShardSink:
    """Takes tiles and completed tensors of one run; commits them durably as it goes on.

    A thread of its own makes finished tensors durable, records them in the journal, and gives
    complete shards their final names. ``check`` is asked before anything is recorded: it raises
    if the inputs that were read are not those that were planned with.
    """

    def __init__(
        self,
        output: OutputDirectory,
        graph: Graph,
        done: Mapping[Write, Finished],
        fingerprint: str,
        identity: Mapping[str, str],
        mode: IOMode,
        side_files: Sequence[SideFile] = (),
        check: Callable[[], None] = lambda: None,
        commit_seconds: float = COMMIT_SECONDS,
    ) -> None:
        self._output = output
        self._files = output.files
        self._graph = graph
        self._done: dict[Write, Finished] = dict(done)
        self._mode = mode
        self._fingerprint = fingerprint
        self._identity = identity
        self._side_files = side_files
        self._check = check
        self._commit_seconds = commit_seconds
        self._writers: dict[OutputFile, FileWriter] = {}
        self._remaining: dict[OutputFile, int] = dict.fromkeys(graph.files, 0)
        for write in graph.writes:
            self._remaining[write.file] += write not in self._done
        self._pending: list[tuple[Write, Finished]] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self.is_direct = True
        """Whether all writers that were opened go around the page cache."""
        self._closing = False
        self._failure: BaseException | None = None
        self._journal = Journal(output.journal_path, self._files)
        try:
            if self._journal.is_empty:
                names = [file.name for file in graph.files]
                names += [file.name for file in side_files]
                self._journal.begin(fingerprint, identity, names)
            self._prepare_files()
            self._thread = threading.Thread(target=self._commit_regularly, daemon=True)
            self._thread.start()
        except BaseException:
            self._close_files()
            raise

    def writer(self, file: OutputFile) -> FileWriter:
        """The writer of one shard's partial file."""
        with self._lock:
            if self._failure is not None:
                raise self._failure
            writer = self._writers.get(file)
            if writer is None:
                path = partial_path(self._output.path / file.name)
                writer = FileWriter(path, file.size, self._mode, self._files)
                self._writers[file] = writer
                self.is_direct = self.is_direct and writer.is_direct
                writer.write_bytes(0, file.header)
            return writer

    def completed(self, write: Write, digest: str, block_bytes: int) -> None:
        """All bytes of ``write`` were handed to its writer."""
        entry = Finished(write.file.name, write.name, digest, block_bytes)
        with self._lock:
            self._pending.append((write, entry))

    def close(self) -> None:
        """Commit what is complete and stop; the run can be continued from here.

        Raises:
            RunError: something could not be made durable.
        """
        self._closing = True
        self._wake.set()
        self._thread.join()
        self._close_files()
        if self._failure is not None:
            raise self._failure

    def _close_files(self) -> None:
        self._journal.close()
        for writer in self._writers.values():
            writer.close()

    def finish(self, about: Mapping[str, Any]) -> Manifest:
        """Write the side files and the manifest; the output is finished then. Call after `close`.

        Raises:
            RunError: the disk is full, or refuses otherwise.
        """
        unfinished = [write.name for write in self._graph.writes if write not in self._done]
        assert not unfinished, f"{unfinished[0]} is not finished"
        for file in self._graph.files:
            self._finish_file(file)
        side = {}
        for side_file in self._side_files:
            target = self._output.path / side_file.name
            write_file(target, side_file.pieces(), self._files)
            side[side_file.name] = side_file.digest
        manifest = Manifest(
            fingerprint=self._fingerprint,
            identity=dict(self._identity),
            files={file.name: file_record(file) for file in self._graph.files},
            side_files=side,
            tensors=tuple(tensor_record(write, self._done[write]) for write in self._graph.writes),
            about=about,
        )
        with reported("write", self._output.path):
            self._files.sync_directory(self._output.path)
        write_file(manifest_path(self._output.path), manifest.encode(), self._files)
        with reported("remove", self._output.journal_path):
            self._files.remove(self._output.journal_path)
        return manifest

    def _prepare_files(self) -> None:
        """Bring each shard to the name that its state asks for."""
        for file, remaining in self._remaining.items():
            final = self._output.path / file.name
            lacking = not _has_header(self._output.present(file), file)
            if (remaining or lacking) and final.exists():
                with reported("write", final):
                    self._files.rename(final, partial_path(final))
            if lacking and not remaining:  # its tensors are there, or it has none
                self.writer(file)
                self._finish_file(file)

    def _commit_regularly(self) -> None:
        try:
            while not self._closing:
                self._wake.wait(self._commit_seconds)
                self._commit()
            self._commit()
        except BaseException as error:
            with self._lock:
                self._failure = error

    def _commit(self) -> None:
        with self._lock:
            pending, self._pending = self._pending, []
            writers = {write.file: self._writers.get(write.file) for write, _ in pending}
        if not pending:
            return
        self._check()
        for file, writer in writers.items():
            (writer or self.writer(file)).sync()
        self._journal.append(entry for _, entry in pending)
        for write, entry in pending:
            self._done[write] = entry
            self._remaining[write.file] -= 1
        for file in writers:
            if not self._remaining[file]:
                self._finish_file(file)

    def _finish_file(self, file: OutputFile) -> None:
        final = self._output.path / file.name
        with self._lock:
            writer = self._writers.pop(file, None)
        if writer is not None:
            try:
                writer.sync()
            finally:
                writer.close()
        if not final.exists():
            with reported("write", final):
                self._files.rename(partial_path(final), final)
                self._files.sync_directory(final.parent)


def partial_path(path: Path) -> Path:
    """Where a shard is written before it is complete."""
    return path.with_name(path.name + ".partial")


def _amount(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"


def file_record(file: OutputFile) -> FileRecord:
    """The manifest's record of one shard."""
    return FileRecord(file.size, len(file.header), digest_of([file.header]))


def _has_header(path: Path, file: OutputFile) -> bool:
    """Whether the file at ``path`` has the size and begins with the header of ``file``."""
    try:
        with open(path, "rb") as found:
            size = os.fstat(found.fileno()).st_size
            return size == file.size and found.read(len(file.header)) == file.header
    except OSError:
        return False


def tensor_record(write: Write, entry: Finished) -> TensorRecord:
    """The manifest's record of one finished write."""
    return TensorRecord(
        write.name, write.file.name, write.offset, write.nbytes, entry.digest, entry.block_bytes
    )
