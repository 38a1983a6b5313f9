"""The output directory: preallocated shards, journal, atomic finish, resume.

    NAME.partial ──tiles in place──► durable ──rename──► NAME ──all──► side files ──► manifest

A shard has its final name only when all its bytes are durable, the side files come after the
shards and the manifest last: a directory that looks finished is finished.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import OutputError
from engine.graph import Graph, OutputFile, Write
from engine.journal import Finished, Journal, JournalContent, read_journal
from engine.manifest import DIRECTORY, Manifest, TensorRecord, manifest_path, read_manifest
from engine.storage import FileWriter, IOMode, sync_directory, write_file
from engine.verification import verify_tensors

COMMIT_SECONDS = 1.0
"""How often finished tensors are made durable and recorded."""

_RESERVE = 64 << 20


@dataclass(frozen=True, slots=True)
class SideFile:
    """A small file of the output: its bytes, or the path of the file to copy."""

    name: str
    content: bytes | Path


class OutputDirectory:
    """One output directory, locked for as long as this object is open.

    Raises:
        OutputError: it is not empty and not ours, or another process is writing it.
    """

    def __init__(self, path: Path, create: bool = True) -> None:
        self.path = path
        self._check_ours()
        try:
            if create:
                (path / DIRECTORY).mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path / DIRECTORY, os.O_RDONLY)
        except OSError as error:
            raise OutputError(f"cannot create '{path}': {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise OutputError(
                f"another process is writing '{path}': wait for it, or choose another output"
            ) from error

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
        """Remove what earlier runs have put here, as they recorded it, and nothing else."""
        manifest, journal = self.finished(), self.interrupted()
        names: list[str] = []
        if manifest is not None:
            names += [*manifest.files, *manifest.side_files]
        if journal is not None:
            names += journal.files
        for name in names:
            path = self.path / name
            if path.resolve().is_relative_to(self.path.resolve()):
                path.unlink(missing_ok=True)
                partial_path(path).unlink(missing_ok=True)
        for own in (manifest_path(self.path), self.journal_path):
            own.unlink(missing_ok=True)

    def resumable(
        self, graph: Graph, journal: JournalContent, verify: bool = True
    ) -> dict[Write, Finished]:
        """The writes that need not be done again: recorded, and their bytes as recorded."""
        writes = {(write.file.name, write.name): write for write in graph.writes}
        recorded: dict[Write, Finished] = {}
        for entry in journal.finished:
            write = writes.get((entry.file, entry.tensor))
            if write is not None:
                recorded[write] = entry
        if verify:
            places = [
                (self._present(write.file), tensor_record(write, entry))
                for write, entry in recorded.items()
            ]
            wrong = {(record.file, record.name) for record, _ in verify_tensors(places)}
            for key in wrong:
                del recorded[writes[key]]
        return recorded

    def check_space(self, graph: Graph) -> None:
        """Compare the free space with what the shards still need.

        Raises:
            OutputError: the disk is too small; the message says by how much.
        """
        needed = _RESERVE // 64
        for file in graph.files:
            with contextlib.suppress(OSError):
                status = os.stat(self._present(file))
                needed -= min(status.st_blocks * 512, file.size)
            needed += file.size
        free = shutil.disk_usage(self.path).free
        if needed > free:
            raise OutputError(
                f"'{self.path}' has {free / 1e9:.1f} GB free and the output needs "
                f"{needed / 1e9:.1f} GB more: free {(needed - free) / 1e9:.1f} GB, "
                "or choose another disk"
            )

    def _present(self, file: OutputFile) -> Path:
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
    complete shards their final names.
    """

    def __init__(
        self,
        output: OutputDirectory,
        graph: Graph,
        done: Mapping[Write, Finished],
        fingerprint: str,
        identity: Mapping[str, str],
        mode: IOMode,
    ) -> None:
        self._output = output
        self._graph = graph
        self._done: dict[Write, Finished] = dict(done)
        self._mode = mode
        self._fingerprint = fingerprint
        self._identity = identity
        self._writers: dict[OutputFile, FileWriter] = {}
        self._remaining: dict[OutputFile, int] = dict.fromkeys(graph.files, 0)
        for write in graph.writes:
            self._remaining[write.file] += write not in self._done
        self._pending: list[tuple[Write, Finished]] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        self._failure: BaseException | None = None
        fresh = not output.journal_path.exists()
        self._journal = Journal(output.journal_path)
        if fresh or output.journal_path.stat().st_size == 0:
            self._journal.begin(fingerprint, identity, [file.name for file in graph.files])
            sync_directory(output.journal_path.parent)
        self._prepare_files()
        self._thread = threading.Thread(target=self._commit_regularly, daemon=True)
        self._thread.start()

    def writer(self, file: OutputFile) -> FileWriter:
        """The writer of one shard's partial file."""
        with self._lock:
            if self._failure is not None:
                raise self._failure
            writer = self._writers.get(file)
            if writer is None:
                path = partial_path(self._output.path / file.name)
                writer = self._writers[file] = FileWriter(path, file.size, self._mode)
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
        self._journal.close()
        for writer in self._writers.values():
            writer.close()
        if self._failure is not None:
            raise self._failure

    def finish(self, side_files: Iterable[SideFile], about: Mapping[str, Any]) -> Manifest:
        """Write the side files and the manifest; the output is finished then. Call after `close`.

        Raises:
            RunError: the disk is full, or refuses otherwise.
        """
        unfinished = [write.name for write in self._graph.writes if write not in self._done]
        assert not unfinished, f"{unfinished[0]} is not finished"
        for file in self._graph.files:
            self._finish_file(file)
        names = []
        for side_file in side_files:
            content = side_file.content
            names.append(side_file.name)
            target = self._output.path / side_file.name
            write_file(target, content if isinstance(content, bytes) else content.read_bytes())
        manifest = Manifest(
            fingerprint=self._fingerprint,
            identity=dict(self._identity),
            files={file.name: file.size for file in self._graph.files},
            side_files=tuple(names),
            tensors=tuple(tensor_record(write, self._done[write]) for write in self._graph.writes),
            about=about,
        )
        write_file(manifest_path(self._output.path), manifest.encode())
        self._output.journal_path.unlink()
        return manifest

    def _prepare_files(self) -> None:
        """Bring each shard to the name that its state asks for."""
        for file, remaining in self._remaining.items():
            final = self._output.path / file.name
            if remaining and final.exists():
                os.replace(final, partial_path(final))
            if remaining == 0 and not final.exists() and not partial_path(final).exists():
                self.writer(file)  # a shard without tensors

    def _commit_regularly(self) -> None:
        try:
            while not self._closing:
                self._wake.wait(COMMIT_SECONDS)
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
            writer.sync()
            writer.close()
        if not final.exists():
            os.replace(partial_path(final), final)
            sync_directory(final.parent)


def partial_path(path: Path) -> Path:
    """Where a shard is written before it is complete."""
    return path.with_name(path.name + ".partial")


def tensor_record(write: Write, entry: Finished) -> TensorRecord:
    """The manifest's record of one finished write."""
    return TensorRecord(
        write.name, write.file.name, write.offset, write.nbytes, entry.digest, entry.block_bytes
    )
