"""The formulas that --check goes by agree with the kernels, and see when something is wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mergeloom.methods import reference as plain
from mergeloom.methods import registry
from tests.methods.support import kernel_of, run, tensor_merge

SHAPES: list[tuple[int, ...]] = [(40, 30), (5, 7, 11), (129,), ()]
CASES: list[tuple[str, int, dict[str, Any], dict[str, Any]]] = [
    ("linear", 3, {"weight": 0.4}, {}),
    ("linear", 3, {"weight": 0.4}, {"normalize": False}),
    ("passthrough", 1, {}, {}),
    ("passthrough", 1, {"scale": -1.5}, {}),
    ("slerp", 2, {}, {"t": 0.3}),
    ("slerp", 2, {}, {"t": 1.0}),
    ("nuslerp", 3, {"weight": 0.7}, {}),
    ("nuslerp", 2, {"weight": 0.7}, {}),
    ("nuslerp", 3, {"weight": 0.7}, {"nuslerp_flatten": False}),
    ("nuslerp", 3, {"weight": 0.7}, {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
    ("multislerp", 4, {"weight": 1.0}, {}),
    ("karcher", 3, {}, {}),
    ("model_stock", 4, {}, {}),
    ("model_stock", 4, {}, {"filter_wise": True}),
    ("task_arithmetic", 3, {"weight": 0.6}, {"lambda_": 0.5, "normalize": True}),
    ("ties", 4, {"weight": 0.6, "density": 0.3}, {}),
    ("ties", 4, {"weight": -0.6, "density": 1.5}, {"normalize": False, "rescale": True}),
    ("dare_linear", 3, {"weight": 0.6, "density": 0.3}, {}),
    ("dare_ties", 3, {"weight": 0.6, "density": 0.3}, {"rescale": False}),
    ("breadcrumbs", 3, {"weight": 0.6, "density": 0.5, "gamma": 0.1}, {}),
    ("breadcrumbs_ties", 3, {"weight": 0.6, "density": 0.5, "gamma": 0.1}, {}),
    ("della", 3, {"weight": 0.6, "density": 0.5, "epsilon": 0.2}, {}),
    ("della_linear", 3, {"weight": 0.6, "density": 0.5, "epsilon": 0.2}, {"lambda_": 2.0}),
    ("sce", 4, {}, {}),
    ("sce", 4, {}, {"select_topk": 0.3}),
    ("ram", 3, {}, {}),
    ("ramplus_tl", 3, {}, {}),
    ("nearswap", 2, {}, {"t": 0.05}),
    ("arcee_fusion", 2, {}, {}),
]
"""Method, number of inputs with the base, parameters of each model, settings."""

WITHOUT_BASE = {"linear", "passthrough", "karcher"}


def test_every_method_has_a_formula() -> None:
    assert {case[0] for case in CASES} == set(registry.names())
    assert all(plain.has_reference(registry.get(name)) for name in registry.names())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]} {case[2]} {case[3]}")
def test_formulas_agree_with_kernels(
    case: tuple[str, int, dict[str, Any], dict[str, Any]], shape: tuple[int, ...]
) -> None:
    method, count, parameters, settings = case
    generator = torch.Generator().manual_seed(count)
    first = torch.randn(shape, generator=generator)
    inputs = [first.bfloat16()]
    for number in range(count - 1):
        other = first + 0.3 * torch.randn(shape, generator=generator)
        inputs.append(other.to((torch.float16, torch.float32)[number % 2]))
    has_base = method not in WITHOUT_BASE and (method, count) != ("nuslerp", 2)
    base = 0 if has_base else None
    models = [{} if number == base else parameters for number in range(count)]
    result = run(kernel_of(method, shape, models, base, 7, **settings), inputs)
    answer = plain.evaluate(
        method, tensor_merge(method, shape, models, base, 7, **settings), inputs
    )
    assert answer is not None
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert not bool(plain.mismatches(result.to(dtype), answer).any())
    if answer.undecided is None:
        spoiled = result.clone().reshape(-1)
        spoiled[-1] += 1e-3 * (1 + abs(float(spoiled[-1])))
        assert int(plain.mismatches(spoiled.view(shape), answer).sum()) == 1


def test_methods_of_others_have_no_formula() -> None:
    class Linear(type(registry.get("linear"))):
        """A method of another package, under a name that is known."""

    assert not plain.has_reference(Linear())
