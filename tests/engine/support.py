"""Jobs over small random tensors in real files, for the engine's tests."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mergeloom.engine.base.dtypes import DType
from mergeloom.engine.base.grains import Grains
from mergeloom.engine.graph.arithmetic import Arithmetic, Ops
from mergeloom.engine.graph.graph import Graph, GraphBuilder, Load, Merge, OutputFile, Write
from mergeloom.engine.graph.kernel import Use
from mergeloom.engine.graph.verify import verify
from mergeloom.engine.hardware.spec import Machine
from mergeloom.engine.job import Job
from mergeloom.engine.storage.files import FileSource
from mergeloom.methods.ops.arithmetic import COMPILED, TORCH


def file_source(path: Path) -> FileSource:
    status = path.stat()
    return FileSource(str(path), status.st_size, status.st_mtime_ns, f"{path.name}")


@dataclass
class GraphMaker:
    """Makes input files and collects tasks."""

    directory: Path
    seed: int = 0

    def __post_init__(self) -> None:
        self.builder = GraphBuilder()
        self.tensors: dict[Load, torch.Tensor] = {}
        self._random = np.random.default_rng(self.seed)

    def loads(self, dtype: DType, shapes: Sequence[tuple[int, ...]], gap: int = 0) -> list[Load]:
        """One file with a tensor for each shape, the first after ``gap`` bytes."""
        path = self.directory / f"input-{len(list(self.directory.iterdir()))}"
        tensors = [
            torch.from_numpy(self._random.standard_normal(shape).astype(np.float32)).to(dtype.torch)
            for shape in shapes
        ]
        offsets, content = [], bytearray(gap)
        for tensor in tensors:
            offsets.append(len(content))
            content += tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        path.write_bytes(content)
        source = file_source(path)
        loads = [
            self.builder.load(source, offset, dtype, shape, f"{path.name}:{number}")
            for number, (offset, shape) in enumerate(zip(offsets, shapes, strict=True))
        ]
        self.tensors.update(zip(loads, tensors, strict=True))
        return loads

    def graph(self, outputs: Mapping[str, tuple[Merge, DType]], header: bytes = b"head") -> Graph:
        """A graph that writes all outputs into one file."""
        offset = len(header)
        slots = []
        for name, (merge, dtype) in outputs.items():
            slots.append((name, merge, dtype, offset))
            offset += math.prod(merge.shape) * dtype.size
        file = OutputFile("out.bin", header, offset)
        writes = [Write(merge, file, at, dtype, name) for name, merge, dtype, at in slots]
        graph = self.builder.build(writes, [file])
        verify(graph)
        return graph


def source_name(load: Load) -> str:
    """The file that a load reads."""
    (name,) = {part.source.name for part in load.bytes.ranges()}
    return name


def spec(threads: int, process_bytes: int, runtime_bytes: int, **changes: Any) -> Machine:
    """A machine with both arithmetics, on paper."""
    return Machine(threads, process_bytes, runtime_bytes, COMPILED, TORCH, **changes)


@dataclass(frozen=True)
class Paper(Arithmetic):
    """An arithmetic for planning, of known cost and size."""

    price: float = 1.0
    size: int = 0
    lacking: frozenset[str] = frozenset()
    name = "paper"
    uses_torch = False

    def reads(self, dtype: DType) -> bool:
        return True

    def widens(self, dtype: DType) -> bool:
        return True

    def writes(self, dtype: DType) -> bool:
        return True

    def workspace_bytes(self, use: Use, grains: Grains) -> int:
        return 0

    def cost(self, use: Use) -> float:
        return self.price

    def library_bytes(self, operations: frozenset[str]) -> int:
        return self.size

    def missing(self, operations: frozenset[str]) -> frozenset[str]:
        return operations & self.lacking

    def build(self, operations: frozenset[str]) -> None:
        raise NotImplementedError

    def open(self, operations: frozenset[str]) -> Callable[[Any], Ops]:
        raise NotImplementedError


def job(graph: Graph) -> Job:
    identity = {"graph": graph.fingerprint()}
    return Job(graph, graph.fingerprint(), identity, COMPILED, TORCH)


def tensor_of(directory: Path, write: Write) -> torch.Tensor:
    content = (directory / write.file.name).read_bytes()
    body = bytearray(content[write.offset : write.offset + write.nbytes])
    if not body:
        return torch.empty(write.shape, dtype=write.dtype.torch)
    return torch.frombuffer(body, dtype=write.dtype.torch).view(write.shape)


def sha256(directory: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.iterdir())
        if path.is_file()
    }
