"""Whole jobs of the engine: the same bytes whatever the budget, and nothing lost on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergeloom.engine import job as jobs
from mergeloom.engine.base.dtypes import BF16, F16, F32, DType
from mergeloom.engine.base.errors import LoomError, OutputError, RunError
from mergeloom.engine.base.units import MIB
from mergeloom.engine.graph.graph import Graph, Load, Merge
from mergeloom.engine.graph.kernel import Copy
from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.engine.hardware import process as machine
from mergeloom.engine.hardware.spec import Machine
from mergeloom.engine.job import Options
from mergeloom.engine.output.manifest import read_manifest
from mergeloom.engine.plan.bundles import bundle_merges
from mergeloom.engine.plan.schedule import schedule
from mergeloom.engine.storage.source import IOMode
from tests.engine.kernels import (
    FirstPositives,
    Normalised,
    Remembered,
    RowMean,
    Transposed,
    Weighted,
)
from tests.engine.support import GraphMaker, Paper, job, sha256, source_name, spec, tensor_of

SHAPES = [(1000, 777), (3,), (), (2, 1 << 20), (0, 4), (513, 1025)]


def every_kind(maker: GraphMaker, shapes: list[tuple[int, ...]]) -> Graph:
    """Merges of every kind of kernel over inputs of several dtypes at odd offsets."""
    make = maker.builder.merge
    inputs = [maker.loads(dtype, shapes, gap) for dtype, gap in ((BF16, 24), (F16, 3), (F32, 8))]
    outputs: dict[str, tuple[Merge, DType]] = {}
    for number, shape in enumerate(shapes):
        own = [loads[number] for loads in inputs]
        linear = make(own, Weighted((0.5, 0.25, 0.25)), f"linear{number}")
        positives = make([own[2]], FirstPositives(1000), "positives")
        normalised = make(own, Normalised(), "normalised")
        outputs[f"copy{number}"] = make([own[0]], Copy(), "copy"), BF16
        outputs[f"cast{number}"] = make([own[1]], Copy(), "cast"), F32
        outputs[f"linear{number}"] = linear, BF16
        outputs[f"normalised{number}"] = normalised, F32
        outputs[f"positives{number}"] = positives, F16
        outputs[f"nested{number}"] = make([positives, normalised], Normalised(), "nested"), F32
        if shape:
            outputs[f"rows{number}"] = make([linear], RowMean(), "rows"), F32
        if len(shape) == 2:
            outputs.update(spilled(maker, outputs[f"nested{number}"][0], number))
            outputs[f"whole{number}"] = make([own[0]], Transposed(), "whole"), F32
    return maker.graph(outputs)


def spilled(
    maker: GraphMaker, value: Merge, number: int
) -> Iterator[tuple[str, tuple[Merge, DType]]]:
    """A computed value in other rows, and what is computed of that in other rows again."""
    builder, rows = maker.builder, backwards(value.shape[0])

    def rearranged(merge: Merge, numbers: list[int]) -> Load:
        load = builder.spill(merge)
        taken = StoredTensor(load.bytes, load.dtype, load.shape).rows(numbers)
        return builder.load_bytes(taken.bytes, taken.dtype, taken.shape, load.name)

    once = builder.merge([rearranged(value, rows)], Normalised(), "other rows")
    twice = builder.merge([rearranged(once, [*rows, -1])], Copy(), "again other rows")
    yield f"spilled{number}", (twice, BF16)
    yield f"once{number}", (once, F32)


def backwards(rows: int) -> list[int]:
    """Other rows than all in order: the last first, one of three missing."""
    return [-1 if row % 3 == 1 else row for row in reversed(range(rows))]


def this_machine(threads: int = 2) -> Machine:
    """A machine whose process always occupies the same, so that budgets can be tight."""
    return spec(threads, 300 * MIB, 0)


def smallest(graph: Graph, threads: int) -> int:
    return schedule(graph, None, this_machine(threads)).minimum_bytes


@pytest.fixture(scope="module", autouse=True)
def fixed_machine() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "this_machine", lambda *_: this_machine())
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[GraphMaker, Graph, Path]:
    directory = tmp_path_factory.mktemp("job")
    (directory / "in").mkdir()
    maker = GraphMaker(directory / "in")
    graph = every_kind(maker, SHAPES)
    jobs.run(job(graph), directory / "out", Options())
    return maker, graph, directory


def test_results_equal_those_of_plain_numpy(made: tuple[GraphMaker, Graph, Path]) -> None:
    maker, graph, directory = made
    found = {write.name: tensor_of(directory / "out", write).double() for write in graph.writes}
    loads = [load for load in graph.loads if load in maker.tensors]
    files = sorted({source_name(load) for load in loads})
    by_place = {(source_name(load), load.name.split(":")[1]): load for load in loads}
    for number, shape in enumerate(SHAPES):
        x, y, z = (
            maker.tensors[by_place[file, str(number)]].double().reshape(shape) for file in files
        )
        flat = z.reshape(-1)
        first = flat * ((flat > 0) & ((flat > 0).cumsum(0) <= 1000))
        positives = first.reshape(shape)
        norm = float(x.norm()) if x.numel() else 0.0
        normalised = (x + y + z) / (1 + norm + 2 * norm)
        chained = 3 * float(positives.norm()) if x.numel() else 0.0
        linear = 0.5 * x + 0.25 * y + 0.25 * z

        def close(name: str, expected: torch.Tensor, relative: float, n: int = number) -> None:
            torch.testing.assert_close(found[f"{name}{n}"], expected, rtol=relative, atol=2e-6)

        assert torch.equal(found[f"copy{number}"], x)
        assert torch.equal(found[f"cast{number}"], y)
        close("linear", linear, 2**-8)
        close("normalised", normalised, 1e-5)
        close("positives", positives, 2**-11)
        close("nested", (positives + normalised) / (1 + chained), 1e-5)
        if len(shape) == 2 and x.numel():
            order = backwards(shape[0])
            taken = in_rows((positives + normalised) / (1 + chained), order)
            once = taken / (1 + 3 * float(taken.norm()))
            close("once", once, 1e-5)
            close("spilled", in_rows(once, [*order, -1]), 2**-8)
        if shape and x.numel():
            rows = linear - linear.mean(-1, keepdim=True)
            torch.testing.assert_close(found[f"rows{number}"], rows, rtol=1e-5, atol=2e-5)
        if len(shape) == 2:
            torch.testing.assert_close(
                found[f"whole{number}"], x + x.sum(0, keepdim=True), rtol=1e-5, atol=1e-4
            )


def in_rows(tensor: torch.Tensor, rows: list[int]) -> torch.Tensor:
    """Rows by number, zeros for those that are missing."""
    chosen = tensor[rows]
    chosen[[place for place, row in enumerate(rows) if row < 0]] = 0.0
    return chosen


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("mode", list(IOMode))
@pytest.mark.parametrize("least", [True, False])
def test_budget_threads_and_io_change_no_byte(
    made: tuple[GraphMaker, Graph, Path], tmp_path: Path, threads: int, mode: IOMode, least: bool
) -> None:
    _, graph, directory = made
    ram = smallest(graph, threads) if least else None
    outcome = jobs.run(
        job(graph), tmp_path / "out", Options(ram=ram, machine=this_machine(threads), io=mode)
    )
    assert sha256(tmp_path / "out") == sha256(directory / "out")
    assert outcome.schedule is not None
    assert outcome.read_bytes == outcome.schedule.read_bytes
    assert outcome.write_bytes == outcome.schedule.write_bytes
    if ram is not None:
        assert outcome.schedule.repeated_bytes > 0


def test_a_run_uses_the_schedule_of_its_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    graph = every_kind(GraphMaker(tmp_path / "in"), [(30, 20)])
    made = schedule(graph, None, this_machine())
    again: list[Graph] = []
    monkeypatch.setattr(jobs, "schedule", lambda graph, *_: again.append(graph) or made)
    options = Options(machine=this_machine(), planned=made, io=IOMode.BUFFERED)
    outcome = jobs.run(job(graph), tmp_path / "out", options)
    assert outcome.schedule is made
    assert not again


def test_small_merges_that_run_together_change_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    maker = GraphMaker(tmp_path / "in")
    make = maker.builder.merge
    shapes: list[tuple[int, ...]] = [(40, 30), (3,), (), (100, 100), (7, 1025)] * 8
    inputs = [maker.loads(dtype, shapes, gap) for dtype, gap in ((BF16, 24), (F16, 3), (F32, 8))]
    outputs: dict[str, tuple[Merge, DType]] = {}
    for number, (one, two, three) in enumerate(zip(*inputs, strict=True)):
        positives = make([three], FirstPositives(1000), "positives")
        merge, dtype = (
            (make([one, two, three], Weighted((0.5, 0.25, 0.25)), "linear"), BF16),
            (make([one, two, three], Normalised(), "normalised"), F32),
            (make([one], Copy(), "copy"), BF16),
            (make([one, positives], Normalised(), "nested"), F16),
            (positives, F32),
        )[number % 7 % 5]
        outputs[f"t{number}"] = merge, dtype
    graph = maker.graph(outputs)
    made = schedule(graph, None, this_machine())
    bundles = [len(group) for group in bundle_merges(made) if not isinstance(group, int)]
    assert sum(bundles) > 30 > len(bundles)
    together = jobs.run(job(graph), tmp_path / "together", Options())
    assert (together.read_bytes, together.write_bytes) == (made.read_bytes, made.write_bytes)
    monkeypatch.setattr("mergeloom.engine.plan.bundles.BUNDLE_BYTES", 0)
    jobs.run(job(graph), tmp_path / "alone", Options())
    assert sha256(tmp_path / "together") == sha256(tmp_path / "alone")


@settings(max_examples=15)
@given(
    shapes=st.lists(
        st.one_of(
            st.tuples(st.integers(0, 2000), st.integers(1, 1500)),
            st.tuples(st.integers(1, 3_000_000)),
        ),
        min_size=1,
        max_size=3,
    ),
    more=st.integers(0, 40),
    threads=st.integers(1, 8),
)
def test_drawn_shapes_and_budgets_change_no_byte(
    tmp_path_factory: pytest.TempPathFactory,
    shapes: list[tuple[int, ...]],
    more: int,
    threads: int,
) -> None:
    directory = tmp_path_factory.mktemp("drawn")
    (directory / "in").mkdir()
    graph = every_kind(GraphMaker(directory / "in"), shapes)
    jobs.run(job(graph), directory / "free", Options(machine=this_machine(2)))
    ram = smallest(graph, threads) + more * MIB
    jobs.run(job(graph), directory / "tight", Options(ram=ram, machine=this_machine(threads)))
    assert sha256(directory / "free") == sha256(directory / "tight")


def test_partly_resident_inputs_change_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the tiles of a merge with several passes some stay in memory, the others are streamed."""
    monkeypatch.setattr("mergeloom.engine.plan.footprint.REQUEST_BYTES", 4 * MIB)
    monkeypatch.setattr("mergeloom.engine.plan.footprint.TILES_IN_FLIGHT", 1)
    (tmp_path / "in").mkdir()
    maker = GraphMaker(tmp_path / "in")
    own = [maker.loads(dtype, [(9, 1 << 19)], 8)[0] for dtype in (BF16, F32)]
    statistic = maker.builder.merge(own, Normalised(), "normalised")
    graph = maker.graph({"t": (maker.builder.merge([statistic], Normalised(), "n"), BF16)})
    budgets = [smallest(graph, 2) + more * MIB for more in range(0, 64, 6)]
    outputs = set()
    for ram in (None, *budgets):
        options = Options(ram=ram, machine=this_machine(2))
        outcome = jobs.run(job(graph), tmp_path / f"out{ram}", options)
        assert outcome.schedule is not None
        assert outcome.read_bytes == outcome.schedule.read_bytes
        outputs.add(sha256(tmp_path / f"out{ram}")["out.bin"])
    assert len(outputs) == 1
    flows = [schedule(graph, ram, this_machine(2)).merges[0].flow for ram in budgets]
    assert any(0 < flow.resident_tiles < flow.tiles for flow in flows)


class Stop(Exception):
    """Raised by the tests' observers to interrupt a run."""


def interrupted(graph: Graph, output: Path, after: int) -> None:
    """A run that is stopped once ``after`` bytes are written."""

    def poll(progress: object) -> None:
        if progress.write_bytes >= after:
            raise Stop

    with pytest.raises(Stop):
        jobs.run(job(graph), output, Options(machine=this_machine(1)), poll=poll)


def test_an_interrupted_run_continues_with_another_budget(
    made: tuple[GraphMaker, Graph, Path], tmp_path: Path
) -> None:
    _, graph, directory = made
    output = tmp_path / "out"
    interrupted(graph, output, after=1)
    assert not (output / "out.bin").exists()
    assert read_manifest(output) is None
    outcome = jobs.run(job(graph), output, Options(ram=smallest(graph, 2), machine=this_machine(2)))
    assert sha256(output) == sha256(directory / "out")
    manifest = read_manifest(output)
    assert manifest is not None
    assert {record.name for record in manifest.tensors} == {write.name for write in graph.writes}
    spilled = sum(spill.size for spill in graph.spills)
    assert outcome.write_bytes <= sum(write.nbytes for write in graph.writes) + spilled + 4
    assert not list((output / ".mergeloom").glob("spilled*"))


def test_a_finished_output_is_left_alone(
    made: tuple[GraphMaker, Graph, Path],
) -> None:
    _, graph, directory = made
    before = (directory / "out" / "out.bin").stat().st_mtime_ns
    outcome = jobs.run(job(graph), directory / "out", Options())
    assert outcome.was_finished
    assert (directory / "out" / "out.bin").stat().st_mtime_ns == before


def test_flipped_bits_are_found_and_merged_again(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    maker = GraphMaker(tmp_path / "in")
    loads = maker.loads(F32, [(1 << 20,)] * 6)
    make = maker.builder.merge
    outputs = {f"t{i}": (make([load], Weighted((2.0,)), "m"), F32) for i, load in enumerate(loads)}
    graph = maker.graph(outputs)
    jobs.run(job(graph), tmp_path / "whole", Options())
    output = tmp_path / "out"

    def slow(progress: object) -> None:
        if progress.write_bytes > 16 * MIB:
            raise Stop

    with pytest.raises(Stop):
        jobs.run(job(graph), output, Options(machine=this_machine(1)), poll=slow)
    partial = output / "out.bin.partial"
    present = partial if partial.exists() else output / "out.bin"
    with open(present, "r+b") as file:
        file.seek(100)
        byte = file.read(1)
        file.seek(100)
        file.write(bytes([byte[0] ^ 1]))
    jobs.run(job(graph), output, Options())
    assert sha256(output) == sha256(tmp_path / "whole")


def test_another_job_in_the_same_output_is_refused_by_what_differs(
    made: tuple[GraphMaker, Graph, Path], tmp_path: Path
) -> None:
    _, graph, directory = made
    identity = {"graph": graph.fingerprint(), "seed": "1"}
    other = replace(job(graph), fingerprint="other", identity=identity)
    with pytest.raises(OutputError, match=r"holds another merge: seed.*--restart"):
        jobs.run(other, directory / "out", Options())
    interrupted(graph, tmp_path / "out", after=1)
    with pytest.raises(OutputError, match=r"holds another merge: seed"):
        jobs.run(other, tmp_path / "out", Options())
    jobs.run(other, tmp_path / "out", Options(restart=True))
    assert sha256(tmp_path / "out") == sha256(directory / "out")


def test_a_foreign_directory_is_refused(
    made: tuple[GraphMaker, Graph, Path], tmp_path: Path
) -> None:
    _, graph, _ = made
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        jobs.run(job(graph), tmp_path, Options(restart=True))
    assert [entry.name for entry in tmp_path.iterdir()] == ["precious.txt"]


def test_a_changed_input_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    maker = GraphMaker(tmp_path / "in")
    (load,) = maker.loads(F32, [(1 << 16,)])
    graph = maker.graph({"t": (maker.builder.merge([load], Copy(), "c"), F32)})
    os.utime(source_name(load), ns=(1, 1))
    with pytest.raises((RunError, LoomError), match="changed"):
        jobs.run(job(graph), tmp_path / "out", Options())


def test_values_that_become_infinite_name_the_tensor(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    maker = GraphMaker(tmp_path / "in")
    (load,) = maker.loads(F32, [(1000,)])
    merge = maker.builder.merge([load], Weighted((1e6,)), "m")
    graph = maker.graph({"layer.weight": (merge, F16)})
    with pytest.raises(RunError, match=r"'layer\.weight'.*not finite as float16"):
        jobs.run(job(graph), tmp_path / "out", Options())


def test_infinities_of_the_inputs_pass(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    maker = GraphMaker(tmp_path / "in")
    (load,) = maker.loads(F32, [(1000,)])
    content = bytearray(Path(source_name(load)).read_bytes())
    content[:8] = torch.tensor([float("inf"), float("nan")]).numpy().tobytes()
    status = os.stat(source_name(load))
    Path(source_name(load)).write_bytes(content)
    os.utime(source_name(load), ns=(status.st_atime_ns, status.st_mtime_ns))
    merge = maker.builder.merge([load], Weighted((2.0,)), "m")
    graph = maker.graph({"t": (merge, BF16)})
    jobs.run(job(graph), tmp_path / "out", Options())
    found = tensor_of(tmp_path / "out", graph.writes[0])
    assert bool(found[0].isinf())
    assert bool(found[1].isnan())
    assert bool(found[2:].isfinite().all())


KILLED = """
import sys, time
from pathlib import Path
from mergeloom.engine import job as jobs
from tests.engine.test_job import SHAPES, every_kind
from tests.engine.support import Paper, GraphMaker, job

directory = Path(sys.argv[1])
graph = every_kind(GraphMaker(directory / "in"), SHAPES[:4])
def poll(progress):
    if progress.write_bytes > int(sys.argv[2]):
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
jobs.run(job(graph), directory / "out", jobs.Options(), poll=poll)
"""


@pytest.mark.parametrize("after", [0, 12 * MIB])
def test_a_killed_run_continues(tmp_path: Path, after: int) -> None:
    for name in ("in", "again"):
        (tmp_path / name).mkdir()
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path, str(after)], check=False)
    assert killed.returncode == -signal.SIGKILL
    # The same inputs: the same files, read again under their own names.
    (tmp_path / "in").rename(tmp_path / "kept")
    (tmp_path / "in").mkdir()
    graph = every_kind(GraphMaker(tmp_path / "in"), SHAPES[:4])
    for path in (tmp_path / "in").iterdir():
        assert path.read_bytes() == (tmp_path / "kept" / path.name).read_bytes()
    jobs.run(job(graph), tmp_path / "out", Options())
    jobs.run(job(graph), tmp_path / "whole", Options())
    assert sha256(tmp_path / "out") == sha256(tmp_path / "whole")


def test_memos_are_reused_if_there_is_room_for_them(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    maker = GraphMaker(tmp_path / "in")
    shapes = [(40, 1 << 19), (700, 1111), (5,)]
    inputs = [maker.loads(BF16, shapes, gap) for gap in (8, 16)]
    kernel = Remembered((0.5, 0.25))
    merges = [maker.builder.merge(list(loads), kernel, "m") for loads in zip(*inputs, strict=True)]
    graph = maker.graph({f"t{n}": (merge, BF16) for n, merge in enumerate(merges)})
    here = this_machine(2)
    least = schedule(graph, None, here).minimum_bytes
    ledgers = []
    digests = []
    for number, ram in enumerate((None, least + 100 * MIB, least + 40 * MIB, least)):
        kernel.seen.clear()
        options = Options(ram=ram, machine=here)
        outcome = jobs.run(job(graph), tmp_path / str(number), options)
        assert outcome.schedule is not None
        memos = [scheduled.flow.memos for scheduled in outcome.schedule.merges]
        grains = [scheduled.work.grains.count for scheduled in outcome.schedule.merges]
        assert sum(kernel.seen) == sum(g for g, there in zip(grains, memos, strict=True) if there)
        ledgers.append(memos)
        digests.append(sha256(tmp_path / str(number)))
    assert all(found == digests[0] for found in digests)
    assert all(ledgers[0])
    assert not all(ledgers[-1])


@dataclass(frozen=True)
class Broken(Paper):
    """Machine code that cannot be built, or not be loaded."""

    def build(self, operations: frozenset[str]) -> None:
        raise RunError("machine code cannot be built: the compiler is broken")

    def open(self, operations: frozenset[str]) -> Any:
        raise RunError("machine code cannot be loaded: it is for another processor")


@pytest.mark.parametrize("lacking", [frozenset({"combine"}), frozenset()])
def test_machine_code_that_fails_ends_the_run(tmp_path: Path, lacking: frozenset[str]) -> None:
    """Another arithmetic would give another result."""
    (tmp_path / "in").mkdir()
    maker = GraphMaker(tmp_path / "in")
    inputs = [maker.loads(BF16, [(4, 1 << 21)], gap)[0] for gap in (8, 16)]
    merge = maker.builder.merge(inputs, Remembered((0.5, 0.25)), "a")
    graph = maker.graph({"a": (merge, BF16)})
    here = replace(this_machine(2), arithmetic=Broken(lacking=lacking))
    told: list[frozenset[str]] = []
    with pytest.raises(RunError, match="cannot be built" if lacking else "cannot be loaded"):
        jobs.run(job(graph), tmp_path / "out", Options(machine=here), building=told.append)
    assert told == ([lacking] if lacking else [])
