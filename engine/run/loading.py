"""Reads the inputs of tiles: requests of the dispatcher, served by several threads."""

from __future__ import annotations

import queue
from collections.abc import Callable, Mapping
from functools import partial
from threading import Lock
from typing import TypeVar

from mergeloom.engine.graph.graph import Load
from mergeloom.engine.memory.ledger import Block
from mergeloom.engine.plan.footprint import REQUEST_BYTES
from mergeloom.engine.plan.schedule import Schedule
from mergeloom.engine.run.arrange import read_bytes
from mergeloom.engine.run.progress import Progress
from mergeloom.engine.run.ready import ReadyTiles
from mergeloom.engine.run.state import Bundle, HeldLoad, TileRun, elements
from mergeloom.engine.storage.source import Reader, Source

R = TypeVar("R")


class Loader:
    """Queues ``requests`` that reader threads call.

    Tiles with all inputs go to ``ready``; ``lock`` belongs to the executor.
    """

    def __init__(
        self,
        readers: Mapping[int, Reader],
        ready: ReadyTiles,
        lock: Lock,
        progress: Progress,
    ) -> None:
        self.requests: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._readers = readers
        self._ready = ready
        self._lock = lock
        self._progress = progress

    def request_tile(self, task: TileRun, load: Load, block: Block, at: int) -> None:
        """Request the part of a load that a tile needs, to byte ``at`` of its block."""
        self.requests.put(partial(self._read_tile, task, load, block, at))

    def request_bundle(self, bundle: Bundle) -> None:
        """Request all inputs of a bundle."""
        self.requests.put(partial(self._read_bundle, bundle))

    def request_held(self, load: Load, held: HeldLoad) -> None:
        """Request a complete load."""
        block_bytes = load.dtype.nbytes(load.dtype.block)
        step = REQUEST_BYTES // block_bytes * block_bytes
        for start in range(0, load.nbytes, step):
            stop = min(start + step, load.nbytes)
            self.requests.put(partial(self._read_held, load, held, start, stop))

    def read(self, load: Load, start: int, stop: int, block: Block, at: int) -> None:
        """Read bytes ``[start, stop)`` of a load now, to byte ``at`` of a block.

        Raises:
            RunError: a source cannot be read.
        """
        self._read_bytes(load, start, stop, block, at)

    def _read_tile(self, task: TileRun, load: Load, block: Block, at: int) -> None:
        first, count = elements(task.tile, task.merge.scheduled)
        start = load.dtype.nbytes(first)
        stop = start + load.dtype.nbytes(count)
        self._read_bytes(load, start, stop, block, at)
        held = task.merge.held.get(load)
        if held is not None:
            self._count_read(held, stop - start)
        self.arrived(task)

    def _read_bundle(self, bundle: Bundle) -> None:
        count = sum(
            read_bytes(each.bytes, 0, each.nbytes, bundle.block, each.at, self._readers)
            for each in bundle.layout.reads
        )
        with self._lock:
            self._progress.read_bytes += count
            self._ready.push(bundle)

    def _read_held(self, load: Load, held: HeldLoad, start: int, stop: int) -> None:
        self._read_bytes(load, start, stop, held.block, held.at + start)
        self._count_read(held, stop - start)

    def _read_bytes(self, load: Load, start: int, stop: int, block: Block, at: int) -> None:
        count = read_bytes(load.bytes, start, stop, block, at, self._readers)
        with self._lock:
            self._progress.read_bytes += count

    def _count_read(self, held: HeldLoad, nbytes: int) -> None:
        """Count the bytes read of a complete load; when all are read, waiting tiles may start."""
        freed: list[TileRun] = []
        with self._lock:
            held.unread -= nbytes
            if not held.unread:
                freed, held.waiting = held.waiting, []
        for waiting in freed:
            self.arrived(waiting)

    def arrived(self, task: TileRun) -> None:
        """Report that one of the conditions that ``task`` waits for is met."""
        with self._lock:
            task.pending -= 1
            if task.pending == 0:
                self._ready.offer(task)


def source_readers(schedule: Schedule, open_reader: Callable[[Source], R]) -> dict[int, R]:
    """One reader for each source of the schedule's loads, by the source's `id`."""
    loads = schedule.graph.loads
    sources = {id(part.source): part.source for load in loads for part in load.bytes.ranges()}
    return {key: open_reader(source) for key, source in sources.items()}
