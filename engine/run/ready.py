"""Tiles that are ready to be computed, by the place that computes them."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from threading import Condition, Lock

from mergeloom.engine.run.state import Bundle, TileRun


class _Lane:
    """Tiles that are ready to be computed in one place, least order first."""

    def __init__(self, lock: Lock) -> None:
        self.ready: list[TileRun | Bundle] = []
        self.offered = Condition(lock)

    def push(self, task: TileRun | Bundle) -> None:
        heapq.heappush(self.ready, task)
        self.offered.notify()


class ReadyTiles:
    """One lane for each of ``devices``, by number, and one for the CPU: ``None``.

    Where a kernel scans, tiles are taken in order: one that is too early is parked. ``lock`` is the
    executor's; `offer`, `push` and `stop` are called by those who hold it.
    """

    def __init__(self, lock: Lock, devices: Iterable[int]) -> None:
        self._lock = lock
        self._lanes = {device: _Lane(lock) for device in (None, *devices)}
        self._stopped = False

    def offer(self, task: TileRun) -> None:
        """Let a tile be computed for which everything is there, once its turn has come."""
        state = task.merge.passes[task.tile.number]
        index = task.merge.placement.flow.index(task.tile.first)
        if not state.open:
            state.waiting.append(task)
        elif index > state.next_taken and state.scanned:
            state.parked[index] = task
        else:
            self.push(task)

    def push(self, task: TileRun | Bundle) -> None:
        """Let a tile, or a bundle, be computed now."""
        self._lanes[task.merge.device if isinstance(task, TileRun) else None].push(task)

    def stop(self) -> None:
        """Let everybody go: the run is over."""
        self._stopped = True
        for lane in self._lanes.values():
            lane.offered.notify_all()

    def take(self, device: int | None, wait: bool) -> TileRun | Bundle | None:
        """The next one for a device; ``None`` at the end, or where none is ready now."""
        lane = self._lanes[device]
        with self._lock:
            if wait:
                lane.offered.wait_for(lambda: lane.ready or self._stopped)
            if self._stopped or not lane.ready:
                return None
            task = heapq.heappop(lane.ready)
            if isinstance(task, TileRun):
                state = task.merge.passes[task.tile.number]
                index = task.merge.placement.flow.index(task.tile.first)
                state.next_taken = max(state.next_taken, index + 1)
                parked = state.parked.pop(index + 1, None)
                if parked is not None:
                    self.push(parked)
            return task

    def put_back(self, task: TileRun) -> None:
        """Let a tile that a device took wait again: another may be better to do first."""
        with self._lock:
            self.push(task)

    def give_up(self, task: TileRun) -> None:
        """Let the CPU have a tile that a device took, and what is left of its merge."""
        with self._lock:
            lane = self._lanes[task.merge.device]
            task.merge.device = None
            others = {o for o in lane.ready if isinstance(o, TileRun) and o.merge is task.merge}
            lane.ready = [other for other in lane.ready if other not in others]
            heapq.heapify(lane.ready)
            for moved in (task, *others):
                self.push(moved)
