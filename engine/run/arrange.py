"""Assembles the dense bytes of a tensor from its runs in a source.

Long runs are read directly into place. Short or scattered runs are read many at a time: runs close
together in a source become one request, which is read into a separate window and copied from there.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Mapping
from typing import Literal

from mergeloom.engine.graph.pieces import Bytes, Range, Run
from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.engine.memory.ledger import Block
from mergeloom.engine.memory.pages import PAGE, page_offset, span_bytes
from mergeloom.engine.storage.source import Reader, ReadOptions

WINDOW_BYTES = 256 << 10
"""Maximum bytes of one window."""

_LONG_RUN = 64 << 10
"""Bytes from which a run gets its own request."""
_MAX_GAP = 4 * PAGE
"""Maximum gap in bytes that is cheaper to read than to skip with another request."""
_UNITS: dict[int, Literal["B", "H", "I", "Q"]] = {8: "Q", 4: "I", 2: "H", 1: "B"}


def read_bytes(
    bytes_: Bytes,
    start: int,
    stop: int,
    block: Block,
    at: int,
    readers: Mapping[int, Reader],
) -> int:
    """Assemble dense bytes ``[start, stop)`` at byte ``at`` of ``block``.

    ``readers`` maps the `id` of each source to its reader. Returns the number of bytes requested.

    Raises:
        RunError: a source cannot be read.
    """
    if isinstance(bytes_, Range):
        begin = bytes_.offset + start
        # The rest of its first and last page is unused, or receives the adjacent bytes of the
        # source.
        readers[id(bytes_.source)].read(begin, begin + stop - start, block, at)
        return stop - start
    window = _RequestWindow(block, at, readers)
    count = 0
    for run in bytes_.requests(start, stop):
        if run.source is None:
            _clear(block, at, run)
            continue
        count += run.length
        if run.item or run.length < _LONG_RUN:
            window.add(run)
        else:
            end = run.position + run.length
            readers[id(run.source)].read(run.position, end, block, at + run.at, may_overwrite=False)
    window.read()
    return count


def read_content(stored: StoredTensor, options: ReadOptions) -> memoryview:
    """All dense bytes of a small tensor.

    Raises:
        RunError: a source cannot be read.
    """
    nbytes = stored.bytes.nbytes
    block, at = Block(span_bytes(nbytes)), page_offset(stored.bytes.position(0))
    with contextlib.ExitStack() as opened:
        readers = {
            id(part.source): opened.enter_context(contextlib.closing(part.source.open(options)))
            for part in stored.bytes.ranges()
        }
        read_bytes(stored.bytes, 0, nbytes, block, at, readers)
    return block.memory[at : at + nbytes]


class _RequestWindow:
    """Collects runs that are close together and reads them with one request."""

    def __init__(self, block: Block, at: int, readers: Mapping[int, Reader]) -> None:
        self._block = block
        self._at = at
        self._readers = readers
        self._runs: list[Run] = []
        self._begin = self._end = 0
        self._window: Block | None = None

    def add(self, run: Run) -> None:
        """Queue ``run``; the queued runs are read first if it does not fit their window."""
        longest = WINDOW_BYTES // run.item * run.item if run.item else WINDOW_BYTES
        while run.length > longest:
            distance = longest // run.item * run.step if run.item else longest
            self._add(run._replace(length=longest))
            run = run._replace(
                position=run.position + longest,
                length=run.length - longest,
                at=run.at + distance,
            )
        self._add(run)

    def read(self) -> None:
        """Read the queued runs."""
        if not self._runs:
            return
        if self._window is None:
            self._window = Block(span_bytes(WINDOW_BYTES))
        at = page_offset(self._begin)
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
            and self._begin <= run.position <= self._end + _MAX_GAP
            and end - self._begin <= WINDOW_BYTES
        ):
            self.read()
        if not self._runs:
            self._begin = self._end = run.position
        self._end = max(self._end, end)
        self._runs.append(run)


def _copy(content: memoryview, block: Block, at: int, run: Run) -> None:
    """Copy the bytes of a run into place."""
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
    """Fill a hole with zeros."""
    if not run.item:
        ctypes.memset(block.address + at + run.at, 0, run.length)
        return
    for number in range(run.length // run.item):
        ctypes.memset(block.address + at + run.at + number * run.step, 0, run.item)
