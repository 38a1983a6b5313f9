"""Groups small merges of a schedule into bundles.

Passing a tile from thread to thread takes longer than merging a few kilobytes. So consecutive
single-tile merges, whose inputs are read once and not kept for others, run together, as many as fit
into a share of the ledger. The bytes read and written are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mergeloom.engine.base.units import MIB
from mergeloom.engine.graph.graph import Load
from mergeloom.engine.plan.footprint import TileFlow
from mergeloom.engine.plan.schedule import Schedule, ScheduledMerge

BUNDLE_BYTES = 4 * MIB
"""Maximum ledger bytes of a bundle, which a disk reads and writes in a few milliseconds."""

_MIN_BUNDLES = 8
"""Minimum number of bundles that fit into the ledger, so that I/O and computing overlap."""


def bundle_merges(schedule: Schedule) -> Iterator[int | Sequence[ScheduledMerge]]:
    """The merges of a schedule in order: bundles of small ones, and the indices of the others."""
    room = min(BUNDLE_BYTES, schedule.ledger_bytes // _MIN_BUNDLES)
    sizes: dict[int, int | None] = {}
    bundle: list[ScheduledMerge] = []
    used = 0
    loads: set[Load] = set()
    for number, merge in enumerate(schedule.merges):
        nbytes = sizes.get(id(merge.flow), 0)
        if nbytes == 0:
            nbytes = sizes[id(merge.flow)] = _ledger_bytes(merge.flow)
        alone = nbytes is None or nbytes > room or not _is_independent(merge)
        if bundle and (
            alone or used + (nbytes or 0) > room or not loads.isdisjoint(merge.work.leaves)
        ):
            yield bundle
            bundle, used, loads = [], 0, set()
        if alone:
            yield number
            continue
        bundle.append(merge)
        used += nbytes or 0
        loads.update(merge.work.leaves)
    if bundle:
        yield bundle


def _is_independent(merge: ScheduledMerge) -> bool:
    """Whether it is written, shares no inputs with other merges, and uses no device."""
    work, alone = merge.work, merge.assignment.device is None and not merge.kept_after
    return alone and bool(work.writes) and not work.side_loads and not work.awaited


def _ledger_bytes(flow: TileFlow) -> int | None:
    """Ledger bytes of a merge; ``None`` if it should not be bundled."""
    merge_shape = flow.merge_shape
    read_once = sum(map(merge_shape.leaf_bytes, merge_shape.all_leaves))
    kept = flow.kept_before or flow.kept_fresh
    if flow.tiles != 1 or kept or flow.read_bytes != read_once:
        return None
    memos = merge_shape.tile_memo_bytes(flow.tile) if flow.memos else 0
    return memos + merge_shape.tile_bytes(flow.tile, merge_shape.all_leaves)
