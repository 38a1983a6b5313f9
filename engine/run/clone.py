"""Copies that move no byte: where the file system shares extents, a copy is a clone.

    source   ...▐███▌▐████████▌▐████████▌▐██▌...
                 read  cloned    cloned   read
    slot     ..▐███▌▐████████▌▐████████▌▐██▌..

A clone is made of whole blocks, so it needs offsets that agree modulo the block; the planner pads
headers and chooses what shares a shard so that most do. Tensors that follow each other in both are
one clone. What lies before the first whole block and after the last is copied.
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
from mergeloom.engine.memory.pages import PAGE, lead, span_bytes
from mergeloom.engine.output.manifest import Origin
from mergeloom.engine.storage.file_system import Files
from mergeloom.engine.storage.files import FileReader, FileSource, FileWriter

_SHARING = frozenset({"btrfs", "xfs", "bcachefs", "ocfs2"})


@dataclass(frozen=True, slots=True)
class Clone:
    """Writes that follow each other in a file, as their bytes do in ``source`` from byte ``offset``
    on."""

    writes: tuple[Write, ...]
    source: FileSource
    offset: int

    @property
    def file(self) -> OutputFile:
        """The shard that the writes are in."""
        return self.writes[0].file

    @property
    def to(self) -> int:
        """Where they begin in it."""
        return self.writes[0].offset

    @property
    def nbytes(self) -> int:
        """Bytes of all writes."""
        last = self.writes[-1]
        return last.offset + last.nbytes - self.to

    @property
    def blocks(self) -> tuple[int, int]:
        """From where to where, in bytes of all writes, it is made of whole blocks."""
        start = -self.offset % PAGE
        return start, start + max(0, self.nbytes - start) // PAGE * PAGE

    @property
    def cloned_bytes(self) -> int:
        start, stop = self.blocks
        return stop - start

    @property
    def origins(self) -> dict[Write, Origin]:
        """What is recorded of each write."""
        return {
            write: Origin(
                self.source.path,
                self.offset + write.offset - self.to,
                self.source.size,
                self.source.modified,
            )
            for write in self.writes
        }


@dataclass(frozen=True, slots=True)
class CloneBytes:
    """Bytes of clones that are shared, and those that are moved for them: the blocks at their
    edges, which are read and written, and headers of files that nothing else is written to."""

    cloned: int = 0
    read: int = 0
    written: int = 0

    @staticmethod
    def of(clones: Iterable[Clone], graph: Graph) -> CloneBytes:
        """Those of ``clones``; ``graph`` is what runs beside them."""
        clones = tuple(clones)
        cloned = sum(clone.cloned_bytes for clone in clones)
        edges = sum(clone.nbytes for clone in clones) - cloned
        own = {clone.file for clone in clones} - {write.file for write in graph.writes}
        return CloneBytes(cloned, edges, edges + sum(len(file.header) for file in own))


NO_CLONES = CloneBytes()


def writes_of(clones: Iterable[Clone]) -> list[Write]:
    """The writes of several clones."""
    return [write for clone in clones for write in clone.writes]


def clonable(graph: Graph) -> Iterator[Clone]:
    """What of a graph could be clones: plain copies with offsets that agree, as long as can be."""
    runs: list[Clone] = []
    for write in sorted(graph.writes, key=lambda write: (write.file.name, write.offset)):
        found = _origin(write)
        if found is None or (found.offset - write.offset) % PAGE:
            continue
        source, offset = found.source, found.offset
        assert isinstance(source, FileSource)
        last = runs[-1] if runs else None
        if (
            last is not None
            and last.file is write.file
            and last.source is source
            and last.to + last.nbytes == write.offset
            and last.offset + last.nbytes == offset
        ):
            runs[-1] = Clone((*last.writes, write), source, last.offset)
        else:
            runs.append(Clone((write,), source, offset))
    return (clone for clone in runs if clone.cloned_bytes > 0)


def _origin(write: Write) -> Range | None:
    """The bytes of a file that a write is a copy of, if it is one of a contiguous run of bytes."""
    if copied_dtype(write.merge) != write.dtype:
        return None
    node = write.merge.gather.inputs[0]
    while not isinstance(node, Load):
        node = node.gather.inputs[0]
    found = node.bytes
    return found if isinstance(found, Range) and isinstance(found.source, FileSource) else None


def that_work(clones: Iterable[Clone], directory: Path, files: Files) -> list[Clone]:
    """Those of ``clones`` that the file system of ``directory`` makes: one block is tried of each
    source, in a file that is removed again."""
    able: dict[str, bool] = {}
    found = []
    for clone in clones:
        path = clone.source.path
        if path not in able:
            able[path] = may_share(path, directory) and _works(path, directory, files)
        if able[path]:
            found.append(clone)
    return found


def may_share(path: str, directory: Path) -> bool:
    """Whether a file and a directory, or what is there of its path, are on one file system that
    can share extents between files; nothing is tried."""
    while not directory.exists():
        directory = directory.parent
    source, target = _mount(os.path.realpath(path)), _mount(os.path.realpath(directory))
    return source is not None and source == target and source[1] in _SHARING


def _works(path: str, directory: Path, files: Files) -> bool:
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
    """The device that is mounted where ``path`` lies, and the type of its file system."""
    found, longest = None, -1
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        device, place, kind, *_ = line.split()
        place = place.encode().decode("unicode_escape")  # a space is written as its code
        inside = path == place or path.startswith(place.rstrip("/") + "/")
        if inside and len(place) >= longest:
            found, longest = (device, kind), len(place)
    return found


def make(clone: Clone, reader: FileReader, writer: FileWriter) -> None:
    """Make one clone: its whole blocks, and the edges.

    Raises:
        RunError: the disk is full, or refuses otherwise.
    """
    start, stop = clone.blocks
    reader.clone(clone.offset + start, clone.offset + stop, writer, clone.to + start)
    for begin, end in ((0, start), (stop, clone.nbytes)):
        if begin < end:
            block, at = Block(span_bytes(end - begin)), lead(clone.offset + begin)
            reader.read(clone.offset + begin, clone.offset + end, block, at)
            writer.write(clone.to + begin, clone.to + end, block, at)
