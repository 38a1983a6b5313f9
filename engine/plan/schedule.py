"""Scheduling of a graph within a budget: order of reads, lifetimes, tiles.

`schedule` is a pure function; the executor and the reports use its result. Merges run in output
order, so that writes ascend. Each makes one pass over its inputs per statistic, then the output
pass. Inputs of a merge are:

    streamed   every pass reads every tile again             memory: a few tiles
    resident   each tile is read once and kept until the     memory: the inputs + a few tiles
               last pass
    kept       read once, completely, and kept for a later   memory: the input, until then
               merge

A single pass streams; with several passes, as many tiles are resident as fit.
An input that a later merge uses again is kept if there is room; otherwise the one whose next use is
farthest in the future is dropped (Belady 1966), which is optimal for loads of equal size.

A tile is a run of whole grains, as long as an efficient disk request, or shorter if the budget
requires it, but at least one grain. Tile lengths do not affect the output.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from functools import cached_property

from mergeloom.engine.base.errors import BudgetError
from mergeloom.engine.base.records import dataclass, record
from mergeloom.engine.base.units import MIB
from mergeloom.engine.graph.arithmetic import Arithmetic
from mergeloom.engine.graph.graph import Graph, Load
from mergeloom.engine.hardware.accelerators import CPU, Accelerator
from mergeloom.engine.hardware.spec import Machine
from mergeloom.engine.plan.assignment import Assignment, Reason, assign_devices, without_devices
from mergeloom.engine.plan.device_memory import cached_grains, grains_at_once
from mergeloom.engine.plan.footprint import MergeShape, Positions, TileFlow, WorkerMemory
from mergeloom.engine.plan.residency import kept_loads
from mergeloom.engine.plan.work import Work, WorkKind, kinds_of, operations_of, works_of

PREFETCH_BYTES = 128 * MIB
"""Memory for reading ahead, beyond what the current merges need, in bytes."""

IMPORT_PREFETCH_BYTES = 512 * MIB
"""The same if arithmetic is needed, so that reading continues while its library is imported."""

_WORK_BYTES = 400
"""Bytes of the records of one work while it runs."""
_HEAP_MARGIN = 24 * MIB
"""Bytes for small objects and gaps in the heap."""
_FINITE_CHECK_BYTES = 20 * MIB
"""Memory in bytes of the library that checks copied numbers for NaN and infinity."""
_MEMO_SHARE = 0.25
"""Maximum share of the ledger for memos: they only save arithmetic, resident inputs save reads."""
_MINIMUM_STEP = 8 * MIB
"""The smallest budget is rounded up to a multiple of this number of bytes."""

_PROCESS_VARIATION = 16 * MIB
"""Bytes by which the same process may be larger next time, because the kernel maps more cached
pages of libraries."""


@record(frozen=True, slots=True)
class ScheduledMerge:
    """How one root merge runs.

    ``kept_after`` are the leaves kept in memory for a later merge; ``kept_for_others`` are the
    ledger bytes of loads kept during this merge but not used by it. ``assignment`` says where it is
    computed; a device processes ``chunk`` grains of a tile at once, and caches the inputs of the
    first ``cached_grains`` grains from their first pass to the last.
    """

    work: Work
    flow: TileFlow
    kept_after: Positions
    kept_for_others: int
    assignment: Assignment
    chunk: int = 0
    cached_grains: int = 0

    @property
    def read_bytes(self) -> int:
        """Bytes read from sources in all passes."""
        missing = 0
        work, flow = self.work, self.flow
        for position, load in enumerate(work.leaves):
            if load.bytes.has_holes:
                end, total = flow.resident_elements, work.grains.total
                own, streamed = flow.times_read(position)
                missing += own * _missing(load, 0, end) + streamed * _missing(load, end, total)
        for load in work.side:
            missing += _missing(load, 0, load.elements)
        for position, load in enumerate(work.tables):
            missing += flow.table_reads(position) * _missing(load, 0, load.elements)
        return flow.read_bytes - missing


def _missing(load: Load, first: int, last: int) -> int:
    """Bytes of elements ``[first, last)`` that are holes, which are not read."""
    start, stop = load.dtype.nbytes(first), load.dtype.nbytes(last)
    return stop - start - load.bytes.stored(start, stop)


@dataclass(frozen=True, slots=True)
class Tile:
    """One step of the schedule: ``grains`` grains from ``first`` on, in one pass of one merge.

    ``merge`` is the position of the merge in the schedule, ``number`` that of the pass; ``reads``
    are the positions of the leaves to read; ``writes`` says whether it produces output.
    """

    merge: int
    number: int
    first: int
    grains: int
    reads: tuple[int, ...]
    writes: bool

    @property
    def indices(self) -> range:
        """The indices of its grains."""
        return range(self.first, self.first + self.grains)


@dataclass(frozen=True, repr=False)
class Schedule:
    """The schedule of a run: merges in order, workers, memory.

    ``operations`` are those that kernels use of each arithmetic on the CPU; devices compute with
    ``device_arithmetic``. ``ledger_bytes`` is the capacity of the ledger; ``overhead_bytes`` is all
    other memory of the process, including ``scratch_bytes`` for each of ``workers``.
    ``peak_bytes``, which the process never exceeds, is their sum, but at least ``minimum_bytes``,
    the smallest budget that works.
    """

    graph: Graph
    merges: tuple[ScheduledMerge, ...]
    workers: int
    ledger_bytes: int
    scratch_bytes: int
    overhead_bytes: int
    minimum_bytes: int
    budget_bytes: int | None
    device_arithmetic: Arithmetic
    operations: Mapping[Arithmetic, frozenset[str]] = field(default_factory=dict)
    devices: tuple[Accelerator, ...] = ()

    def __repr__(self) -> str:
        return f"<Schedule of {len(self.merges)} merges in {self.peak_bytes} bytes>"

    @property
    def compiled(self) -> bool:
        """Whether machine code computes on the CPU."""
        return any(not arithmetic.uses_torch for arithmetic in self.operations)

    @property
    def missing(self) -> frozenset[str]:
        """The operations whose machine code has to be compiled first."""
        return frozenset[str]().union(*(each.missing(own) for each, own in self.operations.items()))

    @cached_property
    def assignments(self) -> dict[Assignment, int]:
        """Number of merges by device and reason, in order of first use."""
        return dict(Counter(scheduled.assignment for scheduled in self.merges))

    @property
    def used_devices(self) -> list[int]:
        """Indices of the devices that are used."""
        return sorted(
            {assignment.device for assignment in self.assignments if assignment.device is not None}
        )

    def device_name(self, assignment: Assignment) -> str:
        """The name of the device, or ``cpu``."""
        return CPU if assignment.device is None else self.devices[assignment.device].name

    @property
    def peak_bytes(self) -> int:
        return max(self.overhead_bytes + self.ledger_bytes, self.minimum_bytes)

    @cached_property
    def read_bytes(self) -> int:
        """Bytes of tensor data that the run reads."""
        if any(load.bytes.has_holes for load in self.graph.loads):
            return sum(scheduled.read_bytes for scheduled in self.merges)
        return sum(scheduled.flow.read_bytes for scheduled in self.merges)

    @cached_property
    def write_bytes(self) -> int:
        """Bytes that the run writes: shards with headers, and spilled values."""
        return sum(each.work.kind.write_bytes for each in self.merges) + self.header_bytes

    @cached_property
    def header_bytes(self) -> int:
        """Bytes of the headers of the written files."""
        return sum(len(file.header) for file in {write.file for write in self.graph.writes})

    @cached_property
    def repeated_bytes(self) -> int:
        """Bytes read repeatedly because memory is short.

        Side inputs are always read for each merge that has them, which does not count.
        """
        works = [scheduled.work for scheduled in self.merges]
        beside = [load for work in works for load in work.side_loads]
        aligned = {load for work in works for load in work.leaves} if beside else self.graph.loads
        once: int = sum(load.stored_bytes for load in (*aligned, *beside))
        return max(self.read_bytes - once, 0)

    @property
    def computes(self) -> bool:
        """Whether any merge needs arithmetic; copies do not."""
        return any(scheduled.work.merge_shape.computes for scheduled in self.merges)

    def steps(self) -> Iterator[Tile]:
        """Every tile of the run in the order in which it is started."""
        for index in range(len(self.merges)):
            yield from self.tiles(index)

    def tiles(self, index: int) -> Iterator[Tile]:
        """The tiles of merge ``index``, in the order in which they are started."""
        scheduled = self.merges[index]
        count = scheduled.work.grains.count
        tile = scheduled.flow.tile
        last = len(scheduled.work.passes) - 1
        for number in range(last + 1):
            for first in range(0, count, tile):
                grains = min(tile, count - first)
                reads = scheduled.flow.reads(number, first)
                yield Tile(index, number, first, grains, reads, number == last)


def schedule(graph: Graph, budget: int | None, machine: Machine) -> Schedule:
    """Schedule ``graph`` within ``budget`` bytes of memory (``None``: unlimited).

    Raises:
        BudgetError: no schedule fits; the message names a budget that works.
    """
    works = works_of(graph, machine)
    kinds = kinds_of(works)
    needed = _Needed.of(kinds, len(works), machine, ())
    smallest_bytes = max((kind.merge_shape.smallest_bytes for kind in kinds), default=0)
    minimum = -(-(needed.bytes(1) + smallest_bytes) // _MINIMUM_STEP) * _MINIMUM_STEP
    if budget is not None and budget < minimum:
        raise _too_small(works, budget, minimum)
    if budget is not None and machine.process_bytes + machine.compiler_bytes > budget:
        _check_compiler_fits(kinds, budget)

    def capacity(workers: int) -> int:
        return 1 << 62 if budget is None else budget - needed.bytes(workers)

    def worker_count() -> int:
        """The largest number of workers for which there is enough memory."""
        workers = machine.threads
        while workers > 1 and capacity(workers) < (workers + 2) * smallest_bytes:
            workers -= 1
        return workers

    # The main memory needed by devices is known only once they are assigned. So assignment
    # assumes the maximum number of workers.
    workers = worker_count()
    assigned = assign_devices(works, machine, workers)
    used = {assignment.device for assignment in assigned if assignment.device is not None}
    if used:
        taken = [machine.devices[number] for number in sorted(used)]
        with_devices = _Needed.of(kinds, len(works), machine, taken)
        if budget is not None and with_devices.bytes(1) + smallest_bytes > budget:
            assigned = without_devices(assigned, Reason.NO_RAM)
        else:
            needed = with_devices
            workers = worker_count()
    available = capacity(workers)
    merges = _schedule_works(works, available, assigned, machine.devices)
    return Schedule(
        graph=graph,
        merges=merges,
        workers=workers,
        ledger_bytes=_useful_bytes(merges, available),
        scratch_bytes=needed.worker.scratch_bytes,
        overhead_bytes=needed.bytes(workers),
        minimum_bytes=minimum,
        budget_bytes=budget,
        device_arithmetic=machine.device_arithmetic,
        operations=operations_of(kinds),  # a device may hand any of them back to the CPU
        devices=machine.devices,
    )


@dataclass(frozen=True, slots=True)
class _Needed:
    """Bytes outside the ledger: ``fixed``, and those of each worker."""

    fixed: int
    worker: WorkerMemory

    @staticmethod
    def of(
        kinds: Sequence[WorkKind], works: int, machine: Machine, devices: Sequence[Accelerator]
    ) -> _Needed:
        """The bytes for ``works`` works, with ``devices``.

        Devices share libraries, so the second and later ones add less.
        """
        merge_shapes = [kind.merge_shape for kind in kinds]
        operations = operations_of(kinds)
        fixed = machine.process_bytes + _HEAP_MARGIN + _WORK_BYTES * works
        fixed += sum(arithmetic.library_bytes(own) for arithmetic, own in operations.items())
        fixed += _FINITE_CHECK_BYTES if any(kind.checks_finite for kind in kinds) else 0
        if (devices and machine.device_arithmetic.uses_torch) or any(
            each.uses_torch for each in operations
        ):
            fixed += machine.runtime_bytes
        libraries = sorted((device.host_bytes for device in devices), reverse=True)
        fixed += sum(libraries[:1]) + sum(libraries[1:]) // 4
        on_device = WorkerMemory.maximum(merge_shape.on_device for merge_shape in merge_shapes)
        fixed += sum(on_device.device_thread_bytes for _ in devices)
        return _Needed(
            fixed, WorkerMemory.maximum(merge_shape.worker for merge_shape in merge_shapes)
        )

    def bytes(self, workers: int) -> int:
        """Bytes for ``workers`` workers and everything else."""
        return self.fixed + self.worker.of_workers(workers)


def _check_compiler_fits(kinds: Sequence[WorkKind], budget: int) -> None:
    """Check that the budget is large enough for the compiler, if it is needed.

    Raises:
        BudgetError: it is not.
    """
    for arithmetic, operations in operations_of(kinds).items():
        if arithmetic.missing(operations):
            raise BudgetError(
                f"a budget of {budget / MIB:.0f} MiB is too small to build machine code for this "
                "merge",
                remedy="run 'mergeloom prepare' once, which builds all of it for this machine",
            )


def _schedule_works(
    works: list[Work],
    capacity: int,
    assigned: Sequence[Assignment],
    devices: Sequence[Accelerator],
) -> tuple[ScheduledMerge, ...]:
    before: defaultdict[int, set[Load]] = defaultdict(set)
    after: defaultdict[int, set[Load]] = defaultdict(set)
    change = [0] * (len(works) + 1)
    for kept in kept_loads(works, capacity):
        after[kept.start].add(kept.load)
        before[kept.end].add(kept.load)
        change[kept.start + 1] += kept.nbytes
        change[kept.end] -= kept.nbytes
    merges = []
    kept_for_others = 0
    flows: dict[tuple[WorkKind, Positions, Positions, int, bool], TileFlow] = {}
    for index, work in enumerate(works):
        kept_for_others += change[index]
        kept_before: Positions = ()
        kept_fresh: Positions = ()
        kept_after: Positions = ()
        if index in before or index in after:
            kept_before = _positions(work, before[index])
            kept_fresh = _positions(work, after[index] - before[index])
            kept_after = _positions(work, after[index])
        assignment, chunk, cached = assigned[index], 0, 0
        memos = assignment.device is None
        key = work.kind, kept_before, kept_fresh, kept_for_others, memos
        flow = flows.get(key)
        if flow is None:
            flow = flows[key] = _flow(
                work.merge_shape, kept_before, kept_fresh, capacity - kept_for_others, memos
            )
        if assignment.device is not None:
            memory = devices[assignment.device].memory_bytes
            chunk = grains_at_once(work.merge_shape, memory, flow.tile)
            cached = cached_grains(work.merge_shape, memory, chunk)
        merges.append(
            ScheduledMerge(work, flow, kept_after, kept_for_others, assignment, chunk, cached)
        )
    return tuple(merges)


def _positions(work: Work, loads: set[Load]) -> Positions:
    return tuple(i for i, load in enumerate(work.leaves) if load in loads)


def _flow(
    merge_shape: MergeShape,
    kept_before: Positions,
    kept_fresh: Positions,
    available: int,
    memos: bool,
) -> TileFlow:
    """How the inputs of a kind of merge are read with ``available`` ledger bytes."""
    whole = {*kept_before, *kept_fresh}
    rest = tuple(i for i in merge_shape.all_leaves if i not in whole)
    room = available - merge_shape.whole_bytes((*kept_before, *kept_fresh))
    memo = merge_shape.tile_memo_bytes(1) * merge_shape.grains.count if memos else 0
    if memo > room * _MEMO_SHARE or room - memo < 2 * merge_shape.smallest_bytes:
        memo = 0
    held = merge_shape.held_tables(room - memo)
    room -= memo + merge_shape.tables_bytes(held)
    resident, tile, resident_tiles = merge_shape.resident_or_streamed(rest, room)
    return TileFlow(
        *(merge_shape, tile, kept_before, kept_fresh, resident, resident_tiles),
        *(memo > 0, held),
    )


def _useful_bytes(merges: tuple[ScheduledMerge, ...], available: int) -> int:
    """The largest ledger capacity that the run can use, at most ``available`` bytes."""
    everything = sum(scheduled.flow.granted_bytes for scheduled in merges)
    working = (p.flow.working_bytes + p.kept_for_others for p in merges)
    computes = any(scheduled.work.merge_shape.computes for scheduled in merges)
    ahead = IMPORT_PREFETCH_BYTES if computes else PREFETCH_BYTES
    return min(available, everything, max(working, default=0) + ahead)


def _too_small(works: list[Work], budget: int, minimum: int) -> BudgetError:
    worst = max(
        works,
        key=lambda work: work.merge_shape.worker.scratch_bytes + work.merge_shape.smallest_bytes,
    )
    size = "x".join(map(str, worst.root.shape)) or "0-d"
    beside = f" and {len(worst.side_loads)} side inputs" if worst.side_loads else ""
    enough = math.ceil((minimum + _PROCESS_VARIATION) / MIB)
    asked = f"{budget / MIB:.0f} MiB" if budget >= MIB else f"{budget} bytes"
    return BudgetError(
        f"a budget of {asked} cannot work, because of '{worst.name}' ({size}, "
        f"{len(worst.leaves)} inputs{beside})",
        remedy=f"{enough} MiB are enough (--ram {enough}MiB)",
    )
