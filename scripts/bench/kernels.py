"""Nanoseconds an element of each method's kernel on one core, in grains as the engine calls it.

    python scripts/run kernels [METHOD ...] [--inputs 4] [--dtype bf16] [--grains 4]

The figure in each row is time over (elements x inputs that are merged): a base does not count.
Conversion to float32 and rounding to the output dtype are in it; reading and writing are not.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch
from torch import Tensor

from mergeloom.engine.base.grains import GRAIN_ELEMENTS, Access, partition
from mergeloom.engine.graph.kernel import GrainView, Kernel
from mergeloom.engine.hardware.process import bound_heap
from mergeloom.methods import registry
from mergeloom.methods.declare import REQUIRED, Base, Method, TensorMerge
from mergeloom.methods.ops.compiled_ops import LIBRARY

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}

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
    parser.add_argument("methods", nargs="*", help="names of methods (default: all)")
    parser.add_argument("--inputs", type=int, default=4, help="models, base included")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bf16")
    parser.add_argument("--grains", type=int, default=4, help="size of the tensor in grains")
    parser.add_argument("--row", type=int, default=2048, help="length of a row")
    parser.add_argument("--compiled", action="store_true", help="with compiled loops")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bound_heap()
    print(f"{'method':18} {'passes':>30} {'tally':>7} {'output':>7} {'total':>7}  ns/element")
    for name in arguments.methods or registry.names():
        method = registry.get(name)
        count = arguments.inputs
        if method.maximum is not None:
            count = min(count, method.maximum + (method.base is Base.REQUIRED))
        shape = (GRAIN_ELEMENTS * arguments.grains // arguments.row, arguments.row)
        report(method, shape, count, DTYPES[arguments.dtype], arguments.compiled)


def report(
    method: Method, shape: tuple[int, ...], count: int, dtype: torch.dtype, compiled: bool
) -> None:
    source = torch.Generator().manual_seed(0)
    base = torch.randn(shape, generator=source).mul_(0.02).to(dtype)
    step = [torch.randn(shape, generator=source).mul_(1e-3) for _ in range(count - 1)]
    inputs = [base, *((base.float() + change).to(dtype) for change in step)]
    position = 0 if method.base is Base.REQUIRED else None
    kernel = method.kernel(resolved(method, shape, count, position))
    flat = [tensor.view(-1) for tensor in inputs]
    passes, tally, output = measure(kernel, flat, shape, dtype, compiled)
    merged = count - (position is not None)
    elements = math.prod(shape) * merged
    each = " + ".join(f"{seconds / elements * 1e9:.2f}" for seconds in passes)
    total = (sum(passes) + tally + output) / elements * 1e9
    tallied, put = tally / elements * 1e9, output / elements * 1e9
    print(f"{method.name:18} {each:>30} {tallied:7.2f} {put:7.2f} {total:7.2f}", flush=True)


def resolved(method: Method, shape: tuple[int, ...], count: int, base: int | None) -> TensorMerge:
    def value(name: str, default: Any) -> Any:
        chosen = EXAMPLES.get(name, {})
        given = chosen.get(method.name, chosen.get("*", default))
        if given is REQUIRED:
            raise SystemExit(f"bench_kernels: no example value for '{name}' of '{method.name}'")
        return given

    model = {p.name: value(p.name, p.default) for p in method.model_parameters}
    models = tuple({} if i == base else model for i in range(count))
    settings = {p.name: value(p.name, p.default) for p in method.settings}
    return TensorMerge("layers.0.weight", shape, models, base, settings)


class Widened(Sequence[Tensor]):
    """Inputs that are widened when they are looked at first, as the engine does it."""

    def __init__(self, pieces: list[Tensor], room: Tensor, shape: tuple[int, ...]) -> None:
        self._pieces: list[Tensor | None] = [*pieces]
        self._values = [room[i].view(shape) for i in range(len(pieces))]

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, place: Any) -> Any:
        piece, self._pieces[place] = self._pieces[place], None
        if piece is not None:
            self._values[place].view(-1).copy_(piece)
        return self._values[place]


def measure(
    kernel: Kernel,
    inputs: list[Tensor],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    compiled: bool,
) -> tuple[list[float], float, float]:
    """Seconds of each statistics pass, of the tallies, and of the output pass; best of three."""
    grains = partition(shape, kernel.access)
    loops = LIBRARY.prepare(kernel.loops) if compiled and kernel.loops else None
    scratch = max([kernel.scratch, *(statistic.scratch for statistic in kernel.passes)])
    bench = torch.empty(len(inputs) + scratch + 1, grains.size)
    rounded = torch.empty(grains.size, dtype=dtype)
    noted = kernel.notes_bytes(grains) if loops is not None else 0
    notes = torch.empty(grains.count, noted, dtype=torch.uint8)

    def view(index: int, convert: bool = True) -> tuple[GrainView, tuple[int, ...]]:
        start, count = grains.bounds(index)
        part = (count,)
        if kernel.access is Access.ROWWISE:
            part = (count // grains.row, grains.row)  # type: ignore[assignment]
        pieces = [tensor[start : start + count] for tensor in inputs]
        free = iter(bench[len(inputs) :, :count])
        take = lambda: next(free).view(part)  # noqa: E731
        wide = pieces if dtype is torch.float32 else Widened(pieces, bench[:, :count], part)
        note = notes[index] if noted else None
        stored = pieces.__getitem__ if dtype is not torch.float16 else lambda place: None
        return GrainView(wide, index, start, part, take, loops, False, stored, note), part

    def timed(work: Callable[[int], object]) -> float:
        start = time.perf_counter()
        for index in range(grains.count):
            work(index)
        return time.perf_counter() - start

    best: tuple[list[float], float, float] | None = None
    with torch.inference_mode():
        for _ in range(3):
            statistics: list[Any] = []
            passes = []
            for statistic in kernel.passes:
                into = statistic.start()
                passes.append(
                    timed(lambda i: statistic.update(into, view(i)[0], statistics))  # noqa: B023
                )
                statistics.append(statistic.finish(into, statistics))
            tallies: list[tuple[int, ...]] = []
            tally = 0.0
            if kernel.needs_tally(statistics):

                def count(index: int) -> None:
                    own = kernel.tally(view(index)[0], statistics)  # noqa: B023
                    tallies.append(tuple(map(int, own)))  # noqa: B023

                tally = timed(count)

            def output(index: int) -> None:
                seen, part = view(index)
                out = bench[-1, : math.prod(part)].view(part)
                before = tuple(map(sum, zip(*tallies[:index], strict=True)))  # noqa: B023
                if tallies and not index:  # noqa: B023
                    before = (0,) * len(tallies[0])  # noqa: B023
                kernel.combine(seen, out, statistics, before)  # noqa: B023
                rounded[: out.numel()].copy_(out.view(-1))

            figures = passes, tally, timed(output)
            if best is None or sum(figures[0]) + tally + figures[2] < sum(best[0]) + sum(best[1:]):
                best = figures
    assert best is not None
    return best


if __name__ == "__main__":
    main()
