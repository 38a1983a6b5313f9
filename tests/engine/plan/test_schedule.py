"""The scheduler is pure: everything here happens without a file and without torch."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergeloom.engine.base.dtypes import BF16, BY_CODE, F32, DType
from mergeloom.engine.base.errors import BudgetError
from mergeloom.engine.base.grains import Grains
from mergeloom.engine.base.units import MIB
from mergeloom.engine.graph.graph import Graph, GraphBuilder, Load, Merge, OutputFile, Write
from mergeloom.engine.graph.kernel import Copy, Kernel, Use
from mergeloom.engine.hardware.spec import Machine
from mergeloom.engine.memory.pages import block_bytes, span_bytes
from mergeloom.engine.plan.schedule import Schedule, ScheduledMerge, schedule
from mergeloom.engine.storage.source import Reader, ReadOptions
from mergeloom.methods.ops.arithmetic import COMPILED
from tests.engine.kernels import (
    FirstPositives,
    Moment,
    Normalised,
    Remembered,
    RowMean,
    Transposed,
    Weighted,
)
from tests.engine.support import Paper, spec


@dataclass(frozen=True)
class Disk:
    """A source that exists on paper only."""

    name: str
    size: int = 1 << 50

    @property
    def identity(self) -> str:
        return self.name

    def open(self, options: ReadOptions) -> Reader:
        raise NotImplementedError


def machine(threads: int = 2) -> Machine:
    return spec(threads, 50 * MIB, 250 * MIB)


def graph_of(merges: list[tuple[Merge, DType]]) -> Graph:
    builder = GraphBuilder()
    size = 4 + sum(dtype.nbytes(math.prod(merge.shape)) for merge, dtype in merges)
    file = OutputFile("out", b"head", size)
    writes, offset = [], 4
    for number, (merge, dtype) in enumerate(merges):
        write = Write(merge, file, offset, dtype, f"t{number}")
        writes.append(write)
        offset += write.nbytes
    return builder.build(writes, [file])


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Graphs of merges of every kind, whose inputs are used once or several times."""
    builder = GraphBuilder()
    shape = draw(st.sampled_from([(3,), (700, 900), (4096, 2048), (128, 1 << 19)]))
    disks = [Disk(f"disk{number}") for number in range(3)]
    loads = [
        builder.load(disk, place << 32, draw(st.sampled_from([BF16, F32])), shape, f"{disk.name}")
        for disk in disks
        for place in range(3)
    ]
    chosen = []
    for _ in range(draw(st.integers(1, 12))):
        inputs = draw(st.lists(st.sampled_from(loads), min_size=1, max_size=5))
        kernel: Kernel = draw(
            st.sampled_from([Normalised(), FirstPositives(5), Weighted((1.0,) * len(inputs))])
        )
        if draw(st.booleans()):
            kernel = Remembered((1.0,) * len(inputs))
        if len(shape) == 2 and draw(st.booleans()):
            kernel = draw(st.sampled_from([RowMean(), Transposed()]))
        if draw(st.integers(0, 3)) == 0:
            inputs, kernel = inputs[:1], Copy()
        merge = builder.merge(inputs, kernel, "m")
        if draw(st.integers(0, 3)) == 0 and not isinstance(kernel, Copy):
            merge = builder.merge([merge, draw(st.sampled_from(loads))], Normalised(), "nested")
        copied = isinstance(kernel, Copy) and isinstance(merge.kernel, Copy)
        dtype = inputs[0].dtype if copied else draw(st.sampled_from([BF16, F32]))
        chosen.append((merge, dtype))
    return graph_of(chosen)


def minimum(graph: Graph, threads: int = 2) -> int:
    return schedule(graph, None, machine(threads)).minimum_bytes


class Simulation:
    """Grants and releases of a run in which every merge ends before the next one begins."""

    def __init__(self, made: Schedule) -> None:
        self.made = made
        self.kept: dict[Load, int] = {}
        self.most = 0

    def run(self) -> Simulation:
        for scheduled in self.made.merges:
            self._place(scheduled)
        return self

    def _place(self, scheduled: ScheduledMerge) -> None:
        work, flow = scheduled.work, scheduled.flow
        before = {work.leaves[i] for i in flow.kept_before}
        assert before <= self.kept.keys(), "a load is used that was not kept"
        others = sum(size for load, size in self.kept.items() if load not in before)
        assert others == scheduled.kept_for_others
        kept = others + work.merge_shape.whole_bytes(flow.kept_fresh + flow.kept_before)
        assert kept == flow.kept_bytes + others
        staying = 0
        for number in range(len(work.passes)):
            outputs = (
                work.merge_shape.output_bytes(flow.tile) if number == len(work.passes) - 1 else 0
            )
            for first in range(0, work.grains.count, flow.tile):
                grants = [i for i in flow.reads(number, first) if i not in flow.kept_fresh]
                stay = tuple(i for i in grants if flow.is_resident(i, first))
                move = tuple(i for i in grants if i not in stay)
                if flow.memos and number == 0:
                    staying += work.merge_shape.tile_memo_bytes(flow.tile)
                staying += work.merge_shape.input_bytes(flow.tile, stay)
                moving = work.merge_shape.input_bytes(flow.tile, move) + outputs
                assert moving <= flow.moving_bytes
                self.most = max(self.most, kept + staying + moving)
        assert staying == (flow.resident_bytes if len(work.passes) > 1 else 0)
        for load in before:
            del self.kept[load]
        for position in scheduled.kept_after:
            load = work.leaves[position]
            self.kept[load] = block_bytes(span_bytes(load.nbytes))


@given(graphs(), st.integers(0, 4096), st.integers(1, 8))
def test_every_schedule_fits_its_budget_and_cannot_starve(
    graph: Graph, more: int, threads: int
) -> None:
    budget = minimum(graph, threads) + more * MIB
    made = schedule(graph, budget, machine(threads))
    assert made.peak_bytes <= budget
    assert 1 <= made.workers <= threads
    simulation = Simulation(made).run()
    assert simulation.most <= made.ledger_bytes
    assert not simulation.kept


@given(graphs(), st.integers(0, 2048))
def test_the_steps_read_and_write_what_the_schedule_says(graph: Graph, more: int) -> None:
    made = schedule(graph, minimum(graph) + more * MIB, machine())
    read = written = 0
    grains: Counter[tuple[int, int]] = Counter()
    for tile in made.steps():
        work = made.merges[tile.merge].work
        first = tile.first * work.grains.size
        elements = min(tile.grains * work.grains.size, work.grains.total - first)
        assert elements > 0
        grains[tile.merge, tile.number] += tile.grains
        read += sum(work.leaves[i].dtype.nbytes(elements) for i in tile.reads)
        if tile.writes:
            written += sum(elements * write.dtype.size for write in work.writes)
    for index, scheduled in enumerate(made.merges):
        for number in range(len(scheduled.work.passes)):
            assert grains[index, number] == scheduled.work.grains.count
    assert read == made.read_bytes
    assert written + made.header_bytes == made.write_bytes
    assert made.repeated_bytes >= 0


@given(graphs())
def test_without_a_limit_everything_is_read_once(graph: Graph) -> None:
    made = schedule(graph, None, machine())
    assert made.read_bytes == sum(load.nbytes for load in graph.loads)
    assert made.repeated_bytes == 0


@given(graphs(), st.integers(1, 64))
def test_an_infeasible_budget_names_one_that_works(graph: Graph, less: int) -> None:
    smallest = minimum(graph)
    named = smallest // MIB + 16  # a process that measures itself 16 MiB larger still runs
    with pytest.raises(BudgetError, match=f"--ram {named}MiB"):
        schedule(graph, smallest - less, machine())
    assert schedule(graph, smallest, machine()).peak_bytes <= smallest


def test_more_memory_never_reads_more() -> None:
    builder = GraphBuilder()
    loads = [builder.load(Disk(f"d{i}"), 0, BF16, (160, 1 << 19), "t") for i in range(4)]
    merges = [builder.merge(loads, Normalised(), "m")]
    merges += [builder.merge(loads[:2], Weighted((1.0, float(i))), "m") for i in range(3)]
    graph = graph_of([(merge, BF16) for merge in merges])
    reads = [
        schedule(graph, minimum(graph) + more * 32 * MIB, machine()).read_bytes
        for more in range(40)
    ]
    assert reads == sorted(reads, reverse=True)
    assert reads[-1] == sum(load.nbytes for load in graph.loads)
    assert len(set(reads)) > 6, "it is not all or nothing that stays in memory"


def test_a_load_that_is_needed_soonest_is_the_one_that_stays() -> None:
    """Belady's rule: with room for one of two tensors, the one whose next use is nearer wins."""
    builder = GraphBuilder()
    near, far, other = (
        builder.load(Disk(name), 0, BF16, (96, 1 << 19), name) for name in ("near", "far", "other")
    )
    merges = [
        builder.merge([near, far], Weighted((1.0, 1.0)), "first"),
        builder.merge([near], Weighted((2.0,)), "second"),
        builder.merge([other], Weighted((2.0,)), "third"),
        builder.merge([far], Weighted((3.0,)), "fourth"),
    ]
    graph = graph_of([(merge, BF16) for merge in merges])
    made = schedule(graph, minimum(graph) + 220 * MIB, machine())
    kept = [[p.work.leaves[i].name for i in p.kept_after] for p in made.merges]
    assert kept == [["near"], [], [], []]
    assert made.repeated_bytes == far.nbytes


def test_a_repeated_layer_is_read_and_computed_once() -> None:
    builder = GraphBuilder()
    load = builder.load(Disk("d"), 0, BF16, (100, 100), "t")
    once = builder.merge([load], Weighted((2.0,)), "a")
    twice = builder.merge([load], Weighted((2.0,)), "b")
    assert once is twice
    made = schedule(graph_of([(once, BF16), (twice, BF16)]), None, machine())
    assert len(made.merges) == 1
    assert len(made.merges[0].work.writes) == 2


def test_copies_need_no_arithmetic_and_no_memory_for_it() -> None:
    builder = GraphBuilder()
    load = builder.load(Disk("d"), 0, BF16, (100, 100), "t")
    whole = builder.load(Disk("d"), 0, BY_CODE["I16"], (100, 100), "i")
    numbers, copied = (
        schedule(graph_of([(builder.merge([each], Copy(), "c"), each.dtype)]), None, machine())
        for each in (load, whole)
    )
    cast = schedule(graph_of([(builder.merge([load], Copy(), "c"), F32)]), None, machine())
    assert not copied.computes
    assert cast.computes
    assert not copied.operations
    assert copied.overhead_bytes + COMPILED.library_bytes(frozenset()) <= cast.overhead_bytes + MIB
    assert not numbers.operations  # NaN among them is looked for, with numpy
    assert copied.overhead_bytes + 20 * MIB == numbers.overhead_bytes


class Allocating(Moment):
    """A statistic that allocates while it looks at a grain."""

    def workspace_bytes(self, grains: Grains) -> int:
        return 32 * MIB


class Looking(Normalised):
    passes = (Moment(), Allocating())


def test_temporary_memory_of_a_statistic_counts_for_each_worker() -> None:
    def made(kernel: Kernel) -> Schedule:
        builder = GraphBuilder()
        load = builder.load(Disk("d"), 0, BF16, (4096, 4096), "t")
        merge = builder.merge([load], kernel, "m")
        return schedule(graph_of([(merge, BF16)]), 1 << 40, machine(threads=3))

    assert made(Looking()).peak_bytes - made(Normalised()).peak_bytes == 3 * 32 * MIB


def test_scheduling_imports_no_torch() -> None:
    modules = "mergeloom.engine.plan.schedule, mergeloom.engine.job"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Worded(Weighted):
    """A kernel that names its operations."""

    uses = (Use("one"), Use("other"))


def one(kernel: Kernel) -> Graph:
    builder = GraphBuilder()
    loads = [builder.load(Disk(name), 0, BF16, (4096, 4096), name) for name in "ab"]
    return graph_of([(builder.merge(loads, kernel, "m"), BF16)])


def test_a_kernel_that_lists_its_operations_needs_no_torch() -> None:
    paper = Paper(size=100 * MIB)
    there = replace(machine(), arithmetic=paper)
    worded, plain = (
        schedule(one(kernel((1.0, 2.0))), None, there) for kernel in (Worded, Weighted)
    )
    assert worded.operations == {paper: {"one", "other"}}
    assert worded.compiled
    assert not plain.compiled
    assert list(plain.operations) == [there.torch]
    larger = schedule(one(Worded((1.0, 2.0))), None, replace(there, arithmetic=Paper()))
    assert worded.overhead_bytes == larger.overhead_bytes + 100 * MIB
    unlimited = replace(there, runtime_bytes=9 << 30)
    assert schedule(one(Worded((1.0, 2.0))), None, unlimited).peak_bytes == worded.peak_bytes


def test_missing_machine_code_is_built_if_the_budget_has_room_for_a_compiler() -> None:
    paper = Paper(lacking=frozenset({"other", "third"}))
    there = replace(machine(), arithmetic=paper, compiler_bytes=400 * MIB)
    graph = one(Worded((1.0, 2.0)))
    assert schedule(graph, 450 * MIB, there).missing == {"other"}
    with pytest.raises(BudgetError, match="run 'mergeloom prepare' once"):
        schedule(graph, 449 * MIB, there)
    assert not schedule(graph, 449 * MIB, replace(there, arithmetic=Paper())).missing
