"""Files of spilled values: written and read in one run, and removed when it is over."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mergeloom.engine.graph.graph import OutputFile, Spill, Write
from mergeloom.engine.memory.ledger import Block
from mergeloom.engine.run.executor import Sink, Writer
from mergeloom.engine.storage.file_system import FILES, Files, reported
from mergeloom.engine.storage.files import FileReader, FileSource, FileWriter
from mergeloom.engine.storage.source import IOMode


class SpillReader(FileReader):
    """Reads a value that this run has written; only what is complete is asked for."""

    def check_unchanged(self) -> None:
        """Nobody else writes it."""


class SpillWriter(FileWriter):
    """Writes a value that this run will read: what is written is in the file at once."""

    def write(self, start: int, stop: int, block: Block, at: int) -> None:
        super().write(start, stop, block, at)
        self.flush()


class SpillFiles:
    """One file in ``directory`` for each of ``spills``, of its full size from the beginning."""

    def __init__(
        self, directory: Path, spills: Iterable[Spill], mode: IOMode, files: Files = FILES
    ) -> None:
        self._directory = directory
        self._mode = mode
        self._files = files
        self._writers: dict[OutputFile, SpillWriter] = {}
        self._readers: list[SpillReader] = []
        try:
            for spill in spills:
                file = spill.write.file
                path = directory / file.name
                self._writers[file] = SpillWriter(path, file.size, mode, files)
        except BaseException:
            self.close()
            raise

    def reader(self, spill: Spill) -> SpillReader:
        """What reads a value; it is closed with all others."""
        path = str(self._directory / spill.write.file.name)
        reader = SpillReader(FileSource(path, spill.size, 0, ""), self._mode, self._files)
        self._readers.append(reader)
        return reader

    def before(self, sink: Sink) -> Sink:
        """A sink that takes the values, and hands down to ``sink`` all else."""
        return _Spilling(sink, self._writers) if self._writers else sink

    def close(self) -> None:
        """Close and remove all files."""
        for reader in self._readers:
            reader.close()
        for writer in self._writers.values():
            writer.close()
            with reported("remove", writer.path):
                self._files.remove(writer.path)


class _Spilling:
    """Where results go, of which some are spilled."""

    def __init__(self, sink: Sink, writers: Mapping[OutputFile, FileWriter]) -> None:
        self._sink = sink
        self._writers = writers

    def writer(self, file: OutputFile) -> Writer:
        return self._writers.get(file) or self._sink.writer(file)

    def completed(
        self, write: Write, digest: str, block_bytes: int, error: float | None = None
    ) -> None:
        if write.file not in self._writers:
            self._sink.completed(write, digest, block_bytes, error)


@contextlib.contextmanager
def spilling(
    directory: Path, spills: Iterable[Spill], mode: IOMode, files: Files = FILES
) -> Iterator[SpillFiles]:
    """`SpillFiles` that are closed in the end, whatever happens.

    Raises:
        RunError: they cannot be made or removed.
    """
    found = SpillFiles(directory, spills, mode, files)
    try:
        yield found
    except BaseException:
        with contextlib.suppress(Exception):
            found.close()
        raise
    found.close()
