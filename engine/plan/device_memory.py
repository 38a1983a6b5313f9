"""The memory of a device, and how merges divide it.

outside     allocations of the arithmetic itself: arrays, statistics
scratch     arithmetic on one grain
slots       inputs and outputs of one chunk each
cache       inputs kept for all passes, in the remaining memory
"""

from __future__ import annotations

from mergeloom.engine.base.grains import Grains
from mergeloom.engine.base.units import MIB
from mergeloom.engine.memory.pages import PAGE, block_bytes
from mergeloom.engine.plan.footprint import MergeShape, Positions

SLOTS = 3
"""Number of slots for chunks: one uploading, one computing, one downloading."""


_RESERVE = 64 * MIB
"""Bytes of device memory for allocations of the arithmetic itself, beyond what kernels declare."""


_SLOTS_SHARE = 4
"""If inputs can be cached, slots get at most one part in this number of the free memory."""


_ALIGNED = 256
"""Alignment of grains in bytes; no device reads more at once."""


def grains_at_once(merge_shape: MergeShape, memory: int, max_grains: int) -> int:
    """Number of grains of a merge that a device with ``memory`` bytes processes at once: at most
    ``max_grains``, 0 if there is no room for one."""
    room = memory - outside_bytes(merge_shape) - arena_bytes(merge_shape)
    each = SLOTS * slot_bytes(merge_shape, 1)
    # One grain suffices for full bus speed; caching inputs of several passes is worth more.
    wanted = room // _SLOTS_SHARE if repeated_leaves(merge_shape) else room
    return max(0, min(max_grains, max(wanted // each, min(1, room // each))))


def cached_grains(merge_shape: MergeShape, memory: int, chunk: int) -> int:
    """Number of grains of a merge whose inputs are cached on a device with ``memory`` bytes that
    processes ``chunk`` grains at once."""
    working = arena_bytes(merge_shape) + SLOTS * slot_bytes(merge_shape, chunk)
    return grains_in_cache(merge_shape, memory - outside_bytes(merge_shape) - working)


def grains_in_cache(merge_shape: MergeShape, room: int) -> int:
    """Number of grains whose inputs fit into ``room`` bytes of the cache."""
    each = cache_bytes(merge_shape, 1)
    return max(0, min(merge_shape.grains.count, room // each)) if each else 0


def repeated_leaves(merge_shape: MergeShape) -> Positions:
    """The leaves needed by more than one pass; the last pass needs all."""
    return tuple(sorted({i for leaves in merge_shape.passes[:-1] for i in leaves}))


def cache_bytes(merge_shape: MergeShape, grains: int) -> int:
    """Cache bytes for the inputs of ``grains`` grains that more than one pass needs."""
    sizes = (merge_shape.leaf_sizes[i] for i in repeated_leaves(merge_shape))
    return grains * sum(stride(merge_shape.grains, size) for size in sizes)


def slot_bytes(merge_shape: MergeShape, grains: int) -> int:
    """Bytes on the device for the inputs and outputs of ``grains`` grains."""
    sizes = merge_shape.leaf_sizes + merge_shape.write_sizes
    return grains * sum(stride(merge_shape.grains, size) for size in sizes)


def stride(grains: Grains, size: int) -> int:
    """Bytes from one grain to the next on a device, for elements of ``size`` bytes.

    Devices may sum unaligned data in another order, so every grain is aligned, independently of
    the grains before it.
    """
    return -(-grains.size * size // _ALIGNED) * _ALIGNED


def arena_bytes(merge_shape: MergeShape) -> int:
    """Device memory for the arithmetic on one grain."""
    return block_bytes(-(-merge_shape.on_device.scratch_bytes // PAGE) * PAGE)


def outside_bytes(merge_shape: MergeShape) -> int:
    """Device memory left to the arithmetic's own allocations and accumulators."""
    worker = merge_shape.on_device
    return _RESERVE + worker.scratch_bytes + 2 * worker.accumulator_bytes
