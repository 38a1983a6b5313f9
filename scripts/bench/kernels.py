"""Measure the kernel of each merge method on one core, in nanoseconds per element.

    scripts/run kernels [METHOD ...] [--inputs 4] [--dtype bf16] [--grains 4]

The figure is time / (elements x merged inputs, without the base). It includes conversion to float32
and rounding to the output dtype, but neither reading nor writing.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch
from torch import Tensor

from mergeloom.engine.base.dtypes import BF16, F16, F32, DType
from mergeloom.engine.base.grains import GRAIN_ELEMENTS
from mergeloom.engine.graph.graph import GraphBuilder, Merge, OutputFile, Write
from mergeloom.engine.graph.kernel import Kernel
from mergeloom.engine.hardware.process import bound_heap
from mergeloom.engine.hardware.spec import Machine
from mergeloom.engine.memory.ledger import Block
from mergeloom.engine.plan.work import operations_of, works_of
from mergeloom.engine.run.evaluate import Memo, Span, TreeEvaluator
from mergeloom.engine.storage.memory_source import MemorySource
from mergeloom.methods import registry
from mergeloom.methods.declare import REQUIRED, Base, Method, TensorMerge
from mergeloom.methods.ops.arithmetic import COMPILED, TORCH

DTYPES = {"bf16": BF16, "f16": F16, "f32": F32}

EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "density": {"*": 0.5, "della": 0.5},
    "weight": {"*": 0.4},
    "t": {"*": 0.3, "nearswap": 0.001},
    "scale": {"*": 0.9},
    "select_topk": {"*": 0.5},
}
"""Parameters that make a method work; all others have their defaults."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="merge methods [default: all]")
    parser.add_argument(
        "--inputs", type=int, default=4, metavar="N", help="models, base included [default: 4]"
    )
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bf16", help="[default: bf16]")
    parser.add_argument(
        "--grains", type=int, default=4, metavar="N", help="grains per tensor [default: 4]"
    )
    parser.add_argument(
        "--row", type=int, default=2048, metavar="N", help="elements per row [default: 2048]"
    )
    parser.add_argument(
        "--torch", action="store_true", help="compute with torch instead of compiled machine code"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bound_heap()
    print(f"{'method':18} {'passes':>30} {'scan':>7} {'output':>7} {'total':>7}  ns/element")
    for name in arguments.methods or registry.names():
        method = registry.get(name)
        count = arguments.inputs
        if method.maximum is not None:
            count = min(count, method.maximum + (method.base is Base.REQUIRED))
        shape = (GRAIN_ELEMENTS * arguments.grains // arguments.row, arguments.row)
        report(method, shape, count, DTYPES[arguments.dtype], arguments.torch)


def report(method: Method, shape: tuple[int, ...], count: int, dtype: DType, torchs: bool) -> None:
    source = torch.Generator().manual_seed(0)
    base = torch.randn(shape, generator=source).mul_(0.02).to(dtype.torch)
    step = [torch.randn(shape, generator=source).mul_(1e-3) for _ in range(count - 1)]
    inputs = [base, *((base.float() + change).to(dtype.torch) for change in step)]
    position = 0 if method.base is Base.REQUIRED else None
    kernel = method.kernel(resolved(method, shape, count, position))
    flat = [tensor.view(-1) for tensor in inputs]
    passes, scan, output = measure(kernel, flat, shape, dtype, torchs)
    merged = count - (position is not None)
    elements = math.prod(shape) * merged
    each = " + ".join(f"{seconds / elements * 1e9:.2f}" for seconds in passes)
    total = (sum(passes) + scan + output) / elements * 1e9
    scanned, put = scan / elements * 1e9, output / elements * 1e9
    print(f"{method.name:18} {each:>30} {scanned:7.2f} {put:7.2f} {total:7.2f}", flush=True)


def resolved(method: Method, shape: tuple[int, ...], count: int, base: int | None) -> TensorMerge:
    def value(name: str, default: Any) -> Any:
        chosen = EXAMPLES.get(name, {})
        given = chosen.get(method.name, chosen.get("*", default))
        if given is REQUIRED:
            raise SystemExit(f"kernels: no example value for '{name}' of '{method.name}'")
        return given

    model = {p.name: value(p.name, p.default) for p in method.model_parameters}
    models = tuple({} if i == base else model for i in range(count))
    settings = {p.name: value(p.name, p.default) for p in method.settings}
    return TensorMerge("layers.0.weight", shape, models, base, settings)


T = TypeVar("T")


def measure(
    kernel: Kernel, inputs: list[Tensor], shape: tuple[int, ...], dtype: DType, torchs: bool
) -> tuple[list[float], float, float]:
    """Seconds of each statistics pass, of the prefixes, and of the output pass; best of three."""
    builder, source = GraphBuilder(), MemorySource(b"", "nothing")
    # Each at a place of its own: loads of one place are one, and all differences would be 0.
    places = (number * tensor.nbytes for number, tensor in enumerate(inputs))
    loads = [builder.load(source, at, dtype, shape, str(at)) for at in places]
    assert len(set(loads)) == len(inputs)
    root = builder.merge(loads, kernel, "merged")
    write = Write(root, OutputFile("out", b"", 0), 0, dtype, "merged")
    arithmetic = TORCH if torchs else COMPILED
    machine = Machine(1, 0, 0, arithmetic, TORCH)
    (work,) = works_of(builder.build([write], [write.file]), machine)
    arithmetic.build(arithmetic.missing(operations_of([work.kind])[arithmetic]))
    make = arithmetic.open(operations_of([work.kind])[arithmetic])
    ops, grains = make(Block(work.merge_shape.worker.scratch_bytes)), work.grains
    blocks = [_block(tensor) for tensor in inputs]
    out = Block(grains.total * dtype.size)
    spans = {load: Span(block, 0, 0) for load, block in zip(loads, blocks, strict=True)}
    size = work.merge_shape.memo_bytes
    memo = Memo(Block(grains.count * size), size, 0) if size else None
    statistics: dict[Merge, list[Any]] = {root: []}
    prefixes: dict[Merge, dict[int, tuple[int, ...]]] = {}
    evaluator = TreeEvaluator(root, grains, spans, ops, statistics, prefixes, memo)

    def timed(work: Callable[[int], T]) -> tuple[float, list[T]]:
        start = time.thread_time()
        results = [work(index) for index in range(grains.count)]
        return time.thread_time() - start, results

    best: tuple[list[float], float, float] | None = None
    with torch.inference_mode():
        for _ in range(3):
            statistics[root] = []
            prefixes.clear()
            passes = []
            for statistic in kernel.passes:
                into = statistic.init()
                update = partial(evaluator.update_statistic, root, statistic, into)
                passes.append(timed(update)[0])
                statistic.fetch(into)
                statistics[root].append(statistic.finalize(into, statistics[root]))
            scan = 0.0
            if kernel.needs_scan(statistics[root]):
                scan, found = timed(partial(evaluator.scan_value, root))
                prefixes[root] = dict(enumerate(_prefixes(found)))
            output, _ = timed(lambda i: evaluator.compute_output(i, [(write, Span(out, 0, 0))]))
            if best is None or sum(passes) + scan + output < sum(best[0]) + sum(best[1:]):
                best = passes, scan, output
    assert best is not None
    return best


def _prefixes(values: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, ...]]:
    """For each grain, the sums of the values of the grains before it."""
    before = (0,) * len(values[0])
    for own in values:
        yield before
        before = tuple(total + int(value) for total, value in zip(before, own, strict=True))


def _block(tensor: Tensor) -> Block:
    block = Block(tensor.nbytes)
    torch.frombuffer(block.memory, dtype=tensor.dtype, count=tensor.numel()).copy_(tensor)
    return block


if __name__ == "__main__":
    main()
