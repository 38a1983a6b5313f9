"""The layout of the inputs, outputs and memos of a bundle of small merges in one block of memory.

Bytes that are adjacent in a file are adjacent in the block, so that one request covers them.

    file A   ░░▓▓▓▓▓▓░░    block   ▓▓▓▓▓▓ ▓▓▓▓▓▓ ▒▒▒▒▒▒    ▒▒▒▒
    file B   ░▓▓▓▓▓▓░░░            of A   of B   outputs   memos
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.graph import Load, Merge, OutputFile, Write
from mergeloom.engine.graph.pieces import Bytes, Range
from mergeloom.engine.memory.pages import PAGE, page_offset, span_bytes
from mergeloom.engine.plan.schedule import ScheduledMerge


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """One read request: dense bytes ``[0, nbytes)`` of ``bytes`` to byte ``at`` of the block."""

    bytes: Bytes
    nbytes: int
    at: int


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """One write request: bytes ``[start, stop)`` of a file, from byte ``at`` of the block."""

    file: OutputFile
    start: int
    stop: int
    at: int


@dataclass(frozen=True, slots=True)
class BundleLayout:
    """The offsets of the inputs, outputs and memos of some merges in one block of ``nbytes``."""

    reads: tuple[ReadRequest, ...]
    writes: tuple[WriteRequest, ...]
    inputs: dict[Load, int]
    outputs: dict[Write, int]
    memos: dict[Merge, int]
    nbytes: int

    @staticmethod
    def of(merges: Sequence[ScheduledMerge]) -> BundleLayout:
        """Lay out ``merges``; bytes that are adjacent in a file are adjacent in the block."""
        end = 0
        reads, inputs = [], {}
        loads = dict.fromkeys(load for merge in merges for load in merge.work.leaves)
        for group in _contiguous_loads(loads):
            first = group[0]
            begin = end + page_offset(first.bytes.position(0))
            nbytes = 0
            for load in group:
                inputs[load] = begin + nbytes
                nbytes += load.nbytes
            whole = first.bytes
            if len(group) > 1:
                assert isinstance(whole, Range)
                whole = Range(whole.source, whole.offset, nbytes)
            reads.append(ReadRequest(whole, nbytes, begin))
            end += _whole_pages(nbytes)
        writes, outputs = [], {}
        for slots in _contiguous_writes(write for merge in merges for write in merge.work.writes):
            start, begin = slots[0].offset, end + page_offset(slots[0].offset)
            for write in slots:
                outputs[write] = begin + write.offset - start
            stop = slots[-1].offset + slots[-1].nbytes
            writes.append(WriteRequest(slots[0].file, start, stop, begin))
            end += _whole_pages(stop - start)
        memos = {}
        for merge in merges:
            if merge.flow.memos:
                memos[merge.work.root] = end
                end += merge.flow.merge_shape.tile_memo_bytes(merge.flow.tile)
        return BundleLayout(tuple(reads), tuple(writes), inputs, outputs, memos, end)


def _whole_pages(nbytes: int) -> int:
    """Size of the whole pages around ``nbytes`` bytes at any alignment."""
    return -(-span_bytes(nbytes) // PAGE) * PAGE


def _contiguous_loads(loads: Iterable[Load]) -> Iterator[list[Load]]:
    """Groups of loads that are contiguous in a source."""
    sources: dict[int, int] = {}
    ranges: list[tuple[int, int, int, Load]] = []
    for number, load in enumerate(loads):
        if isinstance(load.bytes, Range):
            source = sources.setdefault(id(load.bytes.source), len(sources))
            ranges.append((source, load.bytes.offset, number, load))
        else:
            yield [load]
    group: list[Load] = []
    expected: tuple[int, int] | None = None
    for source, offset, _, load in sorted(ranges):
        if group and expected != (source, offset):
            yield group
            group = []
        group.append(load)
        expected = source, offset + load.nbytes
    if group:
        yield group


def _contiguous_writes(writes: Iterable[Write]) -> Iterator[list[Write]]:
    """Groups of writes whose slots are contiguous in a file."""
    group: list[Write] = []
    for write in sorted(writes, key=lambda write: (write.file.name, write.offset)):
        last = group[-1] if group else None
        if last is not None and (write.file, write.offset) != (
            last.file,
            last.offset + last.nbytes,
        ):
            yield group
            group = []
        group.append(write)
    if group:
        yield group
