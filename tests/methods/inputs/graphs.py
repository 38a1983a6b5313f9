"""Graphs of tensors in memory, run at several budgets and compared with plain float64."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from mergeloom.engine import job as jobs
from mergeloom.engine.base.dtypes import (
    BY_CODE,
    F32,
    DType,
)
from mergeloom.engine.base.units import MIB
from mergeloom.engine.graph.graph import (
    Graph,
    GraphBuilder,
    Load,
    Merge,
    OutputFile,
    Write,
)
from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.engine.graph.verify import verify
from mergeloom.engine.hardware.spec import Machine
from mergeloom.engine.job import Options
from mergeloom.engine.plan.schedule import schedule
from mergeloom.engine.run.outcome import Outcome
from mergeloom.engine.storage.memory_source import MemorySource
from tests.engine.support import job, sha256, spec, tensor_of

E4M3 = BY_CODE["F8_E4M3"]
I8 = BY_CODE["I8"]


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + 7)).to(dtype)


def whole_numbers(low: int, high: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


class MemoryGraphMaker:
    """Collects tensors and merges for one graph."""

    def __init__(self) -> None:
        self.builder = GraphBuilder()

    def stored(self, tensor: torch.Tensor, dtype: DType, shape: Sequence[int] = ()) -> StoredTensor:
        content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        source = MemorySource(b"\0" * 24 + content, "tensor")
        return StoredTensor.at(source, 24, dtype, tuple(shape or tensor.shape))

    def load(self, tensor: torch.Tensor, dtype: DType, shape: Sequence[int] = ()) -> Load:
        return self.of(self.stored(tensor, dtype, shape))

    def of(self, stored: StoredTensor) -> Load:
        return self.builder.load_bytes(stored.bytes, stored.dtype, stored.shape, "tensor")

    def graph(self, merge: Merge, dtype: DType) -> Graph:
        file = OutputFile("out.bin", b"head", 4 + dtype.nbytes(torch.Size(merge.shape).numel()))
        graph = self.builder.build([Write(merge, file, 4, dtype, "out")], [file])
        verify(graph)
        return graph


def machine(threads: int) -> Machine:
    return spec(threads, 300 * MIB, 0)


def run(graph: Graph, output: Path, ram: int | None = None, threads: int = 2) -> Outcome:
    outcome = jobs.run(job(graph), output, Options(ram=ram, machine=machine(threads)))
    assert outcome.schedule is not None
    assert outcome.read_bytes == outcome.schedule.read_bytes
    return outcome


def at_every_budget(
    maker: MemoryGraphMaker, merge: Merge, tmp_path: Path, dtype: DType = F32
) -> torch.Tensor:
    """The result, after checking that no budget and no number of threads changes a byte."""
    graph = maker.graph(merge, dtype)
    least = schedule(graph, None, machine(1)).minimum_bytes
    run(graph, tmp_path / "free")
    for more, threads in ((0, 1), (5 * MIB, 2), (30 * MIB, 3)):
        output = tmp_path / f"{more}"
        run(graph, output, least + more, threads)
        assert sha256(output) == sha256(tmp_path / "free")
    return tensor_of(tmp_path / "free", graph.writes[0])


def close(found: torch.Tensor, expected: torch.Tensor, relative: float = 1e-5) -> None:
    scale = float(expected.abs().max())
    torch.testing.assert_close(found.double(), expected, rtol=relative, atol=relative * scale)
