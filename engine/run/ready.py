"""Queues of tiles that are ready to be computed, one for each processor."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from threading import Condition, Lock

from mergeloom.engine.run.state import Bundle, TileRun


class _ReadyQueue:
    """The ready tiles of one processor, lowest order first."""

    def __init__(self, lock: Lock) -> None:
        self.ready: list[TileRun | Bundle] = []
        self.changed = Condition(lock)

    def push(self, task: TileRun | Bundle) -> None:
        heapq.heappush(self.ready, task)
        self.changed.notify()


class ReadyTiles:
    """One queue for each of ``devices``, by number, and one for the CPU (``None``).

    If a kernel scans, its tiles are taken in order: a tile that is ready too early is parked.
    ``lock`` belongs to the executor; callers of `offer`, `push` and `stop` hold it.
    """

    def __init__(self, lock: Lock, devices: Iterable[int]) -> None:
        self._lock = lock
        self._queues = {device: _ReadyQueue(lock) for device in (None, *devices)}
        self._stopped = False

    def offer(self, task: TileRun) -> None:
        """Queue a tile whose inputs are present, or park it until its turn."""
        state = task.merge.passes[task.tile.number]
        index = task.merge.scheduled.flow.index(task.tile.first)
        if not state.open:
            state.waiting.append(task)
        elif index > state.next_taken and state.scanning:
            state.parked[index] = task
        else:
            self.push(task)

    def push(self, task: TileRun | Bundle) -> None:
        """Queue a tile or bundle."""
        self._queues[task.merge.device if isinstance(task, TileRun) else None].push(task)

    def stop(self) -> None:
        """Release all waiting threads: the run is over."""
        self._stopped = True
        for queue in self._queues.values():
            queue.changed.notify_all()

    def take(self, device: int | None, wait: bool) -> TileRun | Bundle | None:
        """The next tile or bundle; ``None`` at the end of the run, or if none is ready and ``wait``
        is false."""
        queue = self._queues[device]
        with self._lock:
            if wait:
                queue.changed.wait_for(lambda: queue.ready or self._stopped)
            if self._stopped or not queue.ready:
                return None
            task = heapq.heappop(queue.ready)
            if isinstance(task, TileRun):
                state = task.merge.passes[task.tile.number]
                index = task.merge.scheduled.flow.index(task.tile.first)
                state.next_taken = max(state.next_taken, index + 1)
                parked = state.parked.pop(index + 1, None)
                if parked is not None:
                    self.push(parked)
            return task

    def put_back(self, task: TileRun) -> None:
        """Return a tile that a device took, to be taken again later."""
        with self._lock:
            self.push(task)

    def give_up(self, task: TileRun) -> None:
        """Move a tile that a device took, and the rest of its merge, to the CPU."""
        with self._lock:
            queue = self._queues[task.merge.device]
            task.merge.device = None
            others = {o for o in queue.ready if isinstance(o, TileRun) and o.merge is task.merge}
            queue.ready = [other for other in queue.ready if other not in others]
            heapq.heapify(queue.ready)
            for moved in (task, *others):
                self.push(moved)
