"""Kernels on a device: everything they allocate lies there, and nothing makes it wait.

Nothing is computed here: tensors of torch's device "meta" have no elements. So whatever must be
known to go on fails, and what mixes them with others is found by looking at every operation.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mergeloom.engine.base.grains import Access
from mergeloom.engine.graph.kernel import GrainView, Kernel
from mergeloom.methods import registry
from mergeloom.methods.declare import Base
from mergeloom.methods.ops.torch_ops import TorchOps
from scripts.bench.kernels import resolved
from tests.methods.support import Scratch

SHAPE = (6, 40)
DEVICE = "meta"
VARIANTS = [
    *((name, {}) for name in registry.names() if name != "passthrough"),
    ("della", {"rescale": False}),
    ("nuslerp", {"nuslerp_flatten": False}),
    ("nuslerp", {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
    ("model_stock", {"filter_wise": True}),
    ("ties", {"rescale": True}),
    ("sce", {"select_topk": 0.3}),
]


class OneDevice(TorchDispatchMode):
    """Fails where an operation takes tensors of two devices, but for copies that nobody waits for.

    Without ``float64`` it also fails where there are float64 numbers on the device.
    """

    def __init__(self, float64: bool) -> None:
        super().__init__()
        self._float64 = float64

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors if tensor.dim()}
        copies = func.name() in ("aten::_to_copy", "aten::copy_")
        assert len(devices) < 2 or copies, f"{func.name()} with tensors on {devices}"
        result = func(*args, **(kwargs or {}))
        if copies and result.device.type == DEVICE and args[-1].device.type == "cpu":
            assert (kwargs or {}).get("non_blocking"), "a copy to the device that is waited for"
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == DEVICE:
                assert self._float64 or leaf.dtype is not torch.float64, func.name()
        return result


def kernel_of(
    name: str, settings: dict[str, Any], shape: tuple[int, ...] = SHAPE
) -> tuple[Kernel, int]:
    """The kernel of a method with usual parameters, and how many inputs it has."""
    method = registry.get(name)
    count = 4 if method.maximum is None else method.maximum + (method.base is Base.REQUIRED)
    base = 0 if method.base is Base.REQUIRED else None
    merge = resolved(method, shape, count, base)
    assert settings.keys() <= merge.settings.keys()
    merge = type(merge)(
        merge.tensor, shape, merge.models, base, {**merge.settings, **settings}, merge.seed
    )
    return method.kernel(merge), count


def view(kernel: Kernel, count: int, device: str, limit: int) -> GrainView:
    shape = SHAPE if kernel.access is not Access.ELEMENTWISE else (math.prod(SHAPE),)
    source = torch.Generator().manual_seed(1)
    base = torch.randn(shape, generator=source)
    made = [base + torch.randn(shape, generator=source) for _ in range(count)]
    inputs = [vector.to(device, non_blocking=True) for vector in made]
    take = Scratch(lambda: torch.empty(shape, device=device), limit).take
    ops = TorchOps(torch.empty(0, device=device), device != "cpu")
    return GrainView(inputs, 0, 0, shape, take, ops, ops.on_device)


@pytest.mark.parametrize(("name", "settings"), VARIANTS)
def test_kernels_use_only_their_device_and_do_not_wait_for_it(name: str, settings: Any) -> None:
    kernel, count = kernel_of(name, settings)
    statistics: list[Any] = []
    for statistic in kernel.passes:
        total = statistic.init()
        statistic.update(total, view(kernel, count, "cpu", statistic.scratch), statistics)
        statistic.fetch(total)
        with OneDevice(statistic.uses_float64):
            into = statistic.init()
            grain = view(kernel, count, DEVICE, statistic.scratch)
            statistic.update(into, grain, statistics)
        statistics.append(statistic.finalize(total, statistics))
    before: tuple[int, ...] = ()
    if kernel.needs_scan(statistics):
        own = kernel.scan_value(view(kernel, count, "cpu", kernel.scratch), statistics)
        before = (0,) * len(own)
        with OneDevice(kernel.uses_float64):
            kernel.scan_value(view(kernel, count, DEVICE, kernel.scratch), statistics)
    with OneDevice(kernel.uses_float64):
        grain = view(kernel, count, DEVICE, kernel.scratch)
        out = torch.empty_like(grain.inputs[0])
        kernel.apply(grain, out, statistics, before)
        assert out.device.type == DEVICE


def test_the_methods_that_need_no_double_precision_say_so() -> None:
    """So that devices without it can run them."""
    for name in ("linear", "task_arithmetic", "ties", "breadcrumbs_ties", "nearswap", "ram", "sce"):
        kernel, _ = kernel_of(name, {})
        assert kernel.uses_float64 == (name == "sce"), name
