"""What stays on a device between the passes of a merge: inputs, uploaded once. Only workers import
this module.

    store   |  merge a  |  merge b  |              |
                                     the widest gap: for merge c

Each merge has one run of bytes in the store from a tile of an early pass until the last tile of its
last pass is done. It holds the inputs of the merge's first grains, as many as fit: the schedule
says how many that could be, and those who were there before how many there can be now. The other
grains are uploaded for each pass. So is everything once the store is gone.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from mergeloom.engine.graph.graph import Load
from mergeloom.engine.plan.device_memory import grains_stored, lasting, stride
from mergeloom.engine.plan.schedule import ScheduledMerge
from mergeloom.engine.run.device import Memory
from mergeloom.engine.run.state import MergeRun, TileRun


@dataclass(slots=True)
class Entry:
    """The inputs of a merge's first ``grains`` grains, in ``nbytes`` bytes from ``at`` on.

    The first grain of a load has its place at the byte that ``places`` says; ``there`` are the
    grains that have been sent. ``tiles`` of the last pass are still to be done.
    """

    at: int
    nbytes: int
    grains: int
    places: dict[Load, int]
    tiles: int
    there: dict[Load, set[int]] = field(default_factory=dict)

    def arrives(self, load: Load, grains: range) -> bool:
        """Note that ``grains`` of ``load`` are there from now on; whether any was not yet."""
        there = self.there.setdefault(load, set())
        before = len(there)
        there.update(grains)
        return len(there) > before


class DeviceCache:
    """Memory of a device in which inputs stay."""

    def __init__(self, memory: Memory = None) -> None:
        self.memory = memory
        self.stays: dict[MergeRun, Entry] = {}

    @property
    def size(self) -> int:
        """Bytes."""
        return 0 if self.memory is None else int(self.memory.numel())

    def crowded(self, placement: ScheduledMerge, others: Collection[MergeRun]) -> bool:
        """Whether a merge would find more room if ``others`` left."""
        if self.stays.keys().isdisjoint(others):
            return False
        possible = min(placement.staying, grains_stored(placement.work.profile, self.size))
        return grains_stored(placement.work.profile, self._gap()[1]) < possible

    def admit(self, run: MergeRun) -> Entry | None:
        """The stay of a merge, from now on if there was none; ``None`` if there is no room."""
        if (stay := self.stays.get(run)) is not None:
            return stay
        placement = run.placement
        work, profile = placement.work, placement.work.profile
        at, room = self._gap()
        grains = min(placement.staying, grains_stored(profile, room))
        if grains == 0:
            return None
        places, place = {}, at
        for position in lasting(profile):
            places[work.leaves[position]] = place
            place += grains * stride(profile.grains, profile.leaf_sizes[position])
        nbytes = place - at
        self.stays[run] = Entry(at, nbytes, grains, places, placement.flow.tiles)
        return self.stays[run]

    def done(self, task: TileRun) -> None:
        """A tile is done, and nothing reads its inputs any more."""
        stay = self.stays.get(task.merge)
        if stay is not None and task.tile.writes:
            stay.tiles -= 1
            if stay.tiles == 0:
                del self.stays[task.merge]

    def _gap(self) -> tuple[int, int]:
        """First byte and length of the widest gap."""
        at, found = 0, (0, 0)
        for stay in sorted(self.stays.values(), key=lambda stay: stay.at):
            found = max(found, (at, stay.at - at), key=lambda gap: gap[1])
            at = stay.at + stay.nbytes
        return max(found, (at, self.size - at), key=lambda gap: gap[1])
