"""Puts the dense bytes of a tensor together from where they lie.

Long runs are read to where they belong. Short ones, and elements that go to distances, are read
many at a time: runs that lie close together in a source are one request, which goes to a window
beside the block, and each part of it is copied from there.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Mapping
from typing import Literal

from mergeloom.engine.graph.pieces import Bytes, Range, Run
from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.engine.memory.ledger import Block
from mergeloom.engine.memory.pages import PAGE, lead, span_bytes
from mergeloom.engine.storage.source import Access, Reader

WINDOW_BYTES = 256 << 10
"""Bytes of a source that are looked at at once."""

_LONG = 64 << 10
"""Bytes of a run that is worth a request of its own."""
_GAP = 4 * PAGE
"""Bytes between two runs that cost less to read than another request."""
_UNITS: dict[int, Literal["B", "H", "I", "Q"]] = {8: "Q", 4: "I", 2: "H", 1: "B"}


def read_bytes(
    bytes_: Bytes,
    start: int,
    stop: int,
    block: Block,
    at: int,
    readers: Mapping[int, Reader],
) -> int:
    """Put dense bytes ``[start, stop)`` together from byte ``at`` of ``block`` on.

    ``readers`` has a reader for each source, by its `id`. Returns how many bytes were asked for.

    Raises:
        RunError: a source cannot be read.
    """
    if isinstance(bytes_, Range):
        begin = bytes_.offset + start
        # Pages around it hold what lies around it in the source, or nothing.
        readers[id(bytes_.source)].read(begin, begin + stop - start, block, at)
        return stop - start
    windows = _Windows(block, at, readers)
    count = 0
    for run in bytes_.requests(start, stop):
        if run.source is None:
            _clear(block, at, run)
            continue
        count += run.length
        if run.item or run.length < _LONG:
            windows.add(run)
        else:
            end = run.position + run.length
            readers[id(run.source)].read(run.position, end, block, at + run.at, alone=False)
    windows.read()
    return count


def content(stored: StoredTensor, access: Access) -> memoryview:
    """The dense bytes of a tensor that is small enough for that.

    Raises:
        RunError: a source cannot be read.
    """
    nbytes = stored.bytes.nbytes
    block, at = Block(span_bytes(nbytes)), lead(stored.bytes.position(0))
    with contextlib.ExitStack() as opened:
        readers = {
            id(part.source): opened.enter_context(contextlib.closing(part.source.open(access)))
            for part in stored.bytes.ranges()
        }
        read_bytes(stored.bytes, 0, nbytes, block, at, readers)
    return block.memory[at : at + nbytes]


class _Windows:
    """Runs that are read together as long as they lie close to each other."""

    def __init__(self, block: Block, at: int, readers: Mapping[int, Reader]) -> None:
        self._block = block
        self._at = at
        self._readers = readers
        self._runs: list[Run] = []
        self._begin = self._end = 0
        self._window: Block | None = None

    def add(self, run: Run) -> None:
        """Read ``run`` with the next window, or with the one after it."""
        most = WINDOW_BYTES // run.item * run.item if run.item else WINDOW_BYTES
        while run.length > most:
            steps = most // run.item * run.step if run.item else most
            self._add(run._replace(length=most))
            run = run._replace(
                position=run.position + most, length=run.length - most, at=run.at + steps
            )
        self._add(run)

    def read(self) -> None:
        """Read what is left."""
        if not self._runs:
            return
        if self._window is None:
            self._window = Block(span_bytes(WINDOW_BYTES))
        at = lead(self._begin)
        source = self._runs[0].source
        self._readers[id(source)].read(self._begin, self._end, self._window, at)
        for run in self._runs:
            start = at + run.position - self._begin
            _copy(self._window.memory[start : start + run.length], self._block, self._at, run)
        self._runs.clear()

    def _add(self, run: Run) -> None:
        end = run.position + run.length
        if self._runs and not (
            run.source is self._runs[0].source
            and self._begin <= run.position <= self._end + _GAP
            and end - self._begin <= WINDOW_BYTES
        ):
            self.read()
        if not self._runs:
            self._begin = self._end = run.position
        self._end = max(self._end, end)
        self._runs.append(run)


def _copy(content: memoryview, block: Block, at: int, run: Run) -> None:
    """Put the bytes of a run where they belong."""
    begin = at + run.at
    if not run.item:
        block.memory[begin : begin + run.length] = content
        return
    unit = next(size for size in _UNITS if run.item % size == 0)
    extent = (run.length // run.item - 1) * run.step + run.item
    target = block.memory[begin : begin + extent].cast(_UNITS[unit])
    units = content.cast(_UNITS[unit])
    for part in range(run.item // unit):
        target[part :: run.step // unit] = units[part :: run.item // unit]


def _clear(block: Block, at: int, run: Run) -> None:
    if not run.item:
        ctypes.memset(block.address + at + run.at, 0, run.length)
        return
    for number in range(run.length // run.item):
        ctypes.memset(block.address + at + run.at + number * run.step, 0, run.item)
