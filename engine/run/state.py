"""The state of a merge while it runs: passes, tiles, scans, digests.

Several tiles of a merge are read, computed and written at the same time. The records here express
what must hold between them, and are changed under one lock of the executor:

- a tile of a pass may be computed when its inputs have been read, also those that another merge
  reads, and the previous pass is complete;
- if a kernel scans, workers take the tiles of a pass in order, so that no tile waits for one that
  no worker has taken.

`TileQueue` is the interface of the executor for workers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Condition, Lock
from typing import Any, Protocol

from mergeloom.engine.graph.graph import Load, Merge, Write, tree
from mergeloom.engine.graph.sums import GrainSums
from mergeloom.engine.memory.ledger import Block
from mergeloom.engine.plan.schedule import ScheduledMerge, Tile
from mergeloom.engine.plan.work import Work
from mergeloom.engine.run.bundle_layout import BundleLayout
from mergeloom.engine.storage.digest import TensorDigest


class HeldLoad:
    """A load that is in memory completely, from byte ``at`` of ``block`` on.

    ``unread`` is the number of bytes not read yet. ``users`` counts the merges that hold it,
    including a later one that it is kept for. ``waiting`` are tiles that need it.
    """

    __slots__ = ("at", "block", "unread", "users", "waiting")

    def __init__(self, block: Block, at: int, nbytes: int) -> None:
        self.block = block
        self.at = at
        self.unread = nbytes
        self.users = 1
        self.waiting: list[TileRun] = []


@dataclass(eq=False, slots=True)
class TileRun:
    """One tile in flight.

    It is computed when ``pending``, the number of unmet conditions, is 0; then the ``transient``
    blocks are released. ``memo`` holds the memos of its grains. ``prefixes`` has, by
    merge and grain, the sum of the scan values of all earlier grains. ``nonfinite`` counts the
    input elements that are not finite, in grains whose results are not.
    """

    order: int
    tile: Tile
    merge: MergeRun
    inputs: dict[Load, tuple[Block, int]]
    outputs: list[tuple[Write, Block, int]]
    transient: list[Block]
    memo: Block | None = None
    pending: int = 1
    prefixes: dict[Merge, dict[int, tuple[int, ...]]] = field(default_factory=dict)
    nonfinite: Counter[Load] = field(default_factory=Counter)
    losses: GrainSums | None = None
    """The quantisation error of its grains, if the kernel is `Kernel.lossy`."""

    def __lt__(self, other: TileRun | Bundle) -> bool:
        return self.order < other.order


@dataclass(eq=False, slots=True)
class PassRun:
    """Progress of one pass over ``tiles`` tiles.

    ``scanning`` are the merges that scan; ``parked`` are tiles that must wait for their turn in the
    scan, ``waiting`` those that wait until the pass is ``open``; ``total`` is the accumulator of
    the statistic.
    """

    tiles: int
    open: bool = False
    scanning: tuple[Merge, ...] = ()
    parked: dict[int, TileRun] = field(default_factory=dict)
    waiting: list[TileRun] = field(default_factory=list)
    next_taken: int = 0
    done: int = 0
    total: Any = None
    combining: Lock = field(default_factory=Lock)
    """Held while the accumulator of a tile is added to ``total``."""


class PrefixScan:
    """Running sums of scan values over the tiles of one pass, in tile order."""

    __slots__ = ("_changed", "_next", "_stopped", "_sum")

    def __init__(self) -> None:
        self._changed = Condition()
        self._next = 0
        self._sum: tuple[int, ...] = ()
        self._stopped = False

    def exchange(self, tile: int, own: tuple[int, ...]) -> tuple[int, ...]:
        """Wait until all tiles before ``tile`` have added their values; return their sum, and add
        ``own`` to it."""
        with self._changed:
            self._changed.wait_for(lambda: self._next == tile or self._stopped)
            before = self._sum or tuple(0 for _ in own)
            self._sum = tuple(a + b for a, b in zip(before, own, strict=True))
            self._next = tile + 1
            self._changed.notify_all()
            return before

    def stop(self) -> None:
        """Release all waiting threads: the run is over."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


@dataclass(eq=False, slots=True)
class Bundle:
    """Small merges that run together in one block of memory, because passing a tile from thread to
    thread takes longer than merging a few kilobytes.

    One worker runs all passes of each. Grains and the order of sums are the same as for separate
    merges, so the results are too.
    """

    order: int
    runs: list[SmallRun]
    layout: BundleLayout
    block: Block

    def __lt__(self, other: Bundle | TileRun) -> bool:
        return self.order < other.order


class SmallRun:
    """One merge of a bundle; it has no tiles, because it is in memory completely."""

    __slots__ = ("digests", "losses", "nonfinite", "scheduled")

    def __init__(self, scheduled: ScheduledMerge) -> None:
        work = scheduled.work
        self.scheduled = scheduled
        self.digests = {write: TensorDigest(work.grains.count) for write in work.writes}
        self.nonfinite: Counter[Load] = Counter()
        self.losses: GrainSums | None = None

    def error(self, write: Write) -> float | None:
        """See `relative_error`."""
        return relative_error(write, self.losses)


class TileQueue(Protocol):
    """The interface of the executor for workers; see `engine.run.executor.Executor`."""

    def check(self) -> None: ...

    def read(self, load: Load, start: int, stop: int, block: Block, at: int) -> None: ...

    def take(self, device: int | None, wait: bool = True) -> TileRun | None: ...

    def take_any(self) -> TileRun | Bundle | None: ...

    def exchange(self, task: TileRun, merge: Merge, own: Sequence[tuple[int, ...]]) -> None: ...

    def accumulate(self, task: TileRun, accumulator: Any) -> None: ...

    def computed(self, task: TileRun) -> None: ...

    def defer(self, request: Callable[[], None]) -> None: ...

    def computed_all(self, bundle: Bundle) -> None: ...

    def put_back(self, task: TileRun) -> None: ...

    def give_up(self, task: TileRun) -> None: ...


def elements(tile: Tile, scheduled: ScheduledMerge) -> tuple[int, int]:
    """First element and number of elements of a tile."""
    grains = scheduled.work.grains
    first = tile.first * grains.size
    return first, min(tile.grains * grains.size, grains.total - first)


class MergeRun:
    """One root merge in flight."""

    def __init__(self, scheduled: ScheduledMerge) -> None:
        work = scheduled.work
        self.scheduled = scheduled
        self.device = scheduled.assignment.device
        """The number of the device that computes its tiles now; ``None`` for the CPU."""
        self.held: dict[Load, HeldLoad] = {}
        self.side: dict[Load, HeldLoad] = {}
        """Side inputs and held tables."""
        self.resident: dict[tuple[Load, int], tuple[Block, int]] = {}
        """Blocks of tiles kept for all passes, by load and tile; used by the dispatcher only."""
        self.memos: dict[int, Block] = {}
        """Blocks of memos, by tile; used by the dispatcher only."""
        self.passes = [PassRun(scheduled.flow.tiles) for _ in work.passes]
        self.statistics: dict[Merge, list[Any]] = {merge: [] for merge in work.merges}
        self.scans: dict[tuple[int, Merge], PrefixScan] = {}
        """Scans by pass and merge."""
        self.digests = {write: TensorDigest(work.grains.count) for write in work.writes}
        self.unwritten = dict.fromkeys(work.writes, scheduled.flow.tiles)
        self.nonfinite: Counter[Load] = Counter()
        self.losses = GrainSums()
        self.open_pass(0)

    def error(self, write: Write) -> float | None:
        """See `relative_error`."""
        return relative_error(write, self.losses)

    def add(self, task: TileRun) -> None:
        """Add the counts and the quantisation error of a tile of the last pass."""
        self.nonfinite.update(task.nonfinite)
        if task.losses is not None:
            self.losses.combine(task.losses)

    def scan(self, number: int, merge: Merge) -> PrefixScan:
        """The scan of ``merge`` in pass ``number``."""
        return self.scans.setdefault((number, merge), PrefixScan())

    def finish_pass(self, number: int) -> None:
        """Compute the result of a statistics pass from its total.

        Called once, when all tiles of the pass are done, before the next pass is opened.
        """
        current = self.scheduled.work.passes[number]
        if current.statistic is not None:
            merge = self.scheduled.work.merge_of(current)
            results = self.statistics[merge]
            statistic = merge.kernel.passes[current.statistic]
            total = self.passes[number].total
            if total is None:
                total = statistic.init()
            results.append(statistic.finalize(total, results))
            self.passes[number].total = None

    def open_pass(self, number: int) -> None:
        """Admit the tiles of a pass; the statistics of all previous passes are complete."""
        self.passes[number].open = True
        self.passes[number].scanning = scanning_merges(self.scheduled.work, number, self.statistics)


def relative_error(write: Write, losses: GrainSums | None) -> float | None:
    """The relative error of a quantised tensor: ‖written - computed‖ / ‖computed‖.

    ``None`` if the write is not quantised, or if the error is not finite.
    """
    if write.part or losses is None or losses.total is None:
        return None
    difference, size = losses.total
    error = math.sqrt(difference / size) if size else 0.0
    return error if math.isfinite(error) else None


def sums_before(
    values: Sequence[tuple[int, ...]], before: tuple[int, ...]
) -> Iterator[tuple[int, ...]]:
    """The exclusive prefix sums of ``values``, elementwise, starting with ``before``."""
    for numbers in values:
        yield before
        before = tuple(a + b for a, b in zip(before, numbers, strict=True))


def scanning_merges(
    work: Work, number: int, statistics: Mapping[Merge, Sequence[Any]]
) -> tuple[Merge, ...]:
    """The merges that scan in a pass, given the ``statistics`` of the previous passes."""
    current = work.passes[number]
    own = work.merge_of(current)
    if own.is_flat and current.statistic is not None:
        return ()
    return tuple(
        [
            merge
            for merge in ((own,) if own.is_flat else tree(own))
            if (current.statistic is None or merge is not own)
            and merge.kernel.needs_scan(statistics[merge])
        ]
    )
