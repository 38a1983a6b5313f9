"""Merges on a device: the CPU's bytes for every budget, and nothing lost where memory is short."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from mergeloom.engine import job as jobs
from mergeloom.engine.base.dtypes import BF16, F32
from mergeloom.engine.base.errors import RunError
from mergeloom.engine.base.units import MIB
from mergeloom.engine.graph.graph import Graph, OutputFile, Spill, Write
from mergeloom.engine.hardware.accelerators import Accelerator
from mergeloom.engine.hardware.spec import Machine
from mergeloom.engine.job import Options
from mergeloom.engine.memory.ledger import Block
from mergeloom.engine.plan.assignment import Reason
from mergeloom.engine.plan.schedule import Schedule, schedule
from mergeloom.engine.run.executor import Executor
from mergeloom.engine.run.loading import source_readers
from mergeloom.engine.run.progress import Progress
from mergeloom.engine.run.spilling import spill_files
from mergeloom.engine.storage.source import IOMode, Reader, ReadOptions, Source
from tests.engine.fake_device import FakeDevice, accelerator
from tests.engine.kernels import FirstPositives, Normalised, Weighted
from tests.engine.support import GraphMaker, job, spec
from tests.engine.test_job import every_kind

SHAPES = [(1000, 777), (3,), (), (2, 1 << 20), (0, 4), (513, 1025)]
PLENTY = 1 << 30


def machine(*devices: Accelerator, threads: int = 2) -> Machine:
    """A machine on which devices get all that they can do."""
    return spec(threads, 300 * MIB, 0, devices=devices, devices_forced=True)


@dataclass
class Opener:
    """Opens fake devices, and keeps them."""

    capacity: int | None = None
    fails: Callable[[int], bool] = lambda number: False
    opened: list[FakeDevice] = field(default_factory=list)

    def __call__(self, accelerator: Accelerator) -> FakeDevice:
        self.opened.append(FakeDevice(accelerator, self.capacity, self.fails))
        return self.opened[-1]


@dataclass
class Memory:
    """A sink that keeps everything: a file, and digests by tensor."""

    content: bytearray
    digests: dict[str, str] = field(default_factory=dict)

    def writer(self, file: OutputFile) -> Memory:
        return self

    def write(self, start: int, stop: int, block: Block, at: int) -> None:
        self.content[start:stop] = block.memory[at : at + stop - start]

    def completed(
        self, write: Write, digest: str, block_bytes: int, error: float | None = None
    ) -> None:
        assert write.name not in self.digests
        self.digests[write.name] = digest


@dataclass
class Ran:
    """What a run wrote, and what there is to say of it."""

    sink: Memory
    warnings: list[str]
    schedule: Schedule


def run(graph: Graph, here: Machine, opener: Opener | None = None, ram: int | None = None) -> Ran:
    """A run into memory."""
    made = schedule(graph, ram, here)
    (file,) = graph.files
    sink = Memory(bytearray(file.size))
    with (
        tempfile.TemporaryDirectory() as folder,
        spill_files(Path(folder), graph.spills, IOMode.BUFFERED) as spilled,
    ):

        def reader_of(source: Source) -> Reader:
            if isinstance(source, Spill):
                return spilled.reader(source)
            return source.open(ReadOptions(IOMode.BUFFERED))

        readers = source_readers(made, reader_of)
        executor = Executor(made, readers, spilled.redirecting(sink), opener)
        executor.run(every=0.005)
    for device in opener.opened if isinstance(opener, Opener) else ():
        assert device.closed
        assert not device.pinned, "a block went back to the system with its pages pinned"
        assert device.used == 0
    return Ran(sink, executor.warnings, made)


@dataclass
class Made:
    """A graph, and what the CPU makes of it."""

    graph: Graph
    sink: Memory


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    graph = every_kind(GraphMaker(tmp_path_factory.mktemp("in")), SHAPES)
    return Made(graph, run(graph, spec(2, 300 * MIB, 0)).sink)


def least(graph: Graph) -> int:
    """The smallest memory with which a device gets every merge that it can ever get."""
    low, high = 0, PLENTY
    while high - low > MIB // 4:
        middle = (low + high) // 2
        merges = schedule(graph, None, machine(accelerator(middle))).merges
        tight = any(scheduled.assignment.reason is Reason.TOO_LARGE for scheduled in merges)
        low, high = (middle, high) if tight else (low, middle)
    return high


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("room", ["least", "little", "plenty"])
@pytest.mark.parametrize("tight", [True, False])
def test_no_budget_changes_a_byte(made: Made, threads: int, room: str, tight: bool) -> None:
    memory = {"least": 0, "little": 20 * MIB, "plenty": PLENTY}[room] + least(made.graph)
    here = machine(accelerator(memory), threads=threads)
    ram = schedule(made.graph, None, here).minimum_bytes + 64 * MIB if tight else None
    opener = Opener()
    ran = run(made.graph, here, opener, ram)
    assert ran.sink == made.sink
    assert not ran.warnings
    placed = {scheduled.assignment.reason for scheduled in ran.schedule.merges}
    assert placed == {Reason.ASKED_FOR, Reason.COPIED}
    (device,) = opener.opened
    assert 0 < device.peak <= memory
    assert device.uploaded_bytes > sum(load.nbytes for load in made.graph.loads)


def test_a_tile_passes_through_few_slots_in_many_chunks(tmp_path: Path) -> None:
    """Each chunk finds its slot as another has left it, with all that was there on its way."""
    maker = GraphMaker(tmp_path)
    one, other = (maker.loads(dtype, [(5 << 20,)])[0] for dtype in (BF16, F32))
    make = maker.builder.merge
    outputs = {
        "linear": (make([one], Weighted((0.5,)), "linear"), BF16),
        "normalised": (make([other, one], Normalised(), "normalised"), BF16),
        "positives": (make([other], FirstPositives(2_000_000), "positives"), F32),
    }
    graph = maker.graph(outputs)
    memory = least(graph)
    ran = run(graph, machine(accelerator(memory)), Opener())
    chunks = [(scheduled.chunk, scheduled.flow.tile) for scheduled in ran.schedule.merges]
    assert any(tile >= 4 * chunk for chunk, tile in chunks)
    assert ran.sink == run(graph, spec(2, 300 * MIB, 0)).sink


def test_several_devices_share_the_merges(made: Made) -> None:
    opener = Opener()
    here = machine(*(accelerator(PLENTY, f"fake:{number}") for number in range(3)))
    ran = run(made.graph, here, opener)
    assert ran.sink == made.sink
    assert ran.schedule.used_devices == [0, 1, 2]
    assert len(opener.opened) == 3
    assert all(device.uploaded_bytes for device in opener.opened)


def test_merges_that_do_not_fit_go_to_the_cpu(made: Made) -> None:
    ran = run(made.graph, machine(accelerator(least(made.graph) - 8 * MIB)), Opener())
    assert ran.sink == made.sink
    reasons = {scheduled.assignment.reason for scheduled in ran.schedule.merges}
    assert reasons == {Reason.ASKED_FOR, Reason.COPIED, Reason.TOO_LARGE}


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_a_device_with_less_memory_than_planned_gives_the_same_bytes(
    made: Made, share: float
) -> None:
    """Tiles get smaller, and then the CPU does it."""
    usual = Opener()
    run(made.graph, machine(accelerator(PLENTY)), usual)
    opener = Opener(capacity=int(usual.opened[0].peak * share))
    ran = run(made.graph, machine(accelerator(PLENTY)), opener)
    assert ran.sink == made.sink
    assert ran.warnings
    assert all("'fake:0'" in warning for warning in ran.warnings)
    if share == 0.0:
        assert "could not run" in ran.warnings[-1]


def test_any_one_allocation_may_fail_without_changing_a_byte(tmp_path: Path) -> None:
    """Every single one, one run each; or all of the few that follow."""
    maker = GraphMaker(tmp_path)
    shape = (2, 1 << 19)
    one, other = (maker.loads(dtype, [shape])[0] for dtype in (BF16, F32))
    make = maker.builder.merge
    positives = make([other], FirstPositives(400_000), "positives")
    nested = make([positives, one], Normalised(), "nested")
    graph = maker.graph({"nested": (nested, F32)})
    expected = run(graph, spec(2, 300 * MIB, 0)).sink
    counted = Opener()
    run(graph, machine(accelerator(PLENTY)), counted)
    allocations = counted.opened[0].allocations
    assert allocations > 20
    for first in range(allocations):
        lasts = 1 if first % 2 else 8
        failing = range(first, first + lasts)
        ran = run(graph, machine(accelerator(PLENTY)), Opener(fails=failing.__contains__))
        assert ran.sink == expected, f"allocations {failing} failed"
        assert ran.warnings


@pytest.mark.parametrize("seed", range(4))
def test_random_failures_of_allocations_change_no_byte(made: Made, seed: int) -> None:
    chance = random.Random(seed)
    often = chance.choice([0.005, 0.05, 0.3])
    opener = Opener(fails=lambda number: chance.random() < often)
    memory = least(made.graph) + chance.randrange(64) * MIB
    ran = run(made.graph, machine(accelerator(memory), threads=1 + seed % 3), opener)
    assert ran.sink == made.sink


def test_a_device_that_cannot_be_opened_leaves_everything_to_the_cpu(made: Made) -> None:
    class Broken(Opener):
        def __call__(self, accelerator: Accelerator) -> FakeDevice:
            raise RuntimeError("the driver is too old\nand more")

    ran = run(made.graph, machine(accelerator(PLENTY)), Broken())
    assert ran.sink == made.sink
    assert ran.warnings == ["'fake:0' cannot be used: the driver is too old"]


@pytest.mark.parametrize(
    "error",
    [
        NotImplementedError("aten::cumsum is not there"),
        TypeError("Cannot convert a MPS Tensor to float64 dtype"),
        RuntimeError("Expected all tensors to be on the same device, but found two"),
    ],
)
def test_merges_that_a_device_cannot_run_go_to_the_cpu(made: Made, error: Exception) -> None:
    def lacks(number: int) -> bool:
        if number == 4:
            raise type(error)(*error.args)  # a new one: what it passed through is held by it
        return False

    ran = run(made.graph, machine(accelerator(PLENTY)), Opener(fails=lacks))
    assert ran.sink == made.sink
    assert len(ran.warnings) == 1
    assert "could not run 1 merge, which the CPU ran" in ran.warnings[0]


def test_a_device_that_breaks_ends_the_run_and_the_cpu_continues(
    made: Made, tmp_path: Path
) -> None:
    def breaks(number: int) -> bool:
        if number > 40:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\n...")
        return False

    here = machine(accelerator(PLENTY))
    output = tmp_path / "out"
    with pytest.raises(RunError, match=r"'fake:0' failed: CUDA error.*--device cpu"):
        jobs.run(job(made.graph), output, Options(machine=here, opener=Opener(fails=breaks)))
    jobs.run(job(made.graph), output, Options(machine=replace(here, devices=())))
    assert (output / "out.bin").read_bytes()[4:] == made.sink.content[4:]


def test_an_interrupted_run_continues_on_another_device(made: Made, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def poll(progress: Progress) -> None:
        if progress.write_bytes:
            raise Stop

    opener = Opener()
    here = machine(accelerator(PLENTY))
    output = tmp_path / "out"
    with pytest.raises(Stop):
        jobs.run(job(made.graph), output, Options(machine=here, opener=opener), poll=poll)
    assert opener.opened[0].closed
    outcome = jobs.run(job(made.graph), output, Options(machine=here, opener=Opener()))
    assert not outcome.warnings
    assert (output / "out.bin").read_bytes()[4:] == made.sink.content[4:]
