"""The device memory of a worker: chunk slots, scratch for arithmetic, and the input cache.

    | outside: libraries | scratch | slot | slot | slot |        cache        |

Scratch and slots grow as merges need them; the cache uses the remaining memory and shrinks first
when the device has less than expected.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from mergeloom.engine.graph.arithmetic import DeviceOps
from mergeloom.engine.plan.device_memory import (
    SLOTS,
    arena_bytes,
    cache_bytes,
    outside_bytes,
    slot_bytes,
)
from mergeloom.engine.plan.footprint import MergeShape
from mergeloom.engine.run.device import Device, Mark, Memory, Queue, is_out_of_memory
from mergeloom.engine.run.device_cache import DeviceCache

_SHRINK_FACTOR = 4
"""Factor by which a cache that was too large is reduced."""
_MIN_CACHE_BYTES = 1 << 20


class _Sizes(NamedTuple):
    """Bytes on a device: reserved for libraries, scratch, one slot."""

    outside: int
    scratch: int
    slot: int

    @property
    def total(self) -> int:
        return self.outside + self.scratch + SLOTS * self.slot


_NOTHING = _Sizes(0, 0, 0)


@dataclass(slots=True)
class Slot:
    """Memory of one chunk; ``free`` is reached when its contents have been downloaded."""

    memory: Memory
    free: Mark | None = None


class DeviceWorkspace:
    """The use of at most ``memory`` bytes of a device.

    ``arithmetic`` creates the operations from scratch memory and the device, in the queue
    ``compute``.
    """

    def __init__(
        self,
        device: Device,
        memory: int,
        arithmetic: Callable[..., Any],
        compute: Queue,
    ) -> None:
        self.ops: DeviceOps | None = None
        self.cache = DeviceCache()
        self.times_shrunk = 0
        """How many times the cache was reduced."""
        self._device = device
        self._memory = memory
        self._arithmetic = arithmetic
        self._compute = compute
        self._slots: list[Slot] = []
        self._turn = 0
        self._sizes = _NOTHING
        self._max_cache_bytes = memory
        """Upper limit of the cache size in bytes."""

    def next_slot(self) -> Slot:
        """The next slot; slots are used in turn."""
        slot = self._slots[self._turn]
        self._turn = (self._turn + 1) % SLOTS
        return slot

    def reserve(
        self, merge_shape: MergeShape, chunk: int, cached: int, finish_all: Callable[[], None]
    ) -> None:
        """Allocate what a merge needs to process ``chunk`` grains at a time and cache ``cached``
        grains. ``finish_all`` waits until nothing in this memory is in use."""
        needed = _Sizes(
            outside_bytes(merge_shape), arena_bytes(merge_shape), slot_bytes(merge_shape, chunk)
        )
        sizes = _Sizes(*map(max, zip(self._sizes, needed, strict=True)))
        if sizes.total > self._memory:
            sizes = needed  # drop what other merges needed
        cache = self.cache.size
        if cached and (own := cache_bytes(merge_shape, cached)) > cache:
            cache = SLOTS * own  # the next merges begin before this one ends
        cache = max(min(cache, self._memory - sizes.total, self._max_cache_bytes), 0)
        if sizes == self._sizes and cache == self.cache.size:
            return
        finish_all()
        if sizes == self._sizes and self.cache.entries:
            return  # not worth uploading the contents again
        self.drop()
        scratch = self._device.allocate(sizes.scratch)
        with self._compute:
            self.ops = self._arithmetic(scratch, self._device)
        del scratch
        memory = self._device.allocate(SLOTS * sizes.slot)
        self._slots = [Slot(memory[i * sizes.slot :][: sizes.slot]) for i in range(SLOTS)]
        self._sizes = sizes
        self._allocate_cache(cache)

    def drop(self) -> None:
        """Free all memory."""
        self._device.synchronize()
        self._sizes = _NOTHING
        self.ops = None
        self._slots = []
        self.cache = DeviceCache()
        self._device.reclaim()

    def shrink(self) -> bool:
        """Reduce the cache from now on; returns whether there was one."""
        if not self.cache.size:
            return False
        self._shrink(self.cache.size)
        return True

    def _allocate_cache(self, nbytes: int) -> None:
        """Allocate a cache of ``nbytes``, or as many bytes as are available."""
        while nbytes := min(nbytes, self._max_cache_bytes):
            try:
                self.cache = DeviceCache(self._device.allocate(nbytes))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._shrink(nbytes)
            else:
                return

    def _shrink(self, nbytes: int) -> None:
        """Limit the cache to a fraction of ``nbytes``, for which memory was too small."""
        self.times_shrunk += 1
        smaller = nbytes // _SHRINK_FACTOR
        self._max_cache_bytes = smaller if smaller >= _MIN_CACHE_BYTES else 0
