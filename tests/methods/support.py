"""Runs a kernel on tensors in memory as the engine does: in passes, grain by grain."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from mergeloom.engine.base import grains as grains_module
from mergeloom.engine.base.grains import Access, Grains, partition
from mergeloom.engine.graph.kernel import AS_STORED, GrainView, Kernel, Statistic
from mergeloom.methods import registry
from mergeloom.methods.declare import REQUIRED, Method, TensorMerge
from mergeloom.methods.ops.compiled_ops import LIBRARY, Loops

NOISE = 2.0**-21
"""Relative rounding of a short chain of float32 operations."""


@dataclass(frozen=True)
class Walk:
    """How a merge is walked: grain size, accumulators, order. Nothing of it may matter."""

    grain: int = 1 << 19
    accumulators: int = 1
    seed: int | None = None
    on_device: bool = False
    notes: bool = False
    forgetful: bool = False
    """Whether notes are lost between the passes."""


WALKS = (Walk(64), Walk(64, 3, seed=1), Walk(64, 7, seed=2), Walk(64, 3, seed=3, on_device=True))


def tensor_merge(
    method: str | Method,
    shape: Sequence[int],
    models: Sequence[Mapping[str, Any]],
    base: int | None = None,
    seed: int = 0,
    tensor: str = "layers.0.weight",
    **settings: Any,
) -> TensorMerge:
    """Resolved parameters as a planner hands them over: checked, with defaults filled in."""
    method = registry.get(method) if isinstance(method, str) else method

    def resolve(parameters: Any, given: Mapping[str, Any], what: str) -> dict[str, Any]:
        assert set(given) <= {p.name for p in parameters}, f"unknown {what}: {given}"
        result = {}
        for parameter in parameters:
            value = given.get(parameter.name, parameter.default)
            assert value is not REQUIRED, f"{what} lacks {parameter.name}"
            result[parameter.name] = parameter.check(value)
        return result

    resolved = [
        {} if i == base else resolve(method.model_parameters, given, f"model {i}")
        for i, given in enumerate(models)
    ]
    return TensorMerge(
        tensor,
        tuple(shape),
        tuple(resolved),
        base,
        resolve(method.settings, {k.rstrip("_"): v for k, v in settings.items()}, "settings"),
        seed,
    )


def kernel_of(method: str | Method, *args: Any, **kwargs: Any) -> Kernel:
    found = registry.get(method) if isinstance(method, str) else method
    return found.kernel(tensor_merge(found, *args, **kwargs))


class Bench:
    """Scratch that is full of rubbish, counts what is taken, and is never shared."""

    def __init__(self, shape: Sequence[int], limit: int) -> None:
        self._shape = tuple(shape)
        self._limit = limit
        self._taken = 0

    def take(self) -> torch.Tensor:
        self._taken += 1
        assert self._taken <= self._limit, "a kernel took more scratch than it declares"
        return torch.full(self._shape, float("nan"))


def rubbish(rows: int, nbytes: int) -> torch.Tensor:
    return torch.randint(0, 256, (rows, nbytes)).byte()


@cache
def loops_of(names: frozenset[str]) -> Loops:
    """The compiled loops with these names, built if need be."""
    found = LIBRARY.prepare(names)
    assert isinstance(found, Loops)
    return found


class Hiding(Sequence[torch.Tensor]):
    """Inputs, of which some are not there as float32."""

    def __init__(self, tensors: Sequence[torch.Tensor], hidden: Sequence[bool]) -> None:
        self._tensors = tensors
        self._hidden = hidden

    def __len__(self) -> int:
        return len(self._tensors)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        assert not self._hidden[place], "a kernel looks at an input that it says it does not need"
        return self._tensors[place]


def cut(shape: tuple[int, ...], access: Access, grain: int) -> Grains:
    previous = grains_module.GRAIN_ELEMENTS
    grains_module.GRAIN_ELEMENTS = grain
    try:
        return partition(shape, access)
    finally:
        grains_module.GRAIN_ELEMENTS = previous


def gathered(
    kernel: Kernel,
    walk: Walk,
    view: Callable[[int, Statistic[Any, Any]], GrainView],
    order: Callable[[], list[int]],
    chance: random.Random,
) -> list[Any]:
    """The results of all statistics of a kernel."""
    statistics: list[Any] = []
    for statistic in kernel.passes:
        totals = [statistic.start() for _ in range(walk.accumulators)]
        for place, index in enumerate(order()):
            into = totals[place % len(totals)]
            statistic.update(into, view(index, statistic), statistics)
        if walk.on_device:
            for total in totals:
                statistic.fetch(total)
        if walk.seed is not None:
            chance.shuffle(totals)
        total = totals[0]
        for other in totals[1:]:
            statistic.merge(total, other)
        statistics.append(statistic.finish(total, statistics))
    return statistics


def run(
    kernel: Kernel, inputs: Sequence[torch.Tensor], walk: Walk = Walk(), compiled: bool = False
) -> torch.Tensor:
    """The kernel's float32 result on ``inputs`` (any floating dtype, one shape)."""
    shape = tuple(inputs[0].shape)
    loops = loops_of(kernel.loops) if compiled and kernel.loops and not walk.on_device else None
    grains = cut(shape, kernel.access, walk.grain)
    flat = [tensor.reshape(-1).to(torch.float32) for tensor in inputs]
    untouched = [tensor.clone() for tensor in flat]
    chance = random.Random(walk.seed)
    noted = kernel.notes_bytes(grains) if walk.notes and loops is not None else 0
    notes = rubbish(grains.count, noted) if noted else None

    def order() -> list[int]:
        indices = list(range(grains.count))
        if walk.seed is not None:
            chance.shuffle(indices)
        return indices

    def view(index: int, user: Kernel | Statistic[Any, Any]) -> GrainView:
        start, count = grains.bounds(index)
        part: tuple[int, ...] = (count,)
        if kernel.access is Access.ROWWISE:
            part = (count // grains.row, grains.row)
        elif kernel.access is Access.WHOLE:
            part = shape
        parts = [tensor[start : start + count].view(part) for tensor in flat]
        few = None if loops is None else user.looped_scratch
        take = Bench(part, user.scratch if few is None else few).take
        dtypes = [dtype.torch for dtype in AS_STORED]
        hidden = [few is not None and tensor.dtype in dtypes for tensor in inputs]

        def stored(place: int) -> torch.Tensor | None:
            if inputs[place].dtype not in dtypes:
                return None
            return inputs[place].reshape(-1)[start : start + count]

        seen, on_device = Hiding(parts, hidden), walk.on_device
        note = None if notes is None else notes[index]
        return GrainView(seen, index, start, part, take, loops, on_device, stored, note)

    with torch.inference_mode():
        statistics = gathered(kernel, walk, view, order, chance)
        if walk.forgetful and notes is not None:
            notes.zero_()
        before: dict[int, tuple[int, ...]] = {}
        if kernel.needs_tally(statistics):
            own = {i: tuple(map(int, kernel.tally(view(i, kernel), statistics))) for i in order()}
            running = tuple(0 for _ in own[0])
            for index in range(grains.count):
                before[index] = running
                running = tuple(a + b for a, b in zip(running, own[index], strict=True))
        result = torch.full((grains.total,), float("nan"))
        for index in order():
            start, count = grains.bounds(index)
            seen = view(index, kernel)
            out = result[start : start + count].view(seen.shape)
            kernel.combine(seen, out, statistics, before.get(index, ()))
    for tensor, copy in zip(flat, untouched, strict=True):
        assert torch.equal(tensor.view(torch.int32), copy.view(torch.int32)), "inputs were changed"
    return result.view(shape)


def check_walks(kernel: Kernel, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """The result, having checked that order and grouping do not change a bit of it."""
    results = [run(kernel, inputs, walk) for walk in WALKS]
    for other in results[1:]:
        assert torch.equal(results[0].view(torch.int32), other.view(torch.int32))
    return results[0]


def assert_close(
    result: torch.Tensor,
    expected: torch.Tensor,
    scale: torch.Tensor,
    dtype: torch.dtype = torch.float32,
    either: torch.Tensor | None = None,
) -> None:
    """``result``, rounded to ``dtype``, is ``expected`` (float64) within half an ulp and noise.

    ``scale`` bounds the magnitudes that were added up. ``either`` marks elements that are not
    looked at: a decision there hangs on the last bit.
    """
    rounded = result.to(dtype).to(torch.float64)
    noise = scale * NOISE + 1e-42  # products of float32 underflow there
    wrong = (rounded - expected).abs() > noise
    if dtype is not torch.float32:
        info = torch.finfo(dtype)
        exponent = torch.floor(torch.log2((expected.abs() + noise).clamp_min(info.tiny)))
        tolerance = noise + torch.exp2(exponent) * info.eps * 0.5000001
        wrong = (rounded - expected).abs() > tolerance
        wrong &= expected.abs() + noise < info.max  # otherwise it may overflow
    wrong |= torch.isnan(rounded) != torch.isnan(expected)
    if either is not None:
        wrong &= ~either
    assert not bool(wrong.any()), (
        f"{int(wrong.sum())} of {wrong.numel()} differ: {rounded[wrong][:5]} {expected[wrong][:5]}"
    )
