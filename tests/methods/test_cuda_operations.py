"""Every method by a CUDA device's own code, compiled for this machine, against the CPU's code."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import numpy as np
import pytest
import torch

from mergeloom.engine.base.dtypes import BF16, F16, F32
from mergeloom.engine.base.units import MIB
from mergeloom.engine.graph.graph import Graph, Write
from mergeloom.engine.hardware import device_code
from mergeloom.engine.hardware.accelerators import Accelerator, found_devices
from mergeloom.engine.hardware.device_code import compiler
from mergeloom.engine.hardware.spec import Machine
from mergeloom.engine.plan.assignment import Reason
from mergeloom.methods.ops import draws
from mergeloom.methods.ops.arithmetic import COMPILED, TORCH
from mergeloom.methods.ops.cuda.arithmetic import source_code
from mergeloom.methods.ops.cuda.ops import SIGNATURES, CudaOps, workspace
from mergeloom.methods.ops.interface import Vector
from tests.engine.fake_device import accelerator
from tests.engine.host_cuda import HostDevice, here, needs_compiler
from tests.engine.run.test_device_worker import Memory, Ran, run
from tests.methods.every_method import every_method

CPU = Machine(2, 300 * MIB, 0, COMPILED, TORCH)
CUDA = found_devices(lambda: compiler() is not None)
needs_cuda = pytest.mark.skipif(
    not any(device.kind == "cuda" for device in CUDA), reason="there is no CUDA device"
)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return every_method(tmp_path_factory.mktemp("in"), [F32, BF16, F16])


@pytest.fixture(scope="module")
def expected(graph: Graph) -> Memory:
    return run(graph, CPU).sink


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """The part of the graph that has the shape which is cheapest to emulate."""
    return every_method(tmp_path_factory.mktemp("few"), [F32, BF16, F16], ["rows"])


class Opener:
    """Opens devices without hardware, and keeps them."""

    def __init__(self) -> None:
        self.opened: list[HostDevice] = []

    def __call__(self, device: Accelerator) -> HostDevice:
        self.opened.append(HostDevice(device))
        return self.opened[-1]


def contents(graph: Graph, sink: Memory) -> dict[str, bytes]:
    """The bytes of each output."""
    return {
        write.name: bytes(sink.content[write.offset : write.offset + write.nbytes])
        for write in graph.writes
    }


def numbers_of(sink: Memory, write: Write) -> np.ndarray:
    content = bytes(sink.content[write.offset : write.offset + write.nbytes])
    if write.dtype == BF16:
        return (np.frombuffer(content, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(content, np.float16 if write.dtype == F16 else np.float32)


def check_close(graph: Graph, found: Memory, wanted: Memory) -> None:
    """Check that all is the same to rounding, but for a few elements."""
    worst = {}
    for write in graph.writes:
        one, other = (numbers_of(each, write).astype(np.float64) for each in (found, wanted))
        close = {F32: 1e-5, BF16: 1e-2, F16: 2e-3}[write.dtype]
        worst[write.name] = int((np.abs(one - other) > close * (1e-3 + np.abs(other))).sum())
    # An element at a threshold that depends on the last bit may fall to either side.
    assert max(worst.values()) <= 4, {name: n for name, n in worst.items() if n > 4}


def check_assignments(ran: Ran) -> None:
    assignments = {p.work.name.partition(".")[0]: p.assignment for p in ran.schedule.merges}
    for method in ("linear", "slerp", "ties", "dare_ties", "della", "arcee_fusion", "sce", "ram"):
        assert assignments[method].reason is Reason.ASKED_FOR, method


@needs_compiler
def test_every_method_agrees_with_the_cpu_and_with_every_budget(
    graph: Graph, few: Graph, expected: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_code, "device_code", lambda *_: b"")
    sinks = []
    for part, vram in ((graph, 1 << 30), (few, 150 * MIB)):
        there = replace(CPU, devices=(accelerator(vram, "cuda:0"),), devices_forced=True)
        opener = Opener()
        ran = run(part, there, opener)
        assert not ran.warnings
        sinks.append(ran.sink)
        check_assignments(ran)
        assert opener.opened[0].launches > 100
        assert opener.opened[0].peak <= vram
    whole, part_of_it = (contents(*each) for each in zip((graph, few), sinks, strict=True))
    assert part_of_it.items() <= whole.items()
    check_close(graph, sinks[0], expected)


MAGNITUDES = [
    (1.0,),
    (0.0, 1e-45, 1.0, 1.0 + 2**-20, 3e38, float("inf")),
    tuple(2.0**-k for k in range(2000)),
]
"""What rows consist of, but for one element: one value, few, or many, most of which are 0."""


@needs_compiler
@pytest.mark.parametrize(("rows", "row"), [(5, 1), (1500, 3), (9, 1000), (3, 2049), (2, 9001)])
@pytest.mark.parametrize("magnitudes", MAGNITUDES, ids=["equal", "few", "many"])
def test_ranks_are_exact(rows: int, row: int, magnitudes: tuple[float, ...]) -> None:
    source = np.random.default_rng(row)
    content = source.choice(np.array(magnitudes, np.float32), rows * row)
    content *= source.choice(np.array([-1, 1], np.float32), rows * row)
    content[rows * row // 2] = 3.0  # so that all but one are alike
    steps = np.sort(source.integers(-(2**31), 2**31, row).astype(np.int32))[::-1].copy()
    device = HostDevice(accelerator(64 << 20, "cuda:0"))
    ops = CudaOps(device, workspace(device), device.allocate(32 << 20))
    given = ops.from_numpy(content)
    marks = ops.choose_by_rank(Vector(given), row, 7, 2**32 - 99, steps, ops.take_bytes(rows * row))
    found = ctypes.string_at(here(marks), rows * row)

    order = np.argsort(-np.abs(content).reshape(rows, row), axis=1, kind="stable")
    bounds = np.empty((rows, row), np.int32)
    np.put_along_axis(bounds, order, np.broadcast_to(steps, (rows, row)), axis=1)
    drawn, work = torch.empty((2, rows * row), dtype=torch.int32)
    draws.draw(7, 2**32 - 99, drawn, work)
    assert np.array_equal(np.frombuffer(found, np.bool_), drawn.numpy() < bounds.ravel())


@pytest.mark.skipif(compiler() is None, reason="NVIDIA's run-time compiler is not installed")
@pytest.mark.parametrize("capability", [(9, 0), (8, 0), (7, 5)])
def test_nvidias_compiler_accepts_the_code(capability: tuple[int, int]) -> None:
    found = compiler()
    assert found is not None
    code = device_code.compiled(found, source_code(), capability)
    assert all(name.encode() in code for name in SIGNATURES)


@needs_cuda
def test_a_real_device_agrees_with_the_cpu_and_with_every_budget(
    graph: Graph, expected: Memory
) -> None:
    sinks = []
    for vram in (2 << 30, 512 * MIB, 150 * MIB):
        there = replace(CPU, devices=(replace(CUDA[0], memory_bytes=vram),), devices_forced=True)
        ran = run(graph, there)
        assert not ran.warnings
        sinks.append(ran.sink)
        check_assignments(ran)
    check_close(graph, sinks[0], expected)
    assert sinks[0] == sinks[1] == sinks[2]


@needs_cuda
def test_a_real_device_allocates_no_more_than_its_budget() -> None:
    from mergeloom.engine.hardware.cuda import CudaMemoryError
    from mergeloom.engine.run.cuda_device import CudaDevice

    device = CudaDevice(replace(CUDA[0], memory_bytes=64 * MIB))
    held = device.allocate(40 * MIB)
    with pytest.raises(CudaMemoryError, match="out of memory"):
        device.allocate(40 * MIB)
    del held
    device.allocate(60 * MIB)
    device.close()
