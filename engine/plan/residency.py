"""Loads kept in memory from one work to the next."""

from __future__ import annotations

import heapq

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.graph import Load
from mergeloom.engine.memory.pages import block_bytes, span_bytes
from mergeloom.engine.plan.work import Work


@dataclass(frozen=True, slots=True, eq=False)
class Stay:
    """A load kept in memory from merge ``start``, which reads it, to merge ``end``."""

    load: Load
    start: int
    end: int
    nbytes: int


def stays_of(works: list[Work], capacity: int) -> list[Stay]:
    """The loads to keep in memory between merges that use them.

    Initially all are kept; wherever they leave a merge too little room, the one that ends last is
    dropped, and read again when it is needed.
    """
    uses: dict[Load, int] = {}
    later: list[list[Stay]] = [[] for _ in works]
    for index in reversed(range(len(works))):
        for load in works[index].leaves:
            if load in uses:
                nbytes = block_bytes(span_bytes(load.nbytes))
                later[index].append(Stay(load, index, uses[load], nbytes))
            uses[load] = index
    chosen: set[Stay] = set()
    ending: list[list[Stay]] = [[] for _ in works]
    farthest: list[tuple[int, int, Stay]] = []
    memory = Occupied()
    order = 0
    for index, work in enumerate(works):
        for stay in later[index]:
            chosen.add(stay)
            ending[stay.end].append(stay)
            memory.add(stay)
            order += 1
            heapq.heappush(farthest, (-stay.end, order, stay))
        while farthest:
            rest = tuple(i for i, load in enumerate(work.leaves) if load not in memory)
            room = capacity - memory.nbytes
            if work.merge_shape.preferred_bytes(rest, room, capacity) <= room:
                break
            _, _, stay = heapq.heappop(farthest)
            if stay in chosen and stay.end >= index:
                chosen.discard(stay)
                memory.remove(stay)
        for stay in ending[index]:
            if stay in chosen:
                memory.remove(stay)
    return sorted(chosen, key=lambda stay: stay.start)


class Occupied:
    """Bytes of loads kept in memory by at least one stay."""

    def __init__(self) -> None:
        self.nbytes = 0
        self.stays_of: dict[Load, int] = {}

    def __contains__(self, load: Load) -> bool:
        return load in self.stays_of

    def add(self, stay: Stay) -> None:
        count = self.stays_of.get(stay.load, 0)
        self.stays_of[stay.load] = count + 1
        self.nbytes += 0 if count else stay.nbytes

    def remove(self, stay: Stay) -> None:
        count = self.stays_of.pop(stay.load) - 1
        if count:
            self.stays_of[stay.load] = count
        else:
            self.nbytes -= stay.nbytes
