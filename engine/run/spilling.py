"""Files of spilled values: written and read in one run, and removed at its end."""

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
    """Reads a value that this run has written completely."""

    def check_unchanged(self) -> None:
        """Does nothing: no other program writes the file."""


class SpillWriter(FileWriter):
    """Writes a value that this run reads later; each write is complete at once."""

    def write(self, start: int, stop: int, block: Block, at: int) -> None:
        super().write(start, stop, block, at)
        self.flush()


class SpillFiles:
    """One file in ``directory`` for each of ``spills``, allocated at full size."""

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
        """A reader of a value; `close` closes it."""
        path = str(self._directory / spill.write.file.name)
        reader = SpillReader(FileSource(path, spill.size, 0, ""), self._mode, self._files)
        self._readers.append(reader)
        return reader

    def redirecting(self, sink: Sink) -> Sink:
        """A sink that writes spilled values to these files and passes everything else to
        ``sink``."""
        return _SpillSink(sink, self._writers) if self._writers else sink

    def close(self) -> None:
        """Close and remove all files."""
        for reader in self._readers:
            reader.close()
        for writer in self._writers.values():
            writer.close()
            with reported("remove", writer.path):
                self._files.remove(writer.path)


class _SpillSink:
    """A sink that writes spilled values to their files and passes on all other results."""

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
def spill_files(
    directory: Path, spills: Iterable[Spill], mode: IOMode, files: Files = FILES
) -> Iterator[SpillFiles]:
    """`SpillFiles` as a context that always closes them.

    Raises:
        RunError: they cannot be created or removed.
    """
    found = SpillFiles(directory, spills, mode, files)
    try:
        yield found
    except BaseException:
        with contextlib.suppress(Exception):
            found.close()
        raise
    found.close()
