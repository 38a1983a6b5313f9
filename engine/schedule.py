"""From a graph and a budget to a schedule: what is read when, held how long, in which tiles.

`schedule` is a pure function. Its result is walked by the executor and by the dry run alike.

Merges run in the order of the output, so that writes ascend. Each is a few passes over its
inputs: one for each statistic, then one that writes. How a merge gets its inputs:

    streamed   every pass reads every tile again             memory: a few tiles
    resident   each tile is read once and stays until the    memory: the inputs + a few tiles
               last pass is done with it
    kept       read once, whole, and stays for a later       memory: the input, until then
               merge

One pass streams; several passes are resident if the inputs fit, for memory is cheaper than disk.
An input that a later merge uses again is kept if there is room, and when room runs out the one
whose next use is farthest goes first (Belady 1966): the future is known here, so that is optimal
for loads of one size.

A tile is a run of whole grains. It is as long as a good disk request, and shorter where the
budget demands it; one grain is the least. Tile lengths change no byte of the output.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from engine.errors import BudgetError
from engine.grains import Access, Grains, partition
from engine.graph import Graph, Load, Merge, Write, access, copied_dtype, leaves, tree
from engine.ledger import PAGE, block_bytes
from engine.storage import span_bytes

MIB = 1 << 20

REQUEST_BYTES = 8 * MIB
"""Bytes of one read request of a tile: large enough for a disk's full speed."""

TILES_IN_FLIGHT = 8
"""Tiles that keep readers, workers and writers busy at once."""

PREFETCH_BYTES = 128 * MIB
"""Memory that reading ahead may use beyond what the merges at hand need."""

IMPORT_PREFETCH_BYTES = 512 * MIB
"""The same where arithmetic is needed: reading goes on while its library is imported."""

_NODE_BYTES = 400
_HEAP_MARGIN = 24 * MIB
_WORKER_BYTES = 4 * MIB
_MINIMUM_STEP = 8 * MIB


@dataclass(frozen=True, slots=True)
class Machine:
    """What a schedule must know of the machine and the process.

    ``process_bytes`` is what the process occupies before the run (interpreter, libraries, the
    graph); ``runtime_bytes`` what importing and using the arithmetic library adds; ``threads``
    how many workers may compute at once.
    """

    threads: int
    process_bytes: int
    runtime_bytes: int


@dataclass(frozen=True, slots=True)
class Pass:
    """One walk over the inputs of a merge tree.

    ``merge`` is the merge whose statistic number ``statistic`` is gathered; for the last pass it
    is the root and ``statistic`` is ``None``. ``leaves`` are the positions of the loads needed.
    """

    merge: Merge
    statistic: int | None
    leaves: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Shape:
    """What the scheduler knows of one root merge, whatever the budget."""

    root: Merge
    writes: tuple[Write, ...]
    leaves: tuple[Load, ...]
    grains: Grains
    passes: tuple[Pass, ...]
    computes: bool

    def tile_bytes(self, tile: int, streamed: tuple[int, ...]) -> int:
        """Ledger bytes of one tile of ``tile`` grains whose inputs ``streamed`` are read for it."""
        return self.input_bytes(tile, streamed) + self.output_bytes(tile)

    def input_bytes(self, tile: int, positions: tuple[int, ...]) -> int:
        """Ledger bytes of the blocks of these leaves for one tile."""
        elements = min(tile * self.grains.size, self.grains.total)
        return sum(block_bytes(span_bytes(elements * self.leaves[i].dtype.size)) for i in positions)

    def output_bytes(self, tile: int) -> int:
        """Ledger bytes of the output blocks of one tile."""
        elements = min(tile * self.grains.size, self.grains.total)
        return sum(block_bytes(span_bytes(elements * write.dtype.size)) for write in self.writes)

    def whole_bytes(self, positions: tuple[int, ...]) -> int:
        """Ledger bytes of these leaves in one block each."""
        return sum(block_bytes(span_bytes(self.leaves[i].nbytes)) for i in positions)

    @property
    def all_leaves(self) -> tuple[int, ...]:
        return tuple(range(len(self.leaves)))

    def longest_tile(self) -> int:
        """Grains of a tile whose largest request has `REQUEST_BYTES`."""
        widest = max(
            [load.dtype.size for load in self.leaves] + [write.dtype.size for write in self.writes]
        )
        return max(1, min(REQUEST_BYTES // (self.grains.size * widest), self.grains.count))

    def scratch_bytes(self) -> int:
        """Memory that one worker needs for its arithmetic on one grain."""
        if not self.computes:
            return 0
        grain = -(-self.grains.size * 4 // PAGE) * PAGE
        return block_bytes(grain * scratch_tensors(self.root)) + sum(
            merge.kernel.workspace_bytes(merge.shape, len(merge.gather.inputs))
            for merge in tree(self.root)
        )

    def accumulator_bytes(self) -> int:
        """Upper bound of one accumulator of the largest statistic."""
        return max(
            (
                statistic.accumulator_bytes(len(merge.gather.inputs), self.grains.row)
                for merge in tree(self.root)
                for statistic in merge.kernel.passes
            ),
            default=0,
        )


@dataclass(frozen=True, slots=True)
class Placement:
    """How one root merge runs.

    ``tile`` is the tile length in grains. ``kept_before`` are leaf positions that an earlier
    merge left in memory; ``kept_fresh`` those that are read whole, into one block, because a
    later merge needs them; ``resident`` those whose tiles stay from their first pass to the last;
    the others are streamed. ``kept_after`` are all that stay for a later merge;
    ``kept_for_others`` the ledger bytes of loads that stay in memory past this merge without
    being used by it.
    """

    shape: Shape
    tile: int
    kept_before: tuple[int, ...]
    kept_fresh: tuple[int, ...]
    resident: tuple[int, ...]
    kept_after: tuple[int, ...]
    kept_for_others: int

    @property
    def tiles(self) -> int:
        return -(-self.shape.grains.count // self.tile)

    def reads(self, number: int) -> tuple[int, ...]:
        """Leaf positions that pass ``number`` reads from storage, tile by tile."""
        there = set(self.kept_before)
        for earlier in self.shape.passes[:number]:
            stay = (i for i in earlier.leaves if i in self.kept_fresh or i in self.resident)
            there.update(stay)
        return tuple(i for i in self.shape.passes[number].leaves if i not in there)

    def grants(self, number: int) -> tuple[int, ...]:
        """Leaf positions for which each tile of pass ``number`` is granted a block of its own."""
        return tuple(i for i in self.reads(number) if i not in self.kept_fresh)

    def tile_bytes(self, number: int) -> int:
        """Ledger bytes that are granted for one tile of pass ``number``."""
        last = number == len(self.shape.passes) - 1
        inputs = self.shape.input_bytes(self.tile, self.grants(number))
        return inputs + self.shape.output_bytes(self.tile) if last else inputs

    def kept_bytes(self) -> int:
        """Ledger bytes of loads that are in memory whole during this merge."""
        own = self.shape.whole_bytes(self.kept_fresh + self.kept_before)
        return own + self.kept_for_others

    def resident_bytes(self) -> int:
        """Ledger bytes of all tiles that stay until the last pass."""
        return self.tiles * self.shape.input_bytes(self.tile, self.resident)

    def granted_bytes(self) -> int:
        """Ledger bytes that are granted in total, for kept inputs and all tiles."""
        passes = range(len(self.shape.passes))
        tiles = sum(self.tiles * self.tile_bytes(number) for number in passes)
        return self.shape.whole_bytes(self.kept_fresh) + tiles

    def working_bytes(self) -> int:
        """Ledger bytes in use while this merge runs at full speed."""
        resident = self.shape.input_bytes(self.tile, self.resident)
        widest = max(
            self.tile_bytes(number)
            - (resident if set(self.resident) & set(self.grants(number)) else 0)
            for number in range(len(self.shape.passes))
        )
        in_flight = min(self.tiles, TILES_IN_FLIGHT) * widest
        return self.kept_bytes() + self.resident_bytes() + in_flight

    def read_bytes(self) -> int:
        """Bytes that all passes of this merge read."""
        return sum(
            self.shape.leaves[i].nbytes
            for number in range(len(self.shape.passes))
            for i in self.reads(number)
        )


@dataclass(frozen=True, slots=True)
class Tile:
    """One step of the schedule: ``grains`` grains from ``first`` on, in one pass of one merge.

    ``reads`` are the leaf positions to read for it; ``writes`` says whether it ends in output.
    """

    placement: int
    number: int
    first: int
    grains: int
    reads: tuple[int, ...]
    writes: bool


@dataclass(frozen=True)
class Schedule:
    """The whole run, decided: placements in order, workers, memory.

    ``ledger_bytes`` is the ledger's capacity; ``scratch_bytes`` what each of ``workers`` has for
    arithmetic; ``overhead_bytes`` everything else the process occupies. Their sum is
    ``peak_bytes``, which the process never exceeds; ``minimum_bytes`` is the smallest budget
    that can work.
    """

    graph: Graph
    placements: tuple[Placement, ...]
    workers: int
    ledger_bytes: int
    scratch_bytes: int
    overhead_bytes: int
    minimum_bytes: int
    budget_bytes: int | None

    @property
    def peak_bytes(self) -> int:
        return self.overhead_bytes + self.workers * self.scratch_bytes + self.ledger_bytes

    @cached_property
    def read_bytes(self) -> int:
        """Bytes of tensor data that the run reads."""
        return sum(placement.read_bytes() for placement in self.placements)

    @cached_property
    def write_bytes(self) -> int:
        """Bytes that the run writes into shards, headers included."""
        return sum(write.nbytes for write in self.graph.writes) + self.header_bytes

    @cached_property
    def header_bytes(self) -> int:
        """Bytes of the headers of the files that the run writes."""
        return sum(len(file.header) for file in {write.file for write in self.graph.writes})

    @cached_property
    def repeated_bytes(self) -> int:
        """Bytes read beyond reading each load once, because memory did not suffice."""
        return self.read_bytes - sum(load.nbytes for load in self.graph.loads)

    @property
    def computes(self) -> bool:
        """Whether any merge needs arithmetic; copies do not."""
        return any(placement.shape.computes for placement in self.placements)

    def steps(self) -> Iterator[Tile]:
        """Every tile of the run in the order in which it is started."""
        for index, placement in enumerate(self.placements):
            count = placement.shape.grains.count
            last = len(placement.shape.passes) - 1
            for number in range(last + 1):
                reads = placement.reads(number)
                for first in range(0, count, placement.tile):
                    grains = min(placement.tile, count - first)
                    yield Tile(index, number, first, grains, reads, number == last)


def schedule(graph: Graph, budget: int | None, machine: Machine) -> Schedule:
    """Decide the run of ``graph`` within ``budget`` bytes of memory (``None``: unlimited).

    Raises:
        BudgetError: no schedule fits; the message names the smallest budget that does.
    """
    shapes = _shapes(graph)
    scratch = max((shape.scratch_bytes() for shape in shapes), default=0)
    overhead = _overhead(shapes, machine)
    narrowest = max((shape.tile_bytes(1, shape.all_leaves) for shape in shapes), default=0)
    minimum = -(-(overhead(1) + scratch + narrowest) // _MINIMUM_STEP) * _MINIMUM_STEP
    if budget is not None and budget < minimum:
        raise BudgetError(_infeasible(shapes, budget, minimum))

    def capacity(workers: int) -> int:
        if budget is None:
            return 1 << 62
        return budget - overhead(workers) - workers * scratch

    workers = machine.threads
    while workers > 1 and capacity(workers) < (workers + 2) * narrowest:
        workers -= 1
    available = capacity(workers)
    placements = _place(shapes, available)
    return Schedule(
        graph=graph,
        placements=placements,
        workers=workers,
        ledger_bytes=_useful(placements, available),
        scratch_bytes=scratch,
        overhead_bytes=overhead(workers),
        minimum_bytes=minimum,
        budget_bytes=budget,
    )


def scratch_tensors(root: Merge) -> int:
    """Grain-sized float32 tensors that evaluating ``root`` takes: inputs, scratch, results."""
    needed = 0
    for merge in tree(root):
        statistics = [statistic.scratch for statistic in merge.kernel.passes]
        own = max([merge.kernel.scratch, *statistics])
        needed += len(merge.gather.inputs) + own + 1
    return needed


def _shapes(graph: Graph) -> list[Shape]:
    writes: dict[Merge, list[Write]] = {}
    for write in graph.writes:
        writes.setdefault(write.merge, []).append(write)
    shapes = []
    for root, own in writes.items():
        loads = leaves(root)
        positions = {load: position for position, load in enumerate(loads)}
        copied = copied_dtype(root)
        computes = copied is None or any(write.dtype != copied for write in own)
        grains = partition(root.shape, access(root) if computes else Access.ELEMENTWISE)
        shapes.append(Shape(root, tuple(own), loads, grains, _passes(root, positions), computes))
    return shapes


def _passes(root: Merge, positions: dict[Load, int]) -> tuple[Pass, ...]:
    passes = []
    for merge in tree(root):
        needed = tuple(positions[load] for load in leaves(merge))
        for statistic in range(len(merge.kernel.passes)):
            passes.append(Pass(merge, statistic, needed))
    return (*passes, Pass(root, None, tuple(positions.values())))


def _overhead(shapes: list[Shape], machine: Machine) -> Callable[[int], int]:
    """Bytes outside ledger and scratch, as a function of the number of workers."""
    fixed = machine.process_bytes + _HEAP_MARGIN + _NODE_BYTES * len(shapes)
    if any(shape.computes for shape in shapes):
        fixed += machine.runtime_bytes
    accumulator = max((shape.accumulator_bytes() for shape in shapes), default=0)
    return lambda workers: fixed + workers * (_WORKER_BYTES + accumulator) + 2 * accumulator


@dataclass(frozen=True, slots=True, eq=False)
class _Stay:
    """A load that stays in memory from merge ``start``, which reads it, to merge ``end``."""

    load: Load
    start: int
    end: int
    nbytes: int


def _stays(shapes: list[Shape], capacity: int) -> list[_Stay]:
    """Which loads stay in memory between two merges that use them.

    All would; wherever they leave a merge too little room, the one that ends last is given up,
    and then it is not kept at all but read again when its time comes.
    """
    uses: dict[Load, int] = {}
    later: list[list[_Stay]] = [[] for _ in shapes]
    for index in reversed(range(len(shapes))):
        for load in shapes[index].leaves:
            if load in uses:
                nbytes = block_bytes(span_bytes(load.nbytes))
                later[index].append(_Stay(load, index, uses[load], nbytes))
            uses[load] = index
    chosen: set[_Stay] = set()
    ending: list[list[_Stay]] = [[] for _ in shapes]
    farthest: list[tuple[int, int, _Stay]] = []
    memory = _Occupied()
    order = 0
    for index, shape in enumerate(shapes):
        for stay in later[index]:
            chosen.add(stay)
            ending[stay.end].append(stay)
            memory.add(stay)
            order += 1
            heapq.heappush(farthest, (-stay.end, order, stay))
        while farthest:
            rest = tuple(i for i, load in enumerate(shape.leaves) if load not in memory)
            room = capacity - memory.nbytes
            if _comfortable(shape, rest, room, capacity) <= room:
                break
            _, _, stay = heapq.heappop(farthest)
            if stay in chosen and stay.end >= index:
                chosen.discard(stay)
                memory.remove(stay)
        for stay in ending[index]:
            if stay in chosen:
                memory.remove(stay)
    return sorted(chosen, key=lambda stay: stay.start)


class _Occupied:
    """Bytes of the loads that at least one stay keeps in memory."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._stays: dict[Load, int] = {}

    def __contains__(self, load: Load) -> bool:
        return load in self._stays

    def add(self, stay: _Stay) -> None:
        count = self._stays.get(stay.load, 0)
        self._stays[stay.load] = count + 1
        self.nbytes += 0 if count else stay.nbytes

    def remove(self, stay: _Stay) -> None:
        count = self._stays.pop(stay.load) - 1
        if count:
            self._stays[stay.load] = count
        else:
            self.nbytes -= stay.nbytes


def _place(shapes: list[Shape], capacity: int) -> tuple[Placement, ...]:
    before: list[set[Load]] = [set() for _ in shapes]
    after: list[set[Load]] = [set() for _ in shapes]
    change = [0] * (len(shapes) + 1)
    for stay in _stays(shapes, capacity):
        after[stay.start].add(stay.load)
        before[stay.end].add(stay.load)
        change[stay.start + 1] += stay.nbytes
        change[stay.end] -= stay.nbytes
    placements = []
    kept_for_others = 0
    for index, shape in enumerate(shapes):
        kept_for_others += change[index]
        whole = before[index] | after[index]
        own = tuple(i for i, load in enumerate(shape.leaves) if load in whole)
        rest = tuple(i for i in shape.all_leaves if i not in own)
        available = capacity - kept_for_others - shape.whole_bytes(own)
        resident, tile = _resident_or_streamed(shape, rest, available)
        placements.append(
            Placement(
                shape=shape,
                tile=tile,
                kept_before=tuple(i for i in own if shape.leaves[i] in before[index]),
                kept_fresh=tuple(i for i in own if shape.leaves[i] not in before[index]),
                resident=resident,
                kept_after=tuple(i for i in own if shape.leaves[i] in after[index]),
                kept_for_others=kept_for_others,
            )
        )
    return tuple(placements)


def _comfortable(shape: Shape, rest: tuple[int, ...], room: int, capacity: int) -> int:
    """Ledger bytes with which ``shape`` runs well when ``rest`` is not in memory yet.

    Of the whole ``capacity``, ``room`` bytes are left.
    """
    if len(shape.passes) > 1:
        staying = Staying.of(shape, rest)
        if staying.least() <= room:
            return min(staying.needed(shape.longest_tile()), room)
    tiles = min(TILES_IN_FLIGHT, -(-shape.grains.count // shape.longest_tile()))
    streaming = tiles * shape.tile_bytes(shape.longest_tile(), rest)
    return min(streaming, max(capacity // 2, shape.tile_bytes(1, rest)))


@dataclass(frozen=True, slots=True)
class Staying:
    """What it takes to read everything once: ``resident`` tiles stay for all passes, ``late``
    inputs are needed by the last pass only."""

    shape: Shape
    resident: tuple[int, ...]
    late: tuple[int, ...]

    @staticmethod
    def of(shape: Shape, rest: tuple[int, ...]) -> Staying:
        early = {i for current in shape.passes[:-1] for i in current.leaves}
        resident = tuple(i for i in rest if i in early)
        return Staying(shape, resident, tuple(i for i in rest if i not in early))

    def needed(self, tile: int) -> int:
        """Ledger bytes at full speed with tiles of ``tile`` grains."""
        return self._bytes(tile, TILES_IN_FLIGHT)

    def least(self) -> int:
        """Ledger bytes with which it works at all."""
        return self._bytes(1, 1)

    def _bytes(self, tile: int, in_flight: int) -> int:
        tiles = -(-self.shape.grains.count // tile)
        moving = min(in_flight, tiles) * self.shape.tile_bytes(tile, self.late)
        return tiles * self.shape.input_bytes(tile, self.resident) + moving


def _resident_or_streamed(
    shape: Shape, rest: tuple[int, ...], available: int
) -> tuple[tuple[int, ...], int]:
    """Whether ``rest`` stays in memory for all passes, and the tile length in grains."""
    if len(shape.passes) > 1:
        staying = Staying.of(shape, rest)
        if staying.least() <= available:
            return staying.resident, _longest(shape, staying.needed, available)

    def streaming(tile: int) -> int:
        tiles = min(TILES_IN_FLIGHT, -(-shape.grains.count // tile))
        return tiles * shape.tile_bytes(tile, rest)

    return (), _longest(shape, streaming, available)


def _longest(shape: Shape, needed: Callable[[int], int], available: int) -> int:
    """The longest tile that needs no more than is ``available``; one grain at least."""
    low, high = 1, shape.longest_tile()
    while low < high:
        middle = (low + high + 1) // 2
        if needed(middle) <= available:
            low = middle
        else:
            high = middle - 1
    return low


def _useful(placements: tuple[Placement, ...], available: int) -> int:
    """The ledger capacity beyond which memory would lie idle."""
    everything = sum(placement.granted_bytes() for placement in placements)
    most = max((placement.working_bytes() for placement in placements), default=0)
    computes = any(placement.shape.computes for placement in placements)
    ahead = IMPORT_PREFETCH_BYTES if computes else PREFETCH_BYTES
    return min(available, everything, most + ahead)


def _infeasible(shapes: list[Shape], budget: int, minimum: int) -> str:
    worst = max(
        shapes, key=lambda shape: shape.scratch_bytes() + shape.tile_bytes(1, shape.all_leaves)
    )
    size = "x".join(map(str, worst.root.shape)) or "0-d"
    return (
        f"a budget of {budget / MIB:.0f} MiB cannot work: the smallest is "
        f"{math.ceil(minimum / MIB)} MiB (--ram {math.ceil(minimum / MIB)}MiB), "
        f"decided by '{worst.writes[0].name}' ({size}, {len(worst.leaves)} inputs)"
    )
