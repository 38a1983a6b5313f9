"""The output directory: preallocated shards, journal, atomic finish, resume.

    NAME.partial ──tiles in place──► durable ──rename──► NAME ──all──► side files ──► manifest

A shard gets its final name only when all its bytes are durable; side files are written after the
shards, and the manifest last. So a directory that looks finished is finished. Each step is durable
before the next that relies on it begins, so this also holds after a power failure.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mergeloom.engine.base.errors import OutputError, RunError
from mergeloom.engine.graph.graph import SPILLED, Graph, OutputFile, Write
from mergeloom.engine.output.journal import (
    FinishedTensor,
    Journal,
    JournalContent,
    Totals,
    read_journal,
)
from mergeloom.engine.output.lock import AlreadyLocked, lock_directory
from mergeloom.engine.output.manifest import (
    DIRECTORY,
    Manifest,
    is_inside,
    is_valid_block,
    manifest_path,
    read_manifest,
    tensor_record,
)
from mergeloom.engine.output.shard_files import partial_path
from mergeloom.engine.output.side_files import SideFile
from mergeloom.engine.output.state import Condition, foreign_state
from mergeloom.engine.output.verify_tensors import verify_tensors
from mergeloom.engine.storage.file_system import FILES, Files, make_directories, reported
from mergeloom.engine.storage.files import write_file

_RESERVE_BYTES = 1 << 20
"""Disk space for journal and manifest beyond the files themselves."""
_DISCARDED = "discarded-"
"""Prefix of records that `OutputDirectory.clear` has set aside."""


class OutputDirectory:
    """One output directory, locked while this object is open.

    Raises:
        OutputError: it is not empty and was not made by this program.
        RunError: it cannot be created, or another process is writing to it.
    """

    def __init__(self, path: Path, files: Files = FILES) -> None:
        self.path = path
        self.files = files
        self._check_is_output()
        with reported("create", path):
            make_directories(files, path / DIRECTORY)
        with reported("lock", path):
            try:
                self._release = lock_directory(path / DIRECTORY)
            except AlreadyLocked as error:
                raise RunError(
                    f"another process is writing '{path}'",
                    remedy="wait for it, or choose another output",
                ) from error
        try:
            self._remove_discarded()
            self._remove_spilled()
        except BaseException:
            self._release()
            raise

    def __enter__(self) -> OutputDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    @property
    def records(self) -> Path:
        """The directory of this output's records."""
        return self.path / DIRECTORY

    @property
    def journal_path(self) -> Path:
        return self.path / DIRECTORY / "journal"

    def finished(self) -> Manifest | None:
        """The manifest, if this output is finished."""
        return read_manifest(self.path)

    def interrupted(self) -> JournalContent | None:
        """The content of the journal, if a run began here and has not finished."""
        return read_journal(self.journal_path)

    def begin_again(
        self,
        fingerprint: str,
        identity: Mapping[str, str],
        files: Sequence[str],
        finished: Iterable[FinishedTensor],
        totals: Totals | None = None,
    ) -> None:
        """Turn this directory into an interrupted merge with these finished tensors, out of
        ``totals``.

        The existing records stay valid until the new journal is durable.

        Raises:
            RunError: writing fails, for example because the disk is full.
        """
        new = partial_path(self.journal_path)
        with reported("write", new):
            if new.exists():
                self.files.remove(new)
        journal = Journal(new, self.files)
        try:
            journal.begin(fingerprint, identity, files, totals)
            journal.append(finished)
        finally:
            journal.close()
        with reported("write", self.journal_path):
            self.files.rename(new, self.journal_path)
            self.files.sync_directory(new.parent)
            if manifest_path(self.path).exists():
                self.files.remove(manifest_path(self.path))
                self.files.sync_directory(new.parent)

    def update_identity(
        self, manifest: Manifest, fingerprint: str, identity: Mapping[str, str]
    ) -> None:
        """Update the fingerprint and identity in the manifest of a finished output.

        Raises:
            RunError: writing fails, for example because the disk is full.
        """
        found = replace(manifest, fingerprint=fingerprint, identity=dict(identity))
        write_file(manifest_path(self.path), found.encode(), self.files)

    def clear(self) -> None:
        """Remove the files that earlier runs recorded as theirs, and nothing else.

        The records are set aside first: from then on the directory does not look finished, and
        if removal is interrupted, the next process to open the directory completes it.

        Raises:
            RunError: writing fails, for example because the disk is full.
        """
        with reported("clear", self.path):
            for record in (manifest_path(self.path), self.journal_path):
                if record.exists():
                    self.files.rename(record, record.with_name(_DISCARDED + record.name))
            self.files.sync_directory(self.path / DIRECTORY)
        self._remove_discarded()

    def _remove_discarded(self) -> None:
        """Remove the files listed in records that were set aside, then these records."""
        own = self.path / DIRECTORY
        manifest = own / (_DISCARDED + manifest_path(self.path).name)
        journal = own / (_DISCARDED + self.journal_path.name)
        if not (manifest.exists() or journal.exists()):
            return
        names: dict[str, None] = {}
        with contextlib.suppress(OutputError):  # damaged: its files are unknown
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

    def _remove_spilled(self) -> None:
        """Remove values spilled by an interrupted run; they are computed again."""
        with reported("clear", self.path):
            for path in self.records.glob(f"{SPILLED}*"):
                self.files.remove(path)

    def resumable(
        self, graph: Graph, journal: JournalContent, verify: bool = True
    ) -> dict[Write, FinishedTensor]:
        """The writes that need not be repeated: they are recorded, and if ``verify``, their bytes
        match the record."""
        writes = {(write.file.name, write.name): write for write in graph.writes}
        recorded: dict[Write, FinishedTensor] = {}
        for entry in journal.finished:
            write = writes.get((entry.file, entry.tensor))
            is_valid = write is not None and is_valid_block(entry.block_bytes, write.nbytes)
            if write is not None and is_valid and entry.digest:
                recorded[write] = entry
        if verify:
            places = [
                (self.current_path(write.file), tensor_record(write, entry))
                for write, entry in recorded.items()
            ]
            wrong = {(record.file, record.name) for record, _ in verify_tensors(places)}
            for key in wrong:
                del recorded[writes[key]]
        return recorded

    def check_space(
        self, graph: Graph, side_files: Iterable[SideFile] = (), cloned: int = 0
    ) -> None:
        """Check that there is enough free space for shards and side files; ``cloned`` bytes are
        shared with other files.

        Raises:
            RunError: the disk is too small; the message says by how much.
        """
        needed = needed_bytes(self.path, graph, side_files) - cloned
        with reported("read", self.path):
            free = shutil.disk_usage(self.path).free
        if needed > free:
            more = _size_text(needed - free)
            raise RunError(
                f"'{self.path}' has {_size_text(free)} free and the output needs "
                f"{_size_text(needed)} more",
                remedy=f"free {more} and the same command continues, or choose another disk",
            )

    def current_path(self, file: OutputFile) -> Path:
        """Path of a shard: its final name, or that of the partial file."""
        return current_path(self.path, file)

    def _check_is_output(self) -> None:
        found = foreign_state(self.path)
        if os.path.islink(self.path) and not os.path.exists(self.path):
            raise OutputError(
                f"'{self.path}' is a link to '{os.readlink(self.path)}', which does not exist",
                remedy="make that directory, or choose another output",
            )
        if found is None or found.condition in (Condition.ABSENT, Condition.EMPTY):
            return
        if found.condition is Condition.FILE:
            raise OutputError(
                f"'{self.path}' is a file, not a directory", remedy="choose another output"
            )
        if found.condition is Condition.UNREADABLE:
            raise OutputError(
                f"cannot read '{self.path}': {found.reason}",
                remedy="choose another output directory",
            )
        raise OutputError(
            f"'{self.path}' is not empty and was not made by mergeloom",
            remedy="choose another output directory",
        )


def current_path(output: Path, file: OutputFile) -> Path:
    """The path of a shard of an output: its final name, or that of the partial file."""
    final = output / file.name
    return final if final.exists() else partial_path(final)


def needed_bytes(output: Path, graph: Graph, side_files: Iterable[SideFile] = ()) -> int:
    """Bytes of disk still needed for shards, side files and spilled values, with a small
    reserve."""
    needed = _RESERVE_BYTES + sum(file.size for file in side_files)
    needed += sum(spill.size for spill in graph.spills)
    for file in graph.files:
        with contextlib.suppress(OSError):
            status = os.stat(current_path(output, file))
            allocated = getattr(status, "st_blocks", None)  # not available on Windows
            held = status.st_size if allocated is None else allocated * 512
            needed -= min(held, file.size)
        needed += file.size
    return needed


def _size_text(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"
