"""The works of a graph: each is a tree of merges with its reads, passes and resources."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from mergeloom.engine.base.dtypes import DType
from mergeloom.engine.base.grains import Access, Grains, partition, unit_of
from mergeloom.engine.base.records import dataclass, record
from mergeloom.engine.graph.arithmetic import DECODING, Arithmetic
from mergeloom.engine.graph.graph import (
    Graph,
    Load,
    Merge,
    Spill,
    Write,
    copied_dtype,
    spills_of,
    tree,
)
from mergeloom.engine.graph.kernel import Kernel, Statistic, Use, all_uses, table_buffer_bytes
from mergeloom.engine.hardware.spec import Machine
from mergeloom.engine.memory.pages import PAGE, block_bytes
from mergeloom.engine.plan.footprint import MergeShape, Positions, WorkerMemory


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over the inputs of a merge tree.

    ``node`` is the index in `Work.merges` of the merge whose statistic ``statistic`` is computed;
    for the last pass it is the root and ``statistic`` is ``None``. ``leaves`` are the positions of
    the loads needed.
    """

    node: int
    statistic: int | None
    leaves: Positions


@dataclass(frozen=True, slots=True, eq=False)
class WorkKind:
    """The common properties of works that differ only in their tensors.

    ``cost`` is the cost of their kernels by ``arithmetic``, in nanoseconds per element on one core;
    ``write_bytes`` is what one of them writes. ``has_device_code`` says whether devices have code
    for them, ``checks_finite`` whether copied numbers are checked for NaN and infinity.
    """

    passes: tuple[Pass, ...]
    merge_shape: MergeShape
    arithmetic: Arithmetic
    operations: frozenset[str]
    cost: float
    write_bytes: int
    uses_float64: bool
    has_device_code: bool
    checks_finite: bool


@record(frozen=True, slots=True)
class Work:
    """One root merge with everything it needs; without writes, its statistics are the result.

    ``merges`` is its tree of merges, inputs before their users and the root last. ``leaves`` are
    its aligned loads, ``side`` its side inputs, ``tables`` the loads that are read in blocks of
    rows. It begins when the spilled values in ``awaited`` are written.
    """

    merges: tuple[Merge, ...]
    writes: tuple[Write, ...]
    leaves: tuple[Load, ...]
    side: tuple[Load, ...]
    tables: tuple[Load, ...]
    kind: WorkKind
    awaited: tuple[Spill, ...] = ()

    @property
    def root(self) -> Merge:
        return self.merges[-1]

    @property
    def side_loads(self) -> tuple[Load, ...]:
        """The loads other than its aligned ones: side inputs and tables."""
        return (*self.side, *self.tables)

    @property
    def name(self) -> str:
        """The name for messages."""
        return self.writes[0].name if self.writes else self.root.name

    @property
    def passes(self) -> tuple[Pass, ...]:
        return self.kind.passes

    @property
    def merge_shape(self) -> MergeShape:
        return self.kind.merge_shape

    @property
    def arithmetic(self) -> Arithmetic:
        """The arithmetic used on the CPU."""
        return self.kind.arithmetic

    @property
    def grains(self) -> Grains:
        return self.kind.merge_shape.grains

    def merge_of(self, current: Pass) -> Merge:
        """The merge whose statistic a pass computes, or the root."""
        return self.merges[current.node]


def kinds_of(works: Iterable[Work]) -> list[WorkKind]:
    """The kinds of works, each once."""
    return list(dict.fromkeys(work.kind for work in works))


def operations_of(kinds: Iterable[WorkKind]) -> dict[Arithmetic, frozenset[str]]:
    """The operations used of each arithmetic on the CPU."""
    found: dict[Arithmetic, set[str]] = {}
    for kind in kinds:
        if kind.merge_shape.computes:
            found.setdefault(kind.arithmetic, set()).update(kind.operations)
    return {arithmetic: frozenset(own) for arithmetic, own in found.items()}


def works_of(graph: Graph, machine: Machine) -> list[Work]:
    """The works of a graph: spilled values first, then in output order."""
    writes: dict[Merge, list[Write]] = {}
    for write in graph.all_writes:
        writes.setdefault(write.merge, []).append(write)
    kinds = _WorkKinds(machine)
    works = [kinds.work(root, tuple(own)) for root, own in writes.items()]
    works += [kinds.work(root, ()) for root in graph.measured]
    return [_with_awaited(work) for work in works] if graph.spills else works


def _with_awaited(work: Work) -> Work:
    """A work with the spilled values that it needs in ``awaited``."""
    found = dict.fromkeys(
        spill for load in (*work.leaves, *work.side_loads) for spill in spills_of(load)
    )
    return replace(work, awaited=tuple(found)) if found else work


class _WorkKinds:
    """Groups works by kind, so that properties of the kind are computed once."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._kinds: dict[Hashable, WorkKind] = {}
        self._numbers: dict[Hashable, int] = {}
        self._kernels: dict[int, int] = {}
        """Numbers of kernels by `id`, the same for one `Kernel.planning_key`; the graph keeps
        kernels alive."""

    def work(self, root: Merge, writes: tuple[Write, ...]) -> Work:
        if not root.is_flat or root.gather.side_loads:
            return self._tree(root, writes)
        inputs = root.gather.inputs
        leaves: tuple[Any, ...] = tuple(dict.fromkeys(inputs))
        pattern = tuple(map(leaves.index, inputs)) if len(leaves) < len(inputs) else None
        node = self._kernel(root.kernel), root.shape, inputs[0].shape, pattern
        key = node, tuple([load.dtype.code for load in leaves]), _slots(writes)
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kinds[key] = _kind((root,), writes, leaves, (), (), self._machine)
        return Work((root,), writes, leaves, (), (), kind)

    def _tree(self, root: Merge, writes: tuple[Write, ...]) -> Work:
        """The work of a merge of merges, or of a merge with side inputs or tables."""
        merges = tuple(tree(root))
        leaves: dict[Load, int] = {}
        numbers: dict[Merge, int] = {}
        shape: list[Hashable] = [_slots(writes)]
        for merge in merges:  # inputs come first
            nodes = tuple(
                [
                    leaves.setdefault(node, len(leaves))
                    if isinstance(node, Load)
                    else -1 - numbers[node]
                    for node in merge.gather.inputs
                ]
            )
            numbers[merge] = len(numbers)
            first = merge.gather.inputs[0].shape
            shape.append((self._kernel(merge.kernel), merge.shape, first, nodes))
        side = dict.fromkeys(load for merge in merges for load in merge.gather.side)
        every = [load for merge in merges for load in merge.gather.tables]
        tables = {load: number for number, load in enumerate(dict.fromkeys(every))}
        shape.append(tuple([load.dtype.code for load in leaves]))
        shape.append(tuple([(load.nbytes, load.dtype.code) for load in side]))
        shape.append(tuple([(tables[load], load.shape, load.dtype.code) for load in every]))
        key = tuple(shape)
        kind = self._kinds.get(key)
        if kind is None:
            beside = tuple(side), tuple(tables)
            kind = _kind(merges, writes, tuple(leaves), *beside, self._machine)
            self._kinds[key] = kind
        return Work(merges, writes, tuple(leaves), tuple(side), tuple(tables), kind)

    def _kernel(self, kernel: Kernel) -> int:
        found = self._kernels.get(id(kernel))
        if found is None:
            found = self._numbers.setdefault(kernel.planning_key, len(self._numbers))
            self._kernels[id(kernel)] = found
        return found


def _slots(writes: Sequence[Write]) -> Hashable:
    if len(writes) == 1:  # as for most merges
        return writes[0].dtype.code, writes[0].part
    return tuple([(write.dtype.code, write.part) for write in writes])


def _kind(
    merges: tuple[Merge, ...],
    writes: Sequence[Write],
    leaves: Sequence[Load],
    side: Sequence[Load],
    tables: Sequence[Load],
    machine: Machine,
) -> WorkKind:
    """The kind of a merge tree."""
    root = merges[-1]
    computations = {merge: _computations(merge.kernel) for merge in merges}
    passes = _passes(merges, leaves, writes)
    copied = copied_dtype(root)
    computes = copied is None or any(write.dtype != copied for write in writes)
    access = max(merge.kernel.access for merge in merges) if computes else Access.ELEMENTWISE
    grains = partition(root.shape, access, _unsplit_elements(merges) if computes else 1)
    arithmetic = _arithmetic(merges, writes, machine)
    packs = any(write.dtype.codec for write in writes)
    merge_shape = MergeShape(
        grains=grains,
        leaf_bits=tuple(load.dtype.bits for load in leaves),
        write_bits=tuple(_bits(write) for write in writes),
        passes=tuple(current.leaves for current in passes),
        computes=computes,
        worker=_worker_memory(computations, grains, arithmetic, packs)
        if computes
        else WorkerMemory(0, 0),
        on_device=_worker_memory(computations, grains, machine.device_arithmetic, packs)
        if computes and machine.devices
        else WorkerMemory(0, 0),
        memo_bytes=root.kernel.memo_bytes(grains) if computes and not arithmetic.uses_torch else 0,
        side_bytes=tuple(load.nbytes for load in side),
        table_bytes=tuple(load.nbytes for load in tables),
        table_reads=_table_reads(merges, tables, passes, grains),
    )
    operations = frozenset(
        use.operation for own in computations.values() for _, uses in own for use in uses
    )
    if packs or any(map(_decodes, merges)):
        operations |= {DECODING.operation}
    return WorkKind(
        passes=tuple(passes),
        merge_shape=merge_shape,
        arithmetic=arithmetic,
        operations=operations,
        cost=sum(cost(merge, arithmetic) for merge in merges),
        write_bytes=sum(write.nbytes for write in writes),
        uses_float64=any(merge.kernel.uses_float64 for merge in merges),
        has_device_code=not packs and _has_device_code(merges, writes, machine.device_arithmetic),
        checks_finite=not computes and copied is not None and _may_be_infinite(copied),
    )


def _passes(merges: Sequence[Merge], leaves: Sequence[Load], writes: Sequence[Write]) -> list[Pass]:
    """The passes over a merge tree: one for each statistic of its merges, then the output pass."""
    positions = {load: position for position, load in enumerate(leaves)}
    needed: dict[Merge, Positions] = {}
    for merge in merges:
        own: dict[int, None] = {}
        for node in merge.gather.inputs:
            found = (positions[node],) if isinstance(node, Load) else needed[node]
            own.update(dict.fromkeys(found))
        needed[merge] = tuple(own)
    passes = [
        Pass(number, statistic, needed[merge])
        for number, merge in enumerate(merges)
        for statistic in range(len(merge.kernel.passes))
    ]
    if writes:
        passes.append(Pass(len(merges) - 1, None, needed[merges[-1]]))
    return passes


def _table_reads(
    merges: Sequence[Merge], tables: Sequence[Load], passes: Sequence[Pass], grains: Grains
) -> tuple[int, ...]:
    """How many times a merge tree reads each of its tables, in all passes over ``grains``.

    A merge is computed in the output pass, and in each statistics pass of a merge that it is an
    input of.
    """
    found = dict.fromkeys(tables, 0)
    for merge in merges if tables else ():
        is_computed = [
            current.statistic is None
            or (merges[current.node] is not merge and merge in tree(merges[current.node]))
            for current in passes
        ]
        own = merge.gather.tables
        times = merge.kernel.table_reads(grains, sum(is_computed)) if own else ()
        for load, number in zip(own, times, strict=True):
            found[load] += number
    return tuple(found.values())


_CONVERSION = 0.4
"""Nanoseconds on one core for widening one input element in one pass."""
_STORING = 0.3
"""The same for rounding and checking one output element."""


def cost(merge: Merge, arithmetic: Arithmetic) -> float:
    """Nanoseconds on one core per element, for all passes."""
    kernel, inputs = merge.kernel, merge.gather.inputs
    passes = len(kernel.passes) + 1
    widening = _CONVERSION * passes if arithmetic.uses_torch else 0.0
    computing = sum(arithmetic.cost(use) for use in all_uses(kernel))
    encoded = [node for node in inputs if isinstance(node, Load) and node.dtype.codec]
    computing += len(encoded) * passes * arithmetic.cost(DECODING)
    return len(inputs) * (kernel.cost + widening) + computing + _STORING


def _decodes(merge: Merge) -> bool:
    """Whether any input of a merge is stored in blocks that a library decodes."""
    nodes = (*merge.gather.inputs, *merge.gather.side_loads)
    return any(isinstance(node, Load) and bool(node.dtype.codec) for node in nodes)


def _may_be_infinite(dtype: DType) -> bool:
    """Whether elements are stored one by one, in a type that has NaN or infinity."""
    return dtype.floating and dtype.block == 1 and not dtype.codec


def _bits(write: Write) -> int | Fraction:
    """Bits per element of the merge, sufficient also for a partial last block."""
    if write.part:
        return Fraction(8 * write.nbytes, max(math.prod(write.merge.shape), 1))
    return write.dtype.bits


def _unsplit_elements(merges: Sequence[Merge]) -> int:
    """Number of elements that must not be split between grains, for the kernels of all merges."""
    units = {
        merge.kernel.row_multiple * unit_of(merge.gather.inputs[0].shape, merge.kernel.access)
        for merge in merges
    }
    return math.lcm(*units)


_Computation = tuple[Kernel | Statistic[Any, Any], tuple[Use, ...]]
"""A kernel or one of its statistics, with the operations it uses."""


def _computations(kernel: Kernel) -> list[_Computation]:
    """The kernel, and its statistics in order."""
    found: list[Kernel | Statistic[Any, Any]] = [kernel, *kernel.passes]
    return [(each, each.uses) for each in found]


def _arithmetic(merges: Sequence[Merge], writes: Sequence[Write], machine: Machine) -> Arithmetic:
    """The arithmetic for a merge tree on the CPU: the machine's, if it supports all operations."""
    is_supported = all(
        merge.kernel.uses
        and all(
            machine.arithmetic.widens(node.dtype)
            for node in (*merge.gather.inputs, *merge.gather.side_loads)
            if isinstance(node, Load)
        )
        for merge in merges
    )
    if is_supported and all(machine.arithmetic.writes(write.dtype) for write in writes):
        return machine.arithmetic
    return machine.torch


def _has_device_code(
    merges: Sequence[Merge], writes: Sequence[Write], on_device: Arithmetic
) -> bool:
    """Whether a device has code for a merge tree."""
    loads = [node for m in merges for node in m.gather.inputs if isinstance(node, Load)]
    uses = [use for merge in merges for use in all_uses(merge.kernel)]
    return (
        (on_device.uses_torch or all(merge.kernel.uses for merge in merges))
        and all(map(on_device.can, uses))
        and all(on_device.widens(load.dtype) for load in loads)
        and all(on_device.writes(write.dtype) for write in writes)
    )


def _worker_memory(
    computations: Mapping[Merge, Sequence[_Computation]],
    grains: Grains,
    arithmetic: Arithmetic,
    packs: bool,
) -> WorkerMemory:
    """The memory of one worker for a merge tree; ``packs`` says whether it encodes the result in
    blocks."""
    arrays = accumulator = 0
    workspace = arithmetic.workspace_bytes(DECODING, grains) if packs else 0
    for merge, own in computations.items():
        arrays += len(merge.kernel.parts)
        arrays += max(each.scratch for each, _ in own) + 1
        arrays += sum(
            isinstance(node, Load) and not arithmetic.reads(node.dtype)
            for node in merge.gather.inputs
        )
        workspace += sum(table_buffer_bytes(load.shape, load.dtype) for load in merge.gather.tables)
        if _decodes(merge):
            workspace += arithmetic.workspace_bytes(DECODING, grains)
        workspace += max(
            each.workspace_bytes(grains)
            + sum(arithmetic.workspace_bytes(use, grains) for use in uses)
            for each, uses in own
        )
        for each, _ in own:
            if isinstance(each, Statistic):
                accumulator = max(accumulator, each.accumulator_bytes(grains))
    scratch = block_bytes(-(-grains.size * 4 // PAGE) * PAGE * arrays + workspace)
    return WorkerMemory(scratch, accumulator)
