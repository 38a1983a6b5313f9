"""What stays on a device between passes: uploaded once where it fits, else for every pass."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergeloom.engine.base.dtypes import BF16, F16, F32
from mergeloom.engine.base.units import MIB
from mergeloom.engine.graph.graph import Graph, tree
from mergeloom.engine.plan.device_memory import cache_bytes
from mergeloom.engine.plan.schedule import ScheduledMerge, Tile, schedule
from mergeloom.engine.run import executor
from mergeloom.engine.run.device_cache import DeviceCache
from mergeloom.engine.run.state import MergeRun, TileRun
from tests.engine.fake_device import accelerator
from tests.engine.kernels import FirstPositives, Normalised, RowMean
from tests.engine.run.test_device_worker import PLENTY, Made, Opener, least, machine, run
from tests.engine.support import GraphMaker, spec

CPU = spec(2, 300 * MIB, 0)
PASSES = 3


def normalised(directory: Path, count: int, shape: tuple[int, ...] = (5, 700_001)) -> Graph:
    """Merges of three passes over three inputs each; all of their bytes are needed in each."""
    maker = GraphMaker(directory)
    inputs = [maker.loads(dtype, [shape] * count, gap=3) for dtype in (BF16, F16, F32)]
    return maker.graph(
        {
            f"{number}": (maker.builder.merge(list(own), Normalised(), f"{number}"), BF16)
            for number, own in enumerate(zip(*inputs, strict=True))
        }
    )


def deep(directory: Path) -> Graph:
    """Passes upon passes: rows of an odd length, prefixes, inputs that only late passes need."""
    maker = GraphMaker(directory)
    outputs = {}
    for shape in ((700, 1501), (3, 1 << 19), (40, 3)):
        one, other, late = (maker.loads(d, [shape], gap=1)[0] for d in (BF16, F32, F16))
        make = maker.builder.merge
        rows = make([other], RowMean(), "rows")
        positives = make([other, one], FirstPositives(400_000), "positives")
        outputs[f"rows{shape}"] = make([rows, one], Normalised(), "a"), F32
        outputs[f"scanned{shape}"] = make([positives, one, late], Normalised(), "b"), F16
        outputs[f"late{shape}"] = make([make([one], Normalised(), "c"), late], RowMean(), "d"), BF16
    return maker.graph(outputs)


def loaded(graph: Graph) -> int:
    """Bytes of the inputs of all merges that are written."""
    return sum(
        sum(load.nbytes for load in scheduled.work.leaves)
        for scheduled in schedule(graph, None, CPU).merges
    )


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Made:
    graph = normalised(tmp_path_factory.mktemp("several"), 6)
    return Made(graph, run(graph, CPU).sink)


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> Made:
    graph = deep(tmp_path_factory.mktemp("deep"))
    return Made(graph, run(graph, CPU).sink)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("spare", [0, PLENTY])
def test_every_byte_is_uploaded_once_where_a_merge_fits(
    several: Made, threads: int, spare: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it fits alone, and must wait for the one before to leave."""
    # What is read out of order may be there before that one's tiles are, and does not wait.
    monkeypatch.setattr(executor, "MIN_READERS", 1)
    memory = spare or whole(several.graph)
    opener = Opener()
    ran = run(several.graph, machine(accelerator(memory), threads=threads), opener)
    assert ran.sink == several.sink
    assert not ran.warnings
    (device,) = opener.opened
    assert device.uploaded_bytes == loaded(several.graph)
    assert device.downloaded_bytes == sum(write.nbytes for write in several.graph.writes)
    assert device.peak <= memory


def whole(graph: Graph) -> int:
    """The smallest memory in which all inputs of any merge stay."""
    memory = least(graph)
    while any(
        scheduled.cached_grains < scheduled.work.grains.count
        for scheduled in schedule(graph, None, machine(accelerator(memory))).merges
    ):
        memory += MIB
    return memory


def test_where_nothing_fits_every_pass_uploads(several: Made) -> None:
    memory = least(several.graph)
    here = machine(accelerator(memory))
    assert all(p.cached_grains == 0 for p in schedule(several.graph, None, here).merges)
    opener = Opener()
    assert run(several.graph, here, opener).sink == several.sink
    assert opener.opened[0].uploaded_bytes == PASSES * loaded(several.graph)


def test_inputs_that_fit_in_part_are_cached_in_part(tmp_path: Path) -> None:
    graph = normalised(tmp_path, 1)
    expected = run(graph, CPU).sink
    low, high = least(graph), whole(graph)
    uploaded = []
    for memory in range(low, high + MIB, max(MIB, (high - low) // 4)):
        opener = Opener()
        ran = run(graph, machine(accelerator(memory)), opener)
        assert ran.sink == expected
        (scheduled,) = ran.schedule.merges
        merge_shape = scheduled.work.merge_shape
        again = merge_shape.grains.total - min(
            scheduled.cached_grains * merge_shape.grains.size, merge_shape.grains.total
        )
        each = sum(merge_shape.leaf_sizes)
        uploaded.append(opener.opened[0].uploaded_bytes)
        assert uploaded[-1] == loaded(graph) + (PASSES - 1) * again * each
    assert len(set(uploaded)) > 2


def test_inputs_of_late_passes_and_scans_are_uploaded_once(nested: Made) -> None:
    opener = Opener()
    ran = run(nested.graph, machine(accelerator(PLENTY)), opener)
    assert ran.sink == nested.sink
    # Sizes differ, so the store grows; what it holds then is not sent away for that.
    assert loaded(nested.graph) <= opener.opened[0].uploaded_bytes < 1.5 * loaded(nested.graph)


def test_a_merge_runs_without_a_cache_that_cannot_be_allocated(several: Made) -> None:
    """Two allocations succeed, bench and slots; those of the store never do."""
    third: list[int] = []

    def fails(number: int) -> bool:
        if number >= 2 and len(third) < 40:
            third.append(number)
            return True
        return False

    opener = Opener(fails=fails)
    ran = run(several.graph, machine(accelerator(PLENTY)), opener)
    assert ran.sink == several.sink
    assert "its cache of inputs was reduced" in ran.warnings[0]


def test_a_smaller_cache_is_tried_before_smaller_tiles(several: Made) -> None:
    """Somebody else has taken part of the memory: less stays, and nothing else changes."""
    usual = Opener()
    run(several.graph, machine(accelerator(PLENTY)), usual)
    opener = Opener(capacity=usual.opened[0].peak * 3 // 4)
    ran = run(several.graph, machine(accelerator(PLENTY)), opener)
    assert ran.sink == several.sink
    (warning,) = ran.warnings
    assert "its cache of inputs" in warning
    uploaded = opener.opened[0].uploaded_bytes
    assert loaded(several.graph) <= uploaded < PASSES * loaded(several.graph)


def test_every_allocation_of_the_resident_path_may_fail(tmp_path: Path) -> None:
    graph = normalised(tmp_path, 2, (3, 300_007))
    expected = run(graph, CPU).sink
    counted = Opener()
    run(graph, machine(accelerator(PLENTY)), counted)
    for first in range(counted.opened[0].allocations):
        for lasts in (1, 3):
            failing = range(first, first + lasts)
            ran = run(graph, machine(accelerator(PLENTY)), Opener(fails=failing.__contains__))
            assert ran.sink == expected, f"allocations {failing} failed"
            assert ran.warnings


@settings(max_examples=25)
@given(
    spare=st.integers(0, 40 * MIB),
    missing=st.floats(0, 0.6),
    devices=st.integers(1, 3),
    threads=st.integers(1, 3),
    tight=st.booleans(),
    often=st.sampled_from([0.0, 0.01, 0.2]),
    seed=st.integers(0, 99),
)
def test_no_memory_and_no_failure_changes_a_byte(
    nested: Made,
    spare: int,
    missing: float,
    devices: int,
    threads: int,
    tight: bool,
    often: float,
    seed: int,
) -> None:
    chance = random.Random(seed)
    memory = least(nested.graph) + spare
    here = machine(
        *(accelerator(memory, f"fake:{number}") for number in range(devices)), threads=threads
    )
    ram = schedule(nested.graph, None, here).minimum_bytes + 16 * MIB if tight else None
    opener = Opener(int(memory * (1 - missing)), lambda number: chance.random() < often)
    assert run(nested.graph, here, opener, ram).sink == nested.sink


# --- the store itself -----------------------------------------------------------------------


def merges(graph: Graph) -> tuple[ScheduledMerge, ...]:
    return schedule(graph, None, machine(accelerator(PLENTY))).merges


def ended(merge: MergeRun) -> TileRun:
    number = len(merge.scheduled.work.passes) - 1
    return TileRun(0, Tile(0, number, 0, 1, (), True), merge, {}, [], [])


def test_entries_never_overlap_and_their_room_is_reused(several: Made) -> None:
    runs = [MergeRun(scheduled) for scheduled in merges(several.graph)]
    merge_shape = runs[0].scheduled.work.merge_shape
    own = cache_bytes(merge_shape, merge_shape.grains.count)
    store = DeviceCache(torch.empty(own * 5 // 2, dtype=torch.uint8))
    entries = [store.admit(merge) for merge in runs[:4]]
    assert [entry.grains if entry else 0 for entry in entries] == [7, 7, 3, 0]
    taken = sorted((entry.at, entry.at + entry.nbytes) for entry in entries if entry)
    assert all(end <= start for (_, end), (start, _) in pairwise(taken))
    assert taken[-1][1] <= store.size
    assert store.admit(runs[0]) is entries[0]
    assert store.is_crowded(runs[3].scheduled, {runs[1]})
    assert not store.is_crowded(runs[3].scheduled, {runs[4]}), "who is not there takes no room"
    for _ in range(runs[1].scheduled.flow.tiles):
        assert runs[1] in store.entries
        store.tile_done(ended(runs[1]))
    assert runs[1] not in store.entries
    assert not store.is_crowded(runs[3].scheduled, {runs[0]})
    entry = store.admit(runs[3])
    assert entry is not None
    assert (entry.at, entry.grains) == (own, 7)


def test_each_grain_is_uploaded_once(several: Made) -> None:
    (merge, *_) = (MergeRun(scheduled) for scheduled in merges(several.graph))
    store = DeviceCache(torch.empty(PLENTY >> 4, dtype=torch.uint8))
    entry = store.admit(merge)
    assert entry is not None
    one, other, _ = merge.scheduled.work.leaves
    assert entry.add_grains(one, range(2, 4))
    assert not entry.add_grains(one, range(2, 4))
    assert entry.add_grains(one, range(3, 5))
    assert entry.add_grains(other, range(2, 4))


def test_the_graphs_of_these_tests_have_several_passes_and_levels(nested: Made) -> None:
    works = [scheduled.work for scheduled in merges(nested.graph)]
    assert any(len(list(tree(work.root))) > 1 and len(work.passes) > 1 for work in works)
    assert any(work.grains.size * 4 % 256 and work.grains.count > 1 for work in works)
    assert any(set(work.passes[0].leaves) < set(work.passes[-1].leaves) for work in works)
