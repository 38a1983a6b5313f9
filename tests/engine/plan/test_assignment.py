"""Where merges are placed: on a device where the CPU is what the run waits for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from mergeloom.engine.base.dtypes import BF16
from mergeloom.engine.base.grains import Grains
from mergeloom.engine.base.units import MIB
from mergeloom.engine.graph.graph import Graph, GraphBuilder
from mergeloom.engine.graph.kernel import Copy, Kernel, Use
from mergeloom.engine.hardware.accelerators import Accelerator
from mergeloom.engine.plan.assignment import Reason, devices_reason
from mergeloom.engine.plan.device_memory import (
    SLOTS,
    arena_bytes,
    cache_bytes,
    grains_at_once,
    outside_bytes,
    slot_bytes,
    stride,
)
from mergeloom.engine.plan.estimate import SLOWDOWN
from mergeloom.engine.plan.schedule import Schedule, schedule
from tests.engine.kernels import Normalised, Transposed
from tests.engine.plan.test_schedule import Disk, graph_of
from tests.engine.support import Paper, spec

GPU = Accelerator("fake:0", "card", 8 << 30, start_seconds=0.0, host_bytes=500 * MIB)


@dataclass(frozen=True)
class Costly(Kernel):
    """Takes ``cost`` nanoseconds for an element of an input, whatever it does."""

    cost: float = 1.0  # the protocol's is a property
    uses_float64: bool = False
    number: int = 0


def layers(*kernels: Kernel, shape: tuple[int, ...] = (64, 1 << 19)) -> Graph:
    builder = GraphBuilder()
    disk = Disk("d")
    loads = [builder.load(disk, i << 32, BF16, shape, f"{i}") for i in range(3)]
    inputs = [loads[:1] if isinstance(kernel, Copy) else loads for kernel in kernels]
    merges = [builder.merge(i, k, "m") for i, k in zip(inputs, kernels, strict=True)]
    return graph_of([(merge, BF16) for merge in merges])


def many(cost: float, count: int = 40) -> Graph:
    return layers(*(Costly(cost, number=number) for number in range(count)))


def placed(graph: Graph, *devices: Accelerator, ram: int | None = None, **changes: Any) -> Schedule:
    here = spec(2, 50 * MIB, 250 * MIB, devices=devices)
    return schedule(graph, ram, replace(here, **changes))


def reasons(made: Schedule) -> list[Reason]:
    return [scheduled.assignment.reason for scheduled in made.merges]


def test_cheap_merges_stay_on_the_cpu_and_costly_ones_move() -> None:
    assert set(reasons(placed(many(0.05), GPU, threads=32))) == {Reason.KEEPS_UP}
    assert set(reasons(placed(many(20.0), GPU))) == {Reason.FALLS_BEHIND}


CPU, DEVICE = Reason.KEEPS_UP, Reason.FALLS_BEHIND
MEASURED = {
    ("linear", 16): (7.41, 0.62, CPU),
    ("slerp", 16): (7.41, 1.11, CPU),
    ("dare_ties", 16): (12.36, 3.71, CPU),
    ("ties", 16): (12.36, 5.93, CPU),
    ("arcee_fusion", 16): (7.41, 4.94, CPU),
    ("della", 16): (12.36, 22.99, DEVICE),
    ("linear", 4): (7.41, 0.62, CPU),
    ("ties", 4): (12.36, 5.93, DEVICE),
}
"""The merges in docs/gpu.md by method and cores: GB read and written, the cost of the kernels in
seconds of a core, and where they are to be placed."""


@pytest.mark.parametrize("case", MEASURED)
def test_measured_merges_are_placed_where_they_were_faster(case: tuple[str, int]) -> None:
    gigabytes, cost, best = MEASURED[case]
    assert devices_reason(int(gigabytes * 1e9), cost * SLOWDOWN / case[1], 0.0, 0.5) is best


def test_devices_are_not_started_for_the_smaller_part_of_the_work() -> None:
    assert devices_reason(3 * 10**9, 10.0, 0.0, 0.5) is Reason.FALLS_BEHIND
    assert devices_reason(3 * 10**9, 10.0, 9.8, 0.5) is Reason.NOT_WORTH_STARTING


def test_devices_share_all_merges_evenly() -> None:
    made = placed(many(200.0, 60), GPU, replace(GPU, name="fake:1"))
    assert [assignment.device for assignment in made.assignments] == [0, 1]
    assert set(made.assignments.values()) == {30}


def test_a_device_must_save_more_time_than_it_takes_to_start() -> None:
    graph = many(20.0)
    assert placed(graph, replace(GPU, start_seconds=5.0)).used_devices == [0]
    made = placed(graph, replace(GPU, start_seconds=5000.0))
    assert made.used_devices == []
    assert Reason.NOT_WORTH_STARTING in reasons(made)
    assert placed(graph, replace(GPU, start_seconds=5000.0), devices_forced=True).used_devices == [
        0
    ]


def test_a_forced_device_gets_every_merge_that_it_can_run() -> None:
    graph = layers(Copy(), Costly(0.01), Normalised(), shape=(8, 1 << 19))
    assert reasons(placed(graph, GPU, devices_forced=True)) == [
        Reason.COPIED,
        Reason.ASKED_FOR,
        Reason.ASKED_FOR,
    ]
    single = replace(GPU, has_float64=False)
    found = reasons(placed(graph, single, devices_forced=True))
    assert found == [Reason.COPIED, Reason.ASKED_FOR, Reason.NEEDS_FLOAT64]
    assert reasons(placed(graph)) == [Reason.COPIED, Reason.NO_DEVICE, Reason.NO_DEVICE]


def test_a_merge_that_needs_more_memory_than_there_is_stays() -> None:
    graph = layers(Transposed(), Costly(1.0), shape=(100, 1 << 19))
    made = placed(graph, replace(GPU, memory_bytes=300 * MIB), devices_forced=True)
    assert reasons(made) == [Reason.TOO_LARGE, Reason.ASKED_FOR]


def test_a_budget_without_room_for_the_libraries_keeps_devices_out() -> None:
    graph = many(20.0)
    usual = placed(graph)
    low = placed(graph, GPU, ram=usual.minimum_bytes)
    assert low.minimum_bytes == usual.minimum_bytes
    assert low.used_devices == []
    assert Reason.NO_RAM in reasons(low)
    enough = placed(graph, GPU, ram=usual.minimum_bytes + GPU.host_bytes + 64 * MIB)
    assert enough.used_devices == [0]
    assert enough.overhead_bytes >= low.overhead_bytes + GPU.host_bytes
    assert enough.peak_bytes <= usual.minimum_bytes + GPU.host_bytes + 64 * MIB


@pytest.mark.parametrize("mib", [64, 80, 100, 150, 300, 1000])
def test_chunks_fit_into_the_memory(mib: int) -> None:
    (scheduled,) = placed(layers(Normalised())).merges
    merge_shape = scheduled.work.merge_shape
    grains = grains_at_once(merge_shape, mib * MIB, scheduled.flow.tile)
    assert 0 <= grains <= scheduled.flow.tile
    if grains:
        needed = arena_bytes(merge_shape) + SLOTS * slot_bytes(merge_shape, grains)
        assert needed + merge_shape.on_device.scratch_bytes < mib * MIB
    else:
        assert mib < 150


@pytest.mark.parametrize("mib", [60, 96, 110, 130, 200, 1000])
def test_cached_inputs_fit_beside_slots_and_scratch(mib: int) -> None:
    (scheduled,) = placed(
        layers(Normalised(), shape=(20, 1 << 19)),
        replace(GPU, memory_bytes=mib * MIB),
        devices_forced=True,
    ).merges
    merge_shape, chunk, cached = (
        scheduled.work.merge_shape,
        scheduled.chunk,
        scheduled.cached_grains,
    )
    assert (chunk > 0) == (mib >= 96)
    if not chunk:
        return
    sizes = (
        outside_bytes(merge_shape),
        arena_bytes(merge_shape),
        SLOTS * slot_bytes(merge_shape, chunk),
    )
    room = mib * MIB - sum(sizes)
    assert cache_bytes(merge_shape, cached) <= room
    assert cached == merge_shape.grains.count or cache_bytes(merge_shape, cached + 1) > room
    assert (cached == merge_shape.grains.count) == (mib >= 200)


def test_a_merge_with_one_pass_caches_nothing() -> None:
    (scheduled,) = placed(layers(Costly(1.0)), GPU, devices_forced=True).merges
    assert scheduled.chunk > 0
    assert scheduled.cached_grains == 0


def test_grains_are_aligned_whatever_their_length() -> None:
    for total, size in ((1 << 30, 1 << 19), (999 * 777, 674 * 777), (5, 5)):
        for element in (1, 2, 4):
            step = stride(Grains(total, size, 1), element)
            assert step % 256 == 0
            assert size * element <= step < size * element + 256


@dataclass(frozen=True)
class Worded(Costly):
    """The same, in operations that machine code computes quickly."""

    uses = (Use("combine"),)


def test_machine_code_keeps_merges_on_the_cpu() -> None:
    graph = layers(*(Worded(0.0, number=number) for number in range(40)))
    slow, fast = Paper(60.0), Paper(0.05)
    assert placed(graph, GPU, torch=slow, arithmetic=slow).used_devices == [0]
    made = placed(graph, GPU, torch=slow, arithmetic=fast)
    assert made.compiled
    assert set(reasons(made)) == {Reason.KEEPS_UP}


def test_the_fingerprint_knows_no_device() -> None:
    graph = many(20.0, 3)
    assert placed(graph, GPU).graph.fingerprint() == placed(graph).graph.fingerprint()
