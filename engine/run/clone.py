"""Copies that move no byte: where the file system shares extents, a copy is a clone.

    source   ...▐███▌▐████████▌▐████████▌▐██▌...
                 read  cloned    cloned   read
    slot     ..▐███▌▐████████▌▐████████▌▐██▌..

A clone is made of whole blocks, so it needs offsets that agree modulo the block; the planner pads
headers so that most do. What lies before the first whole block and after the last is copied.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mergeloom.engine.graph.graph import Graph, Load, Write, copied_dtype
from mergeloom.engine.graph.pieces import Range
from mergeloom.engine.memory.ledger import Block
from mergeloom.engine.memory.pages import PAGE, lead, span_bytes
from mergeloom.engine.output.manifest import Origin
from mergeloom.engine.storage.file_system import Files
from mergeloom.engine.storage.files import FileReader, FileSource, FileWriter

_SHARING = frozenset({"btrfs", "xfs", "bcachefs", "ocfs2"})


@dataclass(frozen=True, slots=True)
class Clone:
    """A write whose bytes are those of ``source`` from byte ``offset`` on."""

    write: Write
    source: FileSource
    offset: int

    @property
    def blocks(self) -> tuple[int, int]:
        """From where to where, in bytes of the tensor, it is made of whole blocks."""
        start = -self.offset % PAGE
        return start, start + max(0, self.write.nbytes - start) // PAGE * PAGE

    @property
    def cloned_bytes(self) -> int:
        start, stop = self.blocks
        return stop - start

    @property
    def origin(self) -> Origin:
        """What is recorded of it."""
        return Origin(self.source.path, self.offset, self.source.size, self.source.modified)


def clonable(graph: Graph) -> Iterator[Clone]:
    """The writes of a graph that could be clones: plain copies with offsets that agree."""
    for write in graph.writes:
        if copied_dtype(write.merge) != write.dtype:
            continue
        node = write.merge.gather.inputs[0]
        while not isinstance(node, Load):
            node = node.gather.inputs[0]
        if isinstance(node.bytes, Range) and isinstance(node.bytes.source, FileSource):
            clone = Clone(write, node.bytes.source, node.bytes.offset)
            if (clone.offset - write.offset) % PAGE == 0 and clone.cloned_bytes > 0:
                yield clone


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
    to = clone.write.offset
    reader.clone(clone.offset + start, clone.offset + stop, writer, to + start)
    for begin, end in ((0, start), (stop, clone.write.nbytes)):
        if begin < end:
            block, at = Block(span_bytes(end - begin)), lead(clone.offset + begin)
            reader.read(clone.offset + begin, clone.offset + end, block, at)
            writer.write(to + begin, to + end, block, at)
