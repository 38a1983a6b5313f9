"""Every method in one run on a device: bit for bit on the fake one, and on a real one in what
must be the same on all, to rounding in the rest."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mergeloom.engine.base.dtypes import BF16, F16, F32
from mergeloom.engine.base.units import MIB
from mergeloom.engine.graph.graph import Graph, Merge, Write
from mergeloom.engine.hardware.accelerators import found_devices
from mergeloom.engine.hardware.spec import Machine
from mergeloom.engine.plan.assignment import Reason
from mergeloom.methods.ops.arithmetic import TORCH
from tests.engine.fake_device import accelerator
from tests.engine.run.test_device_worker import Memory, Opener, Ran, machine, run
from tests.engine.support import Workshop
from tests.methods.test_devices import VARIANTS, kernel_of

SHAPES = {"wide": (27, 21000), "rows": (900, 600), "vector": (530_000,)}
CPU = Machine(2, 300 * MIB, 0, TORCH, TORCH)
CUDA = [device for device in found_devices(torch.__version__) if torch.cuda.is_available()]
needs_cuda = pytest.mark.skipif(not CUDA, reason="there is no CUDA device that torch can use")


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """A merge by every variant of every method, for every shape."""
    workshop = Workshop(tmp_path_factory.mktemp("in"))
    outputs: dict[str, tuple[Merge, object]] = {}
    for label, shape in SHAPES.items():
        loads = [workshop.loads(dtype, [shape], gap=2)[0] for dtype in (BF16, BF16, F16, F32)]
        for number, (name, settings) in enumerate(VARIANTS):
            kernel, count = kernel_of(name, settings, shape)
            merge = workshop.builder.merge(loads[:count], kernel, name)
            outputs[f"{name}.{number}.{label}"] = merge, F32
    return workshop.graph(outputs)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def expected(graph: Graph) -> Memory:
    return run(graph, CPU).sink


def test_every_method_gives_the_cpu_s_bytes_on_the_fake_device(
    graph: Graph, expected: Memory
) -> None:
    opener = Opener()
    ran = run(graph, machine(accelerator(1 << 30)), opener)
    assert {placement.seat.why for placement in ran.schedule.placements} == {Reason.ASKED_FOR}
    assert not ran.warnings
    assert ran.sink == expected
    # What kernels allocate by themselves is no more than was reckoned with.
    assert opener.opened[0].peak < 1 << 29
    # What does not fit there goes to the CPU, which has to compute alike.
    small = replace(machine(accelerator(200 * MIB)), arithmetic=TORCH)
    assert run(graph, small, Opener()).sink == expected


def on_cuda(graph: Graph, vram: int) -> Ran:
    return run(graph, machine(replace(CUDA[0], memory_bytes=vram)))


def tensor_of(sink: Memory, write: Write) -> torch.Tensor:
    content = sink.content[write.offset : write.offset + write.nbytes]
    return torch.frombuffer(content, dtype=write.dtype.torch)


@needs_cuda
def test_cuda_agrees_with_the_cpu_and_with_itself(graph: Graph, expected: Memory) -> None:
    ran = on_cuda(graph, 2 << 30)
    assert not ran.warnings
    for write in graph.writes:
        found, wanted = tensor_of(ran.sink, write), tensor_of(expected, write)
        difference = (found - wanted).abs()
        # An element at a threshold that hangs on the last bit may fall to either side.
        assert int((difference > 1e-5 * (1 + wanted.abs())).sum()) <= 4, write.name
    for vram in (512 * MIB, 700 * MIB):
        assert on_cuda(graph, vram).sink == ran.sink


@needs_cuda
def test_cuda_draws_the_same_random_numbers() -> None:
    from mergeloom.methods.ops import draws as random

    for count in (1, 1000, 1 << 19):
        drawn = []
        for device in ("cpu", "cuda"):
            out, work = torch.empty(2, count, dtype=torch.int32, device=device)
            random.draw(random.key_of(1, "layer", 2), (1 << 32) - 700, out, work)
            drawn.append(out.cpu())
        assert torch.equal(*drawn)


@needs_cuda
def test_cuda_reserves_no_more_than_the_budget(graph: Graph) -> None:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    on_cuda(graph, 512 * MIB)
    assert torch.cuda.max_memory_reserved() <= 512 * MIB
