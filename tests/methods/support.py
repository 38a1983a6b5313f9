"""Runs a kernel on tensors in memory as the engine does: in passes, grain by grain."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from mergeloom.engine.base import grains as grains_module
from mergeloom.engine.base.dtypes import BY_NAME
from mergeloom.engine.base.grains import Access, Grains, partition
from mergeloom.engine.graph.kernel import GrainView, Kernel, Statistic
from mergeloom.engine.memory.elements import Elements
from mergeloom.engine.memory.ledger import Block
from mergeloom.methods import registry
from mergeloom.methods.declare import REQUIRED, Method, TensorMerge
from mergeloom.methods.ops.arithmetic import COMPILED, FUNCTIONS, LIBRARY
from mergeloom.methods.ops.compiled_ops import CompiledOps
from mergeloom.methods.ops.torch_ops import TorchOps
from mergeloom.methods.reference import ReferenceResult, evaluate, mismatches


@dataclass(frozen=True)
class Walk:
    """How a merge is walked: grain size, accumulators, order. Nothing of it may matter."""

    grain: int = 1 << 19
    accumulators: int = 1
    seed: int | None = None
    on_device: bool = False
    memo: bool = False
    forgetful: bool = False
    """Whether memos are lost between the passes."""
    special: bool = False
    """Whether a tensor of one grain has its special kernel, if there is one."""


WALKS = (Walk(64), Walk(64, 3, seed=1), Walk(64, 7, seed=2, memo=True))
ONE_GRAIN = (Walk(), Walk(special=True))
ON_DEVICE = Walk(64, 3, seed=3, on_device=True)


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


class Scratch:
    """Scratch that is full of rubbish, counts what is taken, and is never shared."""

    def __init__(self, make: Callable[[], Any], limit: int) -> None:
        self._make = make
        self._limit = limit
        self._taken = 0

    def take(self) -> Any:
        self._taken += 1
        assert self._taken <= self._limit, "a kernel took more scratch than it declares"
        return self._make()


def rubbish(rows: int, nbytes: int) -> torch.Tensor:
    return torch.randint(0, 256, (rows, nbytes)).byte()


def elements_of(tensor: torch.Tensor) -> Elements:
    """A tensor that is kept alive by others, as machine code sees it."""
    assert tensor.is_contiguous()
    name = str(tensor.dtype).removeprefix("torch.")
    return Elements(tensor.data_ptr(), BY_NAME[name], tensor.numel())


@cache
def functions_of(names: frozenset[str]) -> Mapping[str, Callable[..., Any]]:
    """Machine code, built if need be."""
    LIBRARY.build(names - LIBRARY.built())
    return LIBRARY.open(names)


def compiled_ops(nbytes: int = 1 << 24) -> CompiledOps:
    """All operations in machine code, with scratch memory of ``nbytes``."""
    return CompiledOps(functions_of(FUNCTIONS), Block(nbytes))


def sized_ops(kernel: Kernel, grains: Grains) -> CompiledOps:
    """Machine code with as much scratch as the kernel's uses need."""
    needed = [
        sum(COMPILED.workspace_bytes(use, grains) for use in part.uses)
        for part in (kernel, *kernel.passes)
    ]
    return CompiledOps(functions_of(FUNCTIONS), Block(max(*needed, 1)))


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
        totals = [statistic.init() for _ in range(walk.accumulators)]
        for place, index in enumerate(order()):
            into = totals[place % len(totals)]
            seen = view(index, statistic)
            top = seen.ops.top()
            statistic.update(into, seen, statistics)
            seen.ops.release(top)
        for total in totals:
            statistic.fetch(total)
        if walk.seed is not None:
            chance.shuffle(totals)
        total = totals[0]
        for other in totals[1:]:
            statistic.combine(total, other)
        statistics.append(statistic.finalize(total, statistics))
    return statistics


def run(
    kernel: Kernel, inputs: Sequence[torch.Tensor], walk: Walk = Walk(), torchs: bool = False
) -> torch.Tensor:
    """The kernel's float32 result on ``inputs`` (any floating dtype, one shape).

    Machine code computes it, or torch if ``torchs``.
    """
    shape = tuple(inputs[0].shape)
    grains = cut(shape, kernel.access, walk.grain)
    torchs = torchs or walk.on_device or not kernel.uses
    ops: Any = TorchOps(torch.empty(0), walk.on_device) if torchs else sized_ops(kernel, grains)
    if walk.special and grains.count == 1:
        kernel = kernel.for_one_grain(ops, grains.total)
    raw = () if torchs else (torch.float32, torch.bfloat16)
    flat = [
        tensor.reshape(-1).contiguous() if tensor.dtype in raw else tensor.reshape(-1).float()
        for tensor in inputs
    ]
    untouched = [tensor.clone() for tensor in flat]
    chance = random.Random(walk.seed)
    size = kernel.memo_bytes(grains) if walk.memo and not torchs else 0
    memos = rubbish(grains.count, size) if size else None
    alive: list[torch.Tensor] = []

    def order() -> list[int]:
        indices = list(range(grains.count))
        if walk.seed is not None:
            chance.shuffle(indices)
        return indices

    def array(tensor: torch.Tensor, part: tuple[int, ...]) -> Any:
        return tensor.view(part) if torchs else elements_of(tensor)

    def view(index: int, user: Kernel | Statistic[Any, Any]) -> GrainView:
        start, count = grains.bounds(index)
        part: tuple[int, ...] = (count,)
        if kernel.access is Access.ROWWISE:
            part = (count // grains.row, grains.row)
        elif kernel.access is Access.WHOLE:
            part = shape

        def fresh() -> Any:
            alive.append(torch.full((count,), float("nan")))
            return array(alive[-1], part)

        parts = [array(tensor[start : start + count], part) for tensor in flat]
        take = Scratch(fresh, user.scratch).take
        memo = None if memos is None else elements_of(memos[index])
        state = walk.on_device, memo, (), shape
        return GrainView(parts, index, start, part, take, ops, *state)

    with torch.inference_mode():
        statistics = gathered(kernel, walk, view, order, chance)
        if walk.forgetful and memos is not None:
            memos.zero_()
        before: dict[int, tuple[int, ...]] = {}
        if kernel.needs_scan(statistics):
            own = {
                i: tuple(map(int, kernel.scan_value(view(i, kernel), statistics))) for i in order()
            }
            running = tuple(0 for _ in own[0])
            for index in range(grains.count):
                before[index] = running
                running = tuple(a + b for a, b in zip(running, own[index], strict=True))
        result = torch.full((grains.total,), float("nan"))
        for index in order():
            start, count = grains.bounds(index)
            seen, top = view(index, kernel), ops.top()
            out = array(result[start : start + count], seen.shape)
            kernel.apply(seen, out, statistics, before.get(index, ()))
            ops.release(top)
    for tensor, copy in zip(flat, untouched, strict=True):
        assert torch.equal(tensor.view(torch.uint8), copy.view(torch.uint8)), "inputs were changed"
    return result.view(shape)


def check_walks(kernel: Kernel, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """The result of machine code, having checked that order and grouping change no bit of it.

    Nor of what torch gives, which may be another by its last bits.
    """
    results = [run(kernel, inputs, walk) for walk in WALKS]
    torchs = [run(kernel, inputs, walk, torchs=True) for walk in (*WALKS[:2], ON_DEVICE)]
    whole = [run(kernel, inputs, walk) for walk in ONE_GRAIN]
    for first, *others in (results, torchs, whole):
        for other in others:
            assert torch.equal(first.view(torch.int32), other.view(torch.int32))
    return results[0]


def check_formula(
    method: str,
    inputs: Sequence[torch.Tensor],
    models: Sequence[Mapping[str, Any]],
    base: int | None = None,
    **options: Any,
) -> torch.Tensor:
    """The result of a method on ``inputs``, having checked that it is that of the formula, rounded
    to the dtype of the first, however it is walked; ``options`` as of `tensor_merge`."""
    merge = tensor_merge(method, inputs[0].shape, models, base, **options)
    result = check_walks(registry.get(method).kernel(merge), inputs)
    answer = evaluate(method, merge, inputs)
    assert answer is not None
    assert_close(result.to(inputs[0].dtype), answer)
    return result


def assert_close(result: torch.Tensor, answer: ReferenceResult) -> None:
    """``result`` is ``answer``, rounded to its dtype, but for noise."""
    wrong = mismatches(result, answer)
    assert not bool(wrong.any()), (
        f"{int(wrong.sum())} of {wrong.numel()} differ: {result[wrong][:5]} "
        f"{answer.value[wrong][:5]}"
    )


SPECIAL = torch.tensor([0.0, -0.0, 1.0, -1.0, 1e-40, -1e-40, 3e38, float("inf"), float("nan")])


def torch_ops() -> TorchOps:
    return TorchOps(torch.empty(0))


def vectors(count: int, elements: int, seed: int, ties: bool) -> list[torch.Tensor]:
    """Random numbers of many magnitudes; with ``ties`` few different ones, and special ones."""
    source = torch.Generator().manual_seed(seed)
    result = []
    for _ in range(count):
        vector = torch.randn(elements, generator=source)
        vector *= torch.exp2(torch.randint(-6, 7, (elements,), generator=source).float())
        if ties:
            vector = (vector * 2).round() / 2
            places = torch.randint(0, max(elements, 1), (elements // 9,), generator=source)
            vector[places] = SPECIAL[places % len(SPECIAL)]
        result.append(vector)
    return result


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal bit for bit, but for which NaN a NaN is."""
    broken = torch.isnan(one) & torch.isnan(other)
    return bool((one.view(torch.int32).eq(other.view(torch.int32)) | broken).all())
