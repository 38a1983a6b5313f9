"""The time of merges, estimated from three assumptions about the machine.

Nothing is measured for it. The assumptions decide on nothing but whether devices are used
(`engine.plan.assignment`), and `engine.plan.duration` tells users.
"""

from __future__ import annotations

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.plan.work import WorkKind

STORAGE_RATE = 3e9
"""Bytes per second of storage, read and written together."""

SLOWDOWN = 4.0
"""How much longer kernels take in a merge, where all cores share memory with reading and writing,
than their stated cost, which is of one core alone: 2 was measured on 2 cores, 5 on 16."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """The resource needs of a merge: ``stored_bytes``, read and written once, and
    ``core_seconds``, the seconds of one core."""

    stored_bytes: int
    core_seconds: float

    @staticmethod
    def of(kind: WorkKind) -> Estimate:
        """The estimate for one work of a kind."""
        merge_shape = kind.merge_shape
        stored = sum(map(merge_shape.leaf_bytes, merge_shape.all_leaves))
        stored += sum(merge_shape.side_bytes) + sum(merge_shape.table_bytes) + kind.write_bytes
        elements = merge_shape.grains.total if merge_shape.computes else 0
        return Estimate(stored, kind.cost * elements / 1e9 * SLOWDOWN)
