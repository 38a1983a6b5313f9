"""The sink of a merge: writes shards in place, makes them durable, records them in the journal."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mergeloom.engine.graph.graph import Graph, OutputFile, Write
from mergeloom.engine.output.directory import OutputDirectory
from mergeloom.engine.output.journal import FinishedTensor, Journal, Totals
from mergeloom.engine.output.manifest import (
    Manifest,
    Origin,
    file_record,
    manifest_path,
    tensor_record,
)
from mergeloom.engine.output.shard_files import has_header, partial_path
from mergeloom.engine.output.side_files import SideFile
from mergeloom.engine.storage.file_system import make_directories, reported
from mergeloom.engine.storage.files import FileWriter, write_file
from mergeloom.engine.storage.source import IOMode

COMMIT_SECONDS = 1.0
"""Interval in seconds at which finished tensors are made durable and recorded."""


class ShardSink:
    """Receives tiles and completed tensors of one run, and commits them regularly.

    A separate thread makes finished tensors durable, records them in the journal, and renames
    complete shards. ``check`` is called before anything is recorded; it raises if an input changed
    since planning. ``origins`` has the writes that are clones: their files are not preallocated,
    and they have no digest.
    """

    def __init__(
        self,
        output: OutputDirectory,
        graph: Graph,
        done: Mapping[Write, FinishedTensor],
        fingerprint: str,
        identity: Mapping[str, str],
        mode: IOMode,
        side_files: Sequence[SideFile] = (),
        check: Callable[[], None] = lambda: None,
        commit_seconds: float = COMMIT_SECONDS,
        origins: Mapping[Write, Origin] | None = None,
    ) -> None:
        self._output = output
        self._files = output.files
        self._graph = graph
        self._done: dict[Write, FinishedTensor] = dict(done)
        self._mode = mode
        self._fingerprint = fingerprint
        self._identity = identity
        self._side_files = side_files
        self._check = check
        self._commit_seconds = commit_seconds
        self._origins = origins or {}
        self._cloned = {write.file for write in self._origins}
        self._writers: dict[OutputFile, FileWriter] = {}
        self._remaining: dict[OutputFile, int] = dict.fromkeys(graph.files, 0)
        for write in graph.writes:
            self._remaining[write.file] += write not in self._done
        self._pending: list[tuple[Write, FinishedTensor]] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self.is_direct = True
        """Whether all opened writers bypass the page cache."""
        self._closing = False
        self._failure: BaseException | None = None
        self._journal = Journal(output.journal_path, self._files)
        try:
            if self._journal.is_empty:
                names = [file.name for file in graph.files]
                names += [file.name for file in side_files]
                self._journal.begin(fingerprint, identity, names, Totals.of(graph))
            self._prepare_files()
            self._thread = threading.Thread(target=self._commit_regularly, daemon=True)
            self._thread.start()
        except BaseException:
            self._close_files()
            raise

    def writer(self, file: OutputFile) -> FileWriter:
        """The writer of the partial file of a shard."""
        with self._lock:
            if self._failure is not None:
                raise self._failure
            writer = self._writers.get(file)
            if writer is None:
                path = partial_path(self._output.path / file.name)
                with reported("create", path):
                    make_directories(self._files, path.parent)
                writer = FileWriter(
                    *(path, file.size, self._mode, self._files), allocate=file not in self._cloned
                )
                self._writers[file] = writer
                self.is_direct = self.is_direct and writer.is_direct
                writer.write_bytes(0, file.header)
            return writer

    def completed(
        self, write: Write, digest: str, block_bytes: int, error: float | None = None
    ) -> None:
        """Report that all bytes of ``write`` were passed to its writer; for ``error`` see
        `FinishedTensor`."""
        entry = FinishedTensor(
            write.file.name, write.name, digest, block_bytes, write.nbytes, error
        )
        with self._lock:
            self._pending.append((write, entry))

    def close(self) -> None:
        """Commit completed tensors and stop; a later run can continue.

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
        """Write the side files and the manifest, which finishes the output. Call after `close`.

        Raises:
            RunError: the disk is full, or writing fails for another reason.
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
            tensors=tuple(
                tensor_record(write, self._done[write], self._origins.get(write))
                for write in self._graph.writes
            ),
            about=about,
        )
        with reported("write", self._output.path):
            self._files.sync_directory(self._output.path)
        write_file(manifest_path(self._output.path), manifest.encode(), self._files)
        with reported("remove", self._output.journal_path):
            self._files.remove(self._output.journal_path)
        return manifest

    def _prepare_files(self) -> None:
        """Give each shard the name of its state: partial or final."""
        for file, remaining in self._remaining.items():
            final = self._output.path / file.name
            incomplete = not has_header(self._output.current_path(file), file)
            if (remaining or incomplete) and final.exists():
                with reported("write", final):
                    self._files.rename(final, partial_path(final))
            if incomplete and not remaining:  # all its tensors are done, or it has none
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
