"""Loads kept in memory from one work to the next."""

from __future__ import annotations

import heapq
from itertools import chain

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.graph import Load
from mergeloom.engine.memory.pages import block_bytes, span_bytes
from mergeloom.engine.plan.work import Work


@dataclass(frozen=True, slots=True, eq=False)
class KeptLoad:
    """A load kept in memory from merge ``start``, which reads it, to merge ``end``."""

    load: Load
    start: int
    end: int
    nbytes: int


def kept_loads(works: list[Work], capacity: int) -> list[KeptLoad]:
    """The loads to keep in memory between merges that use them.

    All loads that are used again are kept. Where they leave a merge too little memory, the one
    whose next use is farthest is dropped, and read again when it is needed.
    """
    used = list(chain.from_iterable([work.leaves for work in works]))
    if len(set(used)) == len(used):
        return []  # each is used once, as in most merges
    uses: dict[Load, int] = {}
    later: list[list[KeptLoad]] = [[] for _ in works]
    for index in reversed(range(len(works))):
        for load in works[index].leaves:
            if load in uses:
                nbytes = block_bytes(span_bytes(load.nbytes))
                later[index].append(KeptLoad(load, index, uses[load], nbytes))
            uses[load] = index
    chosen: set[KeptLoad] = set()
    ending: list[list[KeptLoad]] = [[] for _ in works]
    farthest: list[tuple[int, int, KeptLoad]] = []
    memory = LoadsInMemory()
    order = 0
    for index, work in enumerate(works):
        for kept in later[index]:
            chosen.add(kept)
            ending[kept.end].append(kept)
            memory.add(kept)
            order += 1
            heapq.heappush(farthest, (-kept.end, order, kept))
        while farthest:
            rest = tuple(i for i, load in enumerate(work.leaves) if load not in memory)
            room = capacity - memory.nbytes
            if work.merge_shape.preferred_bytes(rest, room, capacity) <= room:
                break
            _, _, kept = heapq.heappop(farthest)
            if kept in chosen and kept.end >= index:
                chosen.discard(kept)
                memory.remove(kept)
        for kept in ending[index]:
            if kept in chosen:
                memory.remove(kept)
    return sorted(chosen, key=lambda kept: kept.start)


class LoadsInMemory:
    """The loads that are kept in memory, and the sum of their ledger bytes, ``nbytes``."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._counts: dict[Load, int] = {}

    def __contains__(self, load: Load) -> bool:
        return load in self._counts

    def add(self, kept: KeptLoad) -> None:
        """Keep a load; several merges may keep the same one."""
        count = self._counts.get(kept.load, 0)
        self._counts[kept.load] = count + 1
        self.nbytes += 0 if count else kept.nbytes

    def remove(self, kept: KeptLoad) -> None:
        """Undo one `add`."""
        count = self._counts.pop(kept.load) - 1
        if count:
            self._counts[kept.load] = count
        else:
            self.nbytes -= kept.nbytes
