"""The state of one merge while it runs: passes, barriers, scans, digests. No I/O, no threads.

A merge's tiles pass through reading, arithmetic and writing, several at once. What must hold
between them is decided here, under one lock that the executor owns:

- a tile of a pass may be computed when its reads are done, the pass before is complete, and
  inputs that another merge is still reading are there;
- where a kernel scans, tiles of a pass are taken in order, so that no tile waits for
  a tile that no worker has taken.

`TileQueue` is what workers ask of the executor.
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
    """A load that lies in memory whole, from byte ``at`` of ``block`` on.

    ``unread`` bytes are still to come. ``users`` counts the merges that hold it, among them the
    later one that it is kept for.
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

    ``pending`` counts what must happen before it can be computed; the ``transient`` blocks are
    given back when it is. ``memo`` is what passes leave to later ones. ``prefixes`` are, by
    merge and grain, those of all grains before. ``faulty`` counts the elements of inputs that are
    not finite, where results are not.
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
    faulty: Counter[Load] = field(default_factory=Counter)
    losses: GrainSums | None = None
    """What its grains lose as codes, where the kernel is `Kernel.lossy`."""

    def __lt__(self, other: TileRun | Bundle) -> bool:
        return self.order < other.order


@dataclass(eq=False, slots=True)
class PassRun:
    """Progress of one pass; ``scanned`` are the merges that scan."""

    tiles: int
    open: bool = False
    scanned: tuple[Merge, ...] = ()
    parked: dict[int, TileRun] = field(default_factory=dict)
    waiting: list[TileRun] = field(default_factory=list)
    next_taken: int = 0
    done: int = 0
    total: Any = None
    combining: Lock = field(default_factory=Lock)
    """Held while what a tile has gathered is added to ``total``."""


class PrefixScan:
    """Running sums of scan values over the tiles of one pass, in tile order."""

    __slots__ = ("_changed", "_next", "_stopped", "_sum")

    def __init__(self) -> None:
        self._changed = Condition()
        self._next = 0
        self._sum: tuple[int, ...] = ()
        self._stopped = False

    def exchange(self, tile: int, own: tuple[int, ...]) -> tuple[int, ...]:
        """Wait for the tiles before ``tile``, return their sum, and add ``own`` to it."""
        with self._changed:
            self._changed.wait_for(lambda: self._next == tile or self._stopped)
            before = self._sum or tuple(0 for _ in own)
            self._sum = tuple(a + b for a, b in zip(before, own, strict=True))
            self._next = tile + 1
            self._changed.notify_all()
            return before

    def stop(self) -> None:
        """Let everybody go: the run is over."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


@dataclass(eq=False, slots=True)
class Bundle:
    """Small merges that run together, in one block of memory: to hand a tile from thread to thread
    takes longer than to merge a few kilobytes.

    A worker takes each through all of its passes. Grains and the order of what is added up are
    those of the merges by themselves, and so are their bytes.
    """

    order: int
    runs: list[SmallRun]
    layout: BundleLayout
    block: Block

    def __lt__(self, other: Bundle | TileRun) -> bool:
        return self.order < other.order


class SmallRun:
    """One merge of a bundle. It has no tiles: all of it is in memory while it is computed."""

    __slots__ = ("digests", "faulty", "losses", "placement", "statistics")

    def __init__(self, placement: ScheduledMerge) -> None:
        work = placement.work
        self.placement = placement
        self.statistics: dict[Merge, list[Any]] = {merge: [] for merge in work.merges}
        self.digests = {write: TensorDigest(work.grains.count) for write in work.writes}
        self.faulty: Counter[Load] = Counter()
        self.losses: GrainSums | None = None

    def error(self, write: Write) -> float | None:
        """See `relative_error`."""
        return relative_error(write, self.losses)


class TileQueue(Protocol):
    """What those who compute tiles ask of the executor; see `engine.run.executor.Executor`."""

    def check(self) -> None: ...

    def read(self, load: Load, start: int, stop: int, block: Block, at: int) -> None: ...

    def take(self, device: int | None, wait: bool = True) -> TileRun | None: ...

    def take_any(self) -> TileRun | Bundle | None: ...

    def exchange(self, task: TileRun, merge: Merge, own: Sequence[tuple[int, ...]]) -> None: ...

    def accumulate(self, task: TileRun, accumulator: Any) -> None: ...

    def computed(self, task: TileRun, seconds: float) -> None: ...

    def defer(self, request: Callable[[], None]) -> None: ...

    def computed_all(self, bundle: Bundle) -> None: ...

    def put_back(self, task: TileRun) -> None: ...

    def give_up(self, task: TileRun) -> None: ...


def elements(tile: Tile, placement: ScheduledMerge) -> tuple[int, int]:
    """First element and number of elements of a tile."""
    grains = placement.work.grains
    first = tile.first * grains.size
    return first, min(tile.grains * grains.size, grains.total - first)


class MergeRun:
    """One root merge in flight."""

    def __init__(self, placement: ScheduledMerge) -> None:
        work = placement.work
        self.placement = placement
        self.device = placement.assignment.device
        """Who computes its tiles now: a device by number, or the CPU (``None``)."""
        self.held: dict[Load, HeldLoad] = {}
        self.side: dict[Load, HeldLoad] = {}
        """Loads beside the inputs."""
        self.resident: dict[tuple[Load, int], tuple[Block, int]] = {}
        """Tiles that stay for all passes, by load and position; the dispatcher's alone."""
        self.memos: dict[int, Block] = {}
        """Memos of tiles, by position; the dispatcher's alone."""
        self.passes = [PassRun(placement.flow.tiles) for _ in work.passes]
        self.statistics: dict[Merge, list[Any]] = {merge: [] for merge in work.merges}
        self.chains: dict[tuple[int, Merge], PrefixScan] = {}
        self.digests = {write: TensorDigest(work.grains.count) for write in work.writes}
        self.unwritten = dict.fromkeys(work.writes, placement.flow.tiles)
        self.seconds = 0.0
        """Time that its tiles took on any processor; NaN if that is not known."""
        self.faulty: Counter[Load] = Counter()
        self.losses = GrainSums()
        self.open_pass(0)

    def error(self, write: Write) -> float | None:
        """See `relative_error`."""
        return relative_error(write, self.losses)

    def add(self, task: TileRun) -> None:
        """Add what a tile of the last pass has found out beside its outputs."""
        self.faulty.update(task.faulty)
        if task.losses is not None:
            self.losses.combine(task.losses)

    def chain(self, number: int, merge: Merge) -> PrefixScan:
        return self.chains.setdefault((number, merge), PrefixScan())

    def finish_pass(self, number: int) -> None:
        """Turn the accumulated total of a statistics pass into its result.

        Called once, when all of its tiles are done, and before the next pass is opened.
        """
        current = self.placement.work.passes[number]
        if current.statistic is not None:
            merge = self.placement.work.merge_of(current)
            results = self.statistics[merge]
            statistic = merge.kernel.passes[current.statistic]
            total = self.passes[number].total
            if total is None:
                total = statistic.init()
            results.append(statistic.finalize(total, results))
            self.passes[number].total = None

    def open_pass(self, number: int) -> None:
        """Admit the tiles of a pass, now that all statistics it builds on are there."""
        self.passes[number].open = True
        self.passes[number].scanned = scanned_in(self.placement.work, number, self.statistics)


def relative_error(write: Write, losses: GrainSums | None) -> float | None:
    """The relative error of what is written as codes: ‖written - computed‖ / ‖computed‖.

    ``None`` of anything else, and where it is not finite.
    """
    if write.part or losses is None or losses.total is None:
        return None
    difference, size = losses.total
    error = math.sqrt(difference / size) if size else 0.0
    return error if math.isfinite(error) else None


def sums_before(
    values: Sequence[tuple[int, ...]], before: tuple[int, ...]
) -> Iterator[tuple[int, ...]]:
    """For each of ``values`` the elementwise sum of ``before`` and of those in front of it."""
    for numbers in values:
        yield before
        before = tuple(a + b for a, b in zip(before, numbers, strict=True))


def scanned_in(
    work: Work, number: int, statistics: Mapping[Merge, Sequence[Any]]
) -> tuple[Merge, ...]:
    """The merges that scan in a pass, given the ``statistics`` of the passes before."""
    current = work.passes[number]
    here = work.merge_of(current)
    if here.is_flat and current.statistic is not None:
        return ()
    return tuple(
        [
            merge
            for merge in ((here,) if here.is_flat else tree(here))
            if (current.statistic is None or merge is not here)
            and merge.kernel.needs_scan(statistics[merge])
        ]
    )
