"""From a graph and a budget to a schedule: what is read when, held how long, in which tiles.

`schedule` is a pure function. Its result is walked by the executor and by the dry run alike.

Merges run in the order of the output, so that writes ascend. Each is a few passes over its
inputs: one for each statistic, then one that writes. How a merge gets its inputs:

    streamed   every pass reads every tile again             memory: a few tiles
    resident   each tile is read once and stays until the    memory: the inputs + a few tiles
               last pass is done with it
    kept       read once, whole, and stays for a later       memory: the input, until then
               merge

One pass streams; of several passes as many tiles are resident as fit, for memory is cheaper than
disk.
An input that a later merge uses again is kept if there is room, and when room runs out the one
whose next use is farthest goes first (Belady 1966): the future is known here, so that is optimal
for loads of one size.

A tile is a run of whole grains. It is as long as a good disk request, and shorter where the
budget demands it; one grain is the least. Tile lengths change no byte of the output.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mergeloom.engine.base.errors import BudgetError
from mergeloom.engine.base.grains import Access, Grains, partition
from mergeloom.engine.graph.graph import Graph, Load, Merge, Write, copied_dtype, tree
from mergeloom.engine.graph.kernel import AS_STORED, Kernel, Statistic
from mergeloom.engine.hardware.accelerators import CPU, Accelerator
from mergeloom.engine.hardware.rates import ASSUMED, Rates
from mergeloom.engine.memory.ledger import PAGE, block_bytes
from mergeloom.engine.plan.assignment import (
    Seat,
    Why,
    grains_at_once,
    grains_staying,
    seats,
    without_devices,
)
from mergeloom.engine.plan.footprint import MIB, Flow, Positions, Profile, Working
from mergeloom.engine.storage.files import span_bytes

PREFETCH_BYTES = 128 * MIB
"""Memory that reading ahead may use beyond what the merges at hand need."""

IMPORT_PREFETCH_BYTES = 512 * MIB
"""The same where arithmetic is needed: reading goes on while its library is imported."""

_NODE_BYTES = 400
_HEAP_MARGIN = 24 * MIB
_NOTED_SHARE = 0.25
"""The most of the ledger that notes may take: they save arithmetic, inputs that stay reading."""
_MINIMUM_STEP = 8 * MIB


@dataclass(frozen=True, slots=True)
class LoopSupport:
    """What a schedule must know of compiled loops on a machine.

    ``built`` are the names of those that are there. Loading any takes ``loaded_bytes``; to build
    more a compiler needs ``compiler_bytes`` before the run (``None``: there is none).
    """

    built: frozenset[str]
    loaded_bytes: int
    compiler_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """What a schedule must know of the machine and the process.

    ``process_bytes`` is what the process occupies before the run (interpreter, libraries, the
    graph); ``runtime_bytes`` what importing and using the arithmetic library adds; ``threads`` how
    many workers may compute at once. ``loops`` is about compiled loops, where it has any.
    ``devices`` may compute too; with ``forced`` they get all that they can. ``rates`` are what is
    known of its speed.
    """

    threads: int
    process_bytes: int
    runtime_bytes: int
    loops: LoopSupport | None = None
    devices: tuple[Accelerator, ...] = ()
    forced: bool = False
    rates: Rates = ASSUMED


@dataclass(frozen=True, slots=True)
class Pass:
    """One walk over the inputs of a merge tree.

    ``merge`` is the merge whose statistic number ``statistic`` is gathered; for the last pass it
    is the root and ``statistic`` is ``None``. ``leaves`` are the positions of the loads needed.
    """

    merge: Merge
    statistic: int | None
    leaves: Positions


@dataclass(frozen=True, slots=True)
class Work:
    """One root merge, all that is written of it, and all that it needs."""

    root: Merge
    writes: tuple[Write, ...]
    leaves: tuple[Load, ...]
    passes: tuple[Pass, ...]
    profile: Profile

    @property
    def grains(self) -> Grains:
        return self.profile.grains


@dataclass(frozen=True, slots=True)
class Placement:
    """How one root merge runs.

    ``kept_after`` are the leaves that stay in memory for a later merge; ``kept_for_others`` the
    ledger bytes of loads that stay past this merge without being used by it. ``seat`` says where
    it computes; a device works on ``chunk`` grains of a tile at once, and keeps the inputs of the
    first ``staying`` grains from their first pass to the last.
    """

    work: Work
    flow: Flow
    kept_after: Positions
    kept_for_others: int
    seat: Seat
    chunk: int = 0
    staying: int = 0


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

    ``loops`` are the compiled loops that kernels may use, for which there is memory; ``missing``
    those of them that have to be built first, and ``workers_without_loops`` how many workers the
    budget has room for should loops fail. ``ledger_bytes`` is the ledger's capacity;
    ``overhead_bytes`` everything else the process occupies, of which each of ``workers`` may take
    ``scratch_bytes`` for arithmetic, or ``looped_scratch_bytes`` where loops work. Their sum is
    ``peak_bytes``, which the process never exceeds; ``minimum_bytes`` is the smallest budget that
    can work. ``rates`` are those by which places were decided.
    """

    graph: Graph
    placements: tuple[Placement, ...]
    workers: int
    ledger_bytes: int
    scratch_bytes: int
    looped_scratch_bytes: int
    overhead_bytes: int
    minimum_bytes: int
    budget_bytes: int | None
    loops: frozenset[str] = frozenset()
    missing: frozenset[str] = frozenset()
    workers_without_loops: int = 1
    devices: tuple[Accelerator, ...] = ()
    rates: Rates = ASSUMED

    @property
    def compiled(self) -> bool:
        """Whether kernels may use compiled loops."""
        return bool(self.loops)

    @cached_property
    def seats(self) -> dict[Seat, int]:
        """How many merges compute in each place, for each reason, in order of first use."""
        return dict(Counter(placement.seat for placement in self.placements))

    @property
    def used_devices(self) -> list[int]:
        """Numbers of the devices that compute anything."""
        return sorted({seat.device for seat in self.seats if seat.device is not None})

    def place_name(self, seat: Seat) -> str:
        """The name of the device, or ``cpu``."""
        return CPU if seat.device is None else self.devices[seat.device].name

    @property
    def peak_bytes(self) -> int:
        return self.overhead_bytes + self.ledger_bytes

    @cached_property
    def read_bytes(self) -> int:
        """Bytes of tensor data that the run reads."""
        return sum(placement.flow.read_bytes for placement in self.placements)

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
        return any(placement.work.profile.computes for placement in self.placements)

    def steps(self) -> Iterator[Tile]:
        """Every tile of the run in the order in which it is started."""
        for index, placement in enumerate(self.placements):
            count = placement.work.grains.count
            tile = placement.flow.tile
            last = len(placement.work.passes) - 1
            for number in range(last + 1):
                for first in range(0, count, tile):
                    grains = min(tile, count - first)
                    reads = placement.flow.reads(number, first)
                    yield Tile(index, number, first, grains, reads, number == last)


def schedule(graph: Graph, budget: int | None, machine: Machine) -> Schedule:
    """Decide the run of ``graph`` within ``budget`` bytes of memory (``None``: unlimited).

    Raises:
        BudgetError: no schedule fits; the message names the smallest budget that does.
    """
    works = _works(graph)
    profiles = {work.profile for work in works}
    needed = _Needed.of(profiles, len(works), machine, ())
    narrowest = max((profile.narrowest for profile in profiles), default=0)
    minimum = -(-(needed.bytes(1) + narrowest) // _MINIMUM_STEP) * _MINIMUM_STEP
    if budget is not None and budget < minimum:
        raise BudgetError(_infeasible(works, budget, minimum))
    loading = _loading_bytes(_loop_names(works), budget, machine)

    def capacity(workers: int, loading: int = 0) -> int:
        return 1 << 62 if budget is None else budget - needed.bytes(workers, loading)

    def staff(loading: int) -> tuple[int, int]:
        """How many workers there is room for, and the bytes of loops if there is for them."""
        workers = machine.threads
        while workers > 1 and capacity(workers) < (workers + 2) * narrowest:
            workers -= 1
        for looped in range(machine.threads, workers - 1, -1) if loading else ():
            if capacity(looped, loading) >= max((looped + 2) * narrowest, loading):
                return looped, loading
        return workers, 0

    # What a device takes from the CPU's memory is known only when it is used. So places are
    # decided with the CPU at its best.
    workers, granted = staff(loading)
    seating = seats(works, machine.devices, machine.forced, workers, granted > 0, machine.rates)
    used = {seat.device for seat in seating if seat.device is not None}
    if used:
        taken = [machine.devices[number] for number in sorted(used)]
        with_devices = _Needed.of(profiles, len(works), machine, taken)
        if budget is not None and with_devices.bytes(1) + narrowest > budget:
            seating = without_devices(seating, Why.NO_RAM)
        else:
            needed = with_devices
            workers, granted = staff(loading)
    here = [work for work, seat in zip(works, seating, strict=True) if seat.device is None]
    if granted and not _loop_names(here):
        workers, granted = staff(0)
    loops = _loop_names(works) if granted else frozenset()  # a device may give any of them up
    available = capacity(workers, granted)
    placements = _place(works, available, seating, machine.devices, granted > 0)
    ledger_bytes = _useful(placements, available)
    room = math.inf if budget is None else budget - granted - ledger_bytes
    fitting = [number for number in range(1, workers + 1) if needed.bytes(number) <= room]
    return Schedule(
        graph=graph,
        placements=placements,
        workers=workers,
        ledger_bytes=ledger_bytes,
        scratch_bytes=needed.worker.scratch_bytes,
        looped_scratch_bytes=needed.looped.scratch_bytes,
        overhead_bytes=needed.bytes(workers, granted),
        minimum_bytes=minimum,
        budget_bytes=budget,
        loops=loops,
        missing=loops - machine.loops.built if machine.loops is not None else frozenset(),
        workers_without_loops=max(fitting, default=1),
        devices=machine.devices,
        rates=machine.rates,
    )


@dataclass(frozen=True, slots=True)
class _Needed:
    """Bytes outside of the ledger: ``fixed`` ones, and those of workers."""

    fixed: int
    worker: Working
    looped: Working

    @staticmethod
    def of(
        profiles: set[Profile], works: int, machine: Machine, devices: Sequence[Accelerator]
    ) -> _Needed:
        """What it takes to use ``devices`` too.

        Their libraries are the same; what each of several adds is smaller.
        """
        worker = Working.most(profile.worker for profile in profiles)
        fixed = machine.process_bytes + _HEAP_MARGIN + _NODE_BYTES * works
        if any(profile.computes for profile in profiles):
            fixed += machine.runtime_bytes
        libraries = sorted((device.host_bytes for device in devices), reverse=True)
        fixed += sum(libraries[:1]) + sum(libraries[1:]) // 4
        fixed += sum(worker.beside_device for _ in devices)
        return _Needed(fixed, worker, Working.most(profile.looped for profile in profiles))

    def bytes(self, workers: int, loading: int = 0) -> int:
        """With so many workers and, where ``loading`` them takes some bytes, with loops."""
        if not loading:
            return self.fixed + self.worker.of_workers(workers)
        # Should loops fail, one worker goes on without.
        alone, looped = self.worker.of_workers(1), self.looped.of_workers(workers)
        return self.fixed + loading + max(alone, looped)


def _loading_bytes(loops: frozenset[str], budget: int | None, machine: Machine) -> int:
    """What it takes to load these loops, or 0 where that cannot be done."""
    support = machine.loops
    if support is None or not loops:
        return 0
    if not loops <= support.built:
        if support.compiler_bytes is None:
            return 0
        if budget is not None and machine.process_bytes + support.compiler_bytes > budget:
            return 0
    return support.loaded_bytes


def _loop_names(works: Sequence[Work]) -> frozenset[str]:
    """The loops that kernels can use."""
    kernels = {merge.kernel for work in works for merge in tree(work.root)}
    return frozenset[str]().union(*(kernel.loops for kernel in kernels))


def _works(graph: Graph) -> list[Work]:
    writes: dict[Merge, list[Write]] = {}
    for write in graph.writes:
        writes.setdefault(write.merge, []).append(write)
    profiles: dict[Profile, Profile] = {}
    return [_work(root, tuple(own), profiles) for root, own in writes.items()]


def _work(root: Merge, writes: tuple[Write, ...], profiles: dict[Profile, Profile]) -> Work:
    merges = tuple(tree(root))
    leaves: dict[Load, int] = {}
    needed: dict[Merge, Positions] = {}
    for merge in merges:  # inputs come before their users
        own: dict[int, None] = {}
        for node in merge.gather.inputs:
            if isinstance(node, Load):
                own[leaves.setdefault(node, len(leaves))] = None
            else:
                own.update(dict.fromkeys(needed[node]))
        needed[merge] = tuple(own)
    passes = [
        Pass(merge, statistic, needed[merge])
        for merge in merges
        for statistic in range(len(merge.kernel.passes))
    ]
    passes.append(Pass(root, None, needed[root]))
    copied = copied_dtype(root)
    computes = copied is None or any(write.dtype != copied for write in writes)
    access = max(merge.kernel.access for merge in merges) if computes else Access.ELEMENTWISE
    grains = partition(root.shape, access)
    profile = Profile(
        grains=grains,
        leaf_sizes=tuple(load.dtype.size for load in leaves),
        write_sizes=tuple(write.dtype.size for write in writes),
        passes=tuple(current.leaves for current in passes),
        computes=computes,
        worker=_working(merges, grains, False) if computes else Working(0, 0),
        looped=_working(merges, grains, True) if computes else Working(0, 0),
        notes_bytes=root.kernel.notes_bytes(grains) if computes else 0,
    )
    profile = profiles.setdefault(profile, profile)
    return Work(root, writes, tuple(leaves), tuple(passes), profile)


def _working(merges: Sequence[Merge], grains: Grains, looped: bool) -> Working:
    """What one worker needs for its arithmetic on a merge tree."""
    tensors = workspace = accumulator = 0
    for merge in merges:
        kernel, nodes = merge.kernel, merge.gather.inputs
        loops_work = looped and bool(kernel.loops)
        parts: tuple[Kernel | Statistic[Any, Any], ...] = (kernel, *kernel.passes)
        own = [_tensors(part.scratch, part.looped_scratch, nodes, loops_work) for part in parts]
        tensors += max(own) + 1
        workspace += max(part.workspace_bytes(grains, loops_work) for part in parts)
        for statistic in kernel.passes:
            accumulator = max(accumulator, statistic.accumulator_bytes(grains, loops_work))
    scratch = block_bytes(-(-grains.size * 4 // PAGE) * PAGE * tensors) + workspace
    return Working(scratch, accumulator)


def _tensors(
    scratch: int, looped: int | None, nodes: Sequence[Load | Merge], loops_work: bool
) -> int:
    """Tensors of a grain's size that a kernel or a statistic needs: inputs, and its scratch."""
    if looped is None or not loops_work:
        return len(nodes) + scratch
    return looped + sum(not isinstance(node, Load) or node.dtype not in AS_STORED for node in nodes)


@dataclass(frozen=True, slots=True, eq=False)
class _Stay:
    """A load that stays in memory from merge ``start``, which reads it, to merge ``end``."""

    load: Load
    start: int
    end: int
    nbytes: int


def _stays(works: list[Work], capacity: int) -> list[_Stay]:
    """Which loads stay in memory between two merges that use them.

    All would; wherever they leave a merge too little room, the one that ends last is given up,
    and then it is not kept at all but read again when its time comes.
    """
    uses: dict[Load, int] = {}
    later: list[list[_Stay]] = [[] for _ in works]
    for index in reversed(range(len(works))):
        for load in works[index].leaves:
            if load in uses:
                nbytes = block_bytes(span_bytes(load.nbytes))
                later[index].append(_Stay(load, index, uses[load], nbytes))
            uses[load] = index
    chosen: set[_Stay] = set()
    ending: list[list[_Stay]] = [[] for _ in works]
    farthest: list[tuple[int, int, _Stay]] = []
    memory = _Occupied()
    order = 0
    for index, work in enumerate(works):
        for stay in later[index]:
            chosen.add(stay)
            ending[stay.end].append(stay)
            memory.add(stay)
            order += 1
            heapq.heappush(farthest, (-stay.end, order, stay))
        while farthest:
            rest = tuple(i for i, load in enumerate(work.leaves) if load not in memory)
            room = capacity - memory.nbytes
            if work.profile.comfortable(rest, room, capacity) <= room:
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


def _place(
    works: list[Work],
    capacity: int,
    seating: Sequence[Seat],
    devices: Sequence[Accelerator],
    looped: bool,
) -> tuple[Placement, ...]:
    before: list[set[Load]] = [set() for _ in works]
    after: list[set[Load]] = [set() for _ in works]
    change = [0] * (len(works) + 1)
    for stay in _stays(works, capacity):
        after[stay.start].add(stay.load)
        before[stay.end].add(stay.load)
        change[stay.start + 1] += stay.nbytes
        change[stay.end] -= stay.nbytes
    placements = []
    kept_for_others = 0
    flows: dict[tuple[Profile, Positions, Positions, int, bool], Flow] = {}
    for index, work in enumerate(works):
        kept_for_others += change[index]
        there = _positions(work, before[index])
        fresh = _positions(work, after[index] - before[index])
        seat, chunk, staying = seating[index], 0, 0
        notes = looped and seat.device is None
        key = work.profile, there, fresh, kept_for_others, notes
        flow = flows.get(key)
        if flow is None:
            flow = flows[key] = _flow(work.profile, there, fresh, capacity - kept_for_others, notes)
        after_this = _positions(work, after[index])
        if seat.device is not None:
            memory = devices[seat.device].memory_bytes
            chunk = grains_at_once(work.profile, memory, flow.tile)
            staying = grains_staying(work.profile, memory, chunk)
        placements.append(Placement(work, flow, after_this, kept_for_others, seat, chunk, staying))
    return tuple(placements)


def _positions(work: Work, loads: set[Load]) -> Positions:
    return tuple(i for i, load in enumerate(work.leaves) if load in loads) if loads else ()


def _flow(
    profile: Profile, there: Positions, fresh: Positions, available: int, notes: bool
) -> Flow:
    whole = {*there, *fresh}
    rest = tuple(i for i in profile.all_leaves if i not in whole)
    room = available - profile.whole_bytes((*there, *fresh))
    noted = profile.tile_notes_bytes(1) * profile.grains.count if notes else 0
    if noted > room * _NOTED_SHARE or room - noted < 2 * profile.narrowest:
        noted = 0
    resident, tile, staying = profile.resident_or_streamed(rest, room - noted)
    return Flow(profile, tile, there, fresh, resident, staying, noted > 0)


def _useful(placements: tuple[Placement, ...], available: int) -> int:
    """The ledger capacity beyond which memory would lie idle."""
    everything = sum(placement.flow.granted_bytes for placement in placements)
    working = (p.flow.working_bytes + p.kept_for_others for p in placements)
    computes = any(placement.work.profile.computes for placement in placements)
    ahead = IMPORT_PREFETCH_BYTES if computes else PREFETCH_BYTES
    return min(available, everything, max(working, default=0) + ahead)


def _infeasible(works: list[Work], budget: int, minimum: int) -> str:
    worst = max(works, key=lambda work: work.profile.worker.scratch_bytes + work.profile.narrowest)
    size = "x".join(map(str, worst.root.shape)) or "0-d"
    return (
        f"a budget of {budget / MIB:.0f} MiB cannot work: the smallest is "
        f"{math.ceil(minimum / MIB)} MiB (--ram {math.ceil(minimum / MIB)}MiB), "
        f"decided by '{worst.writes[0].name}' ({size}, {len(worst.leaves)} inputs)"
    )
