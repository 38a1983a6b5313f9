"""Copies that move no bytes: where the file system can share extents, a copy is a clone (reflink).

    source   ...▐███▌▐████████▌▐████████▌▐██▌...
                 read  cloned    cloned   read
    slot     ..▐███▌▐████████▌▐████████▌▐██▌..

A clone consists of whole blocks, so both offsets must be congruent modulo the block size; the
planner pads headers and groups tensors in shards so that most are. Tensors that are adjacent in
both files form one clone. The bytes before the first and after the last whole block are copied.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.graph import Graph, Load, OutputFile, Write, copied_dtype
from mergeloom.engine.graph.pieces import Range
from mergeloom.engine.memory.ledger import Block
from mergeloom.engine.memory.pages import PAGE, page_offset, span_bytes
from mergeloom.engine.output.manifest import Origin
from mergeloom.engine.storage.file_system import Files
from mergeloom.engine.storage.files import FileReader, FileSource, FileWriter

_SHARING_FILE_SYSTEMS = frozenset({"btrfs", "xfs", "bcachefs", "ocfs2"})


@dataclass(frozen=True, slots=True)
class Clone:
    """Writes that are contiguous in their file and copy contiguous bytes of ``source``, starting at
    byte ``offset``."""

    writes: tuple[Write, ...]
    source: FileSource
    offset: int

    @property
    def file(self) -> OutputFile:
        """The shard of the writes."""
        return self.writes[0].file

    @property
    def target_offset(self) -> int:
        """The offset of the first write in the shard, in bytes."""
        return self.writes[0].offset

    @property
    def nbytes(self) -> int:
        """Bytes of all writes."""
        last = self.writes[-1]
        return last.offset + last.nbytes - self.target_offset

    @property
    def blocks(self) -> tuple[int, int]:
        """The range of whole blocks, in bytes relative to the first write."""
        start = -self.offset % PAGE
        return start, start + max(0, self.nbytes - start) // PAGE * PAGE

    @property
    def cloned_bytes(self) -> int:
        start, stop = self.blocks
        return stop - start

    @property
    def origins(self) -> dict[Write, Origin]:
        """The origin recorded for each write."""
        return {
            write: Origin(
                self.source.path,
                self.offset + write.offset - self.target_offset,
                self.source.size,
                self.source.modified,
            )
            for write in self.writes
        }


@dataclass(frozen=True, slots=True)
class CloneBytes:
    """Bytes that clones share, and bytes still moved for them: partial blocks at both ends, which
    are read and written, and headers of files that consist of clones only."""

    cloned: int = 0
    read: int = 0
    written: int = 0

    @staticmethod
    def of(clones: Iterable[Clone], graph: Graph) -> CloneBytes:
        """The totals of ``clones``; ``graph`` is the rest of the run."""
        clones = tuple(clones)
        cloned = sum(clone.cloned_bytes for clone in clones)
        edges = sum(clone.nbytes for clone in clones) - cloned
        own = {clone.file for clone in clones} - {write.file for write in graph.writes}
        return CloneBytes(cloned, edges, edges + sum(len(file.header) for file in own))


NO_CLONES = CloneBytes()


def writes_of(clones: Iterable[Clone]) -> list[Write]:
    """The writes of all ``clones``."""
    return [write for clone in clones for write in clone.writes]


def possible_clones(graph: Graph) -> Iterator[Clone]:
    """The possible clones of a graph: plain copies with congruent offsets, each as long as
    possible."""
    runs: list[Clone] = []
    for write in sorted(graph.writes, key=lambda write: (write.file.name, write.offset)):
        found = _copied_range(write)
        if found is None or (found.offset - write.offset) % PAGE:
            continue
        source, offset = found.source, found.offset
        assert isinstance(source, FileSource)
        last = runs[-1] if runs else None
        if (
            last is not None
            and last.file is write.file
            and last.source is source
            and last.target_offset + last.nbytes == write.offset
            and last.offset + last.nbytes == offset
        ):
            runs[-1] = Clone((*last.writes, write), source, last.offset)
        else:
            runs.append(Clone((write,), source, offset))
    return (clone for clone in runs if clone.cloned_bytes > 0)


def _copied_range(write: Write) -> Range | None:
    """The byte range of a file that a write copies; ``None`` if it is not one contiguous range."""
    if copied_dtype(write.merge) != write.dtype:
        return None
    node = write.merge.gather.inputs[0]
    while not isinstance(node, Load):
        node = node.gather.inputs[0]
    found = node.bytes
    return found if isinstance(found, Range) and isinstance(found.source, FileSource) else None


def supported_clones(clones: Iterable[Clone], directory: Path, files: Files) -> list[Clone]:
    """Those of ``clones`` that the file system of ``directory`` supports.

    For each source file, one block is cloned into a temporary file to find out.
    """
    able: dict[str, bool] = {}
    found = []
    for clone in clones:
        path = clone.source.path
        if path not in able:
            able[path] = may_share(path, directory) and _can_clone(path, directory, files)
        if able[path]:
            found.append(clone)
    return found


def may_share(path: str, directory: Path) -> bool:
    """Whether a file and a directory, or its existing parents, are on one file system of a type
    that can share extents. Does not try it."""
    while not directory.exists():
        directory = directory.parent
    source, target = _mount(os.path.realpath(path)), _mount(os.path.realpath(directory))
    return source is not None and source == target and source[1] in _SHARING_FILE_SYSTEMS


def _can_clone(path: str, directory: Path, files: Files) -> bool:
    trial = directory / f"trial-{os.getpid()}"
    try:
        with contextlib.ExitStack() as opened:
            source = files.open(path, os.O_RDONLY)
            opened.callback(files.close, source)
            target = files.open(trial, os.O_RDWR | os.O_CREAT)
            opened.callback(files.remove, trial)
            opened.callback(files.close, target)
            files.truncate(target, PAGE)
            files.clone(source, 0, PAGE, target, 0)
    except OSError:
        return False
    return True


def _mount(path: str) -> tuple[str, str] | None:
    """Device and type of the file system that contains ``path``."""
    found, longest = None, -1
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        device, place, kind, *_ = line.split()
        place = place.encode().decode("unicode_escape")  # spaces are escaped
        inside = path == place or path.startswith(place.rstrip("/") + "/")
        if inside and len(place) >= longest:
            found, longest = (device, kind), len(place)
    return found


def make_clone(clone: Clone, reader: FileReader, writer: FileWriter) -> None:
    """Clone the whole blocks and copy the partial blocks at both ends.

    Raises:
        RunError: the disk is full, or the write fails.
    """
    start, stop = clone.blocks
    reader.clone(clone.offset + start, clone.offset + stop, writer, clone.target_offset + start)
    for begin, end in ((0, start), (stop, clone.nbytes)):
        if begin < end:
            block, at = Block(span_bytes(end - begin)), page_offset(clone.offset + begin)
            reader.read(clone.offset + begin, clone.offset + end, block, at)
            writer.write(clone.target_offset + begin, clone.target_offset + end, block, at)
