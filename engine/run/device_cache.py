"""Caches inputs on a device between the passes of a merge. Only workers import this.

    cache   |  merge a  |  merge b  |              |
                                     the widest gap: for merge c

Each merge has one contiguous range of the cache, from its first cached tile until the last tile of
its last pass is done. It contains the inputs of the merge's first grains, as many as fit: at most
the number in the schedule, less if other merges use the space. The other grains are uploaded for
each pass, as is everything if there is no cache.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from mergeloom.engine.graph.graph import Load
from mergeloom.engine.plan.device_memory import grains_in_cache, repeated_leaves, stride
from mergeloom.engine.plan.schedule import ScheduledMerge
from mergeloom.engine.run.device import Memory
from mergeloom.engine.run.state import MergeRun, TileRun


@dataclass(slots=True)
class Entry:
    """The inputs of a merge's first ``grains`` grains, in ``nbytes`` bytes at offset ``at``.

    ``offsets`` has the offset of the first grain of each load, ``uploaded`` the grains that were
    uploaded. ``tiles`` counts the unfinished tiles of the last pass.
    """

    at: int
    nbytes: int
    grains: int
    offsets: dict[Load, int]
    tiles: int
    uploaded: dict[Load, set[int]] = field(default_factory=dict)

    def add_grains(self, load: Load, grains: range) -> bool:
        """Record that ``grains`` of ``load`` are cached; returns whether any of them is new."""
        uploaded = self.uploaded.setdefault(load, set())
        before = len(uploaded)
        uploaded.update(grains)
        return len(uploaded) > before


class DeviceCache:
    """Device memory that caches inputs."""

    def __init__(self, memory: Memory = None) -> None:
        self.memory = memory
        self.entries: dict[MergeRun, Entry] = {}

    @property
    def size(self) -> int:
        """Size in bytes."""
        return 0 if self.memory is None else int(self.memory.numel())

    def is_crowded(self, scheduled: ScheduledMerge, others: Collection[MergeRun]) -> bool:
        """Whether a merge would get more space if ``others`` were removed."""
        if self.entries.keys().isdisjoint(others):
            return False
        possible = min(
            scheduled.cached_grains, grains_in_cache(scheduled.work.merge_shape, self.size)
        )
        return grains_in_cache(scheduled.work.merge_shape, self._gap()[1]) < possible

    def admit(self, run: MergeRun) -> Entry | None:
        """The entry of a merge, created if necessary; ``None`` if there is no space."""
        if (entry := self.entries.get(run)) is not None:
            return entry
        scheduled = run.scheduled
        work, merge_shape = scheduled.work, scheduled.work.merge_shape
        at, room = self._gap()
        grains = min(scheduled.cached_grains, grains_in_cache(merge_shape, room))
        if grains == 0:
            return None
        offsets, end = {}, at
        for position in repeated_leaves(merge_shape):
            offsets[work.leaves[position]] = end
            end += grains * stride(merge_shape.grains, merge_shape.leaf_sizes[position])
        nbytes = end - at
        self.entries[run] = Entry(at, nbytes, grains, offsets, scheduled.flow.tiles)
        return self.entries[run]

    def tile_done(self, task: TileRun) -> None:
        """Report that a tile is done and its inputs are no longer read."""
        entry = self.entries.get(task.merge)
        if entry is not None and task.tile.writes:
            entry.tiles -= 1
            if entry.tiles == 0:
                del self.entries[task.merge]

    def _gap(self) -> tuple[int, int]:
        """Offset and length of the largest gap."""
        at, found = 0, (0, 0)
        for entry in sorted(self.entries.values(), key=lambda entry: entry.at):
            found = max(found, (at, entry.at - at), key=lambda gap: gap[1])
            at = entry.at + entry.nbytes
        return max(found, (at, self.size - at), key=lambda gap: gap[1])
