"""Methods that decide element by element what is taken: ram, ramplus_tl, nearswap, arcee_fusion."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergeloom.methods.declare import ParameterError
from tests.methods.drawing import Family, families, family
from tests.methods.support import check_formula, check_walks, kernel_of, run

SHAPE = (40, 11)


@given(families(), st.sampled_from((0.0, 1e-5, 0.05, 0.125)))
def test_ram_agrees_with_the_formula(models: Family, epsilon: float) -> None:
    check_formula("ram", models.all, [{}] * len(models.all), 0, epsilon=epsilon)


@given(families(), st.sampled_from((0.0, 0.05, 0.125)), st.floats(-1, 1), st.floats(0, 3))
def test_ramplus_tl_agrees_with_the_formula(
    models: Family, epsilon: float, r: float, alpha: float
) -> None:
    parameters = [{}] * len(models.all)
    settings = {"epsilon": epsilon, "r": r, "alpha": alpha}
    check_formula("ramplus_tl", models.all, parameters, 0, **settings)


def test_ramplus_tl_amplifies_changes_of_one_model() -> None:
    base = torch.zeros(8)
    first = torch.tensor([1.0, 1, 1, 1, 1, 1, 0, 0])
    second = torch.tensor([0.0, 0, 0, 0, 0, 2, 2, 2])
    kernel = kernel_of("ramplus_tl", (8,), [{}] * 3, base=0, alpha=0.9)
    expected = torch.tensor([1.02] * 5 + [1.5] + [2.1] * 2)
    assert torch.allclose(run(kernel, [base, first, second]), expected)


@given(families(least=1, most=1), st.one_of(st.sampled_from((0.0, 1e-4)), st.floats(0, 0.5)))
def test_nearswap_agrees_with_the_formula(models: Family, t: float) -> None:
    check_formula("nearswap", models.all, [{}, {}], 0, t=t)


@given(families(least=1, most=1), st.booleans())
def test_arcee_fusion_agrees_with_the_formula(models: Family, base_first: bool) -> None:
    inputs, base = (models.all, 0) if base_first else (models.all[::-1], 1)
    result = check_formula("arcee_fusion", inputs, [{}, {}], base)
    taken = (result == models.base) | (result == models.others[0])
    assert bool(taken.all())


def test_arcee_fusion_takes_outliers() -> None:
    models = family((64, 32), 1, 0, torch.float32)
    result = run(kernel_of("arcee_fusion", (64, 32), [{}, {}], base=0), models.all)
    share = float((result == models.others[0]).double().mean())
    assert 0.01 < share < 0.3


@pytest.mark.parametrize("method", ["ram", "ramplus_tl", "nearswap", "arcee_fusion"])
def test_no_change_gives_the_base(method: str) -> None:
    models = family(SHAPE, 1, 0, torch.float32, "equal")
    settings = {"t": 0.1} if method == "nearswap" else {}
    result = run(kernel_of(method, SHAPE, [{}, {}], base=0, **settings), models.all)
    assert torch.equal(result, models.base)


@pytest.mark.parametrize("method", ["sce", "ram", "ramplus_tl", "nearswap", "arcee_fusion"])
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_a_nan_or_infinity_spreads_to_no_other_element(method: str, broken: float) -> None:
    models = family(SHAPE, 1, 3, torch.float32)
    models.others[0][3, 4] = broken
    settings = {"t": 0.1} if method == "nearswap" else {}
    result = check_walks(kernel_of(method, SHAPE, [{}, {}], base=0, **settings), models.all)
    assert int((~torch.isfinite(result)).sum()) <= 1


@pytest.mark.parametrize("method", ["sce", "ram", "ramplus_tl", "nearswap", "arcee_fusion"])
def test_a_tensor_that_the_base_lacks_is_refused(method: str) -> None:
    settings = {"t": 0.1} if method == "nearswap" else {}
    with pytest.raises(ParameterError, match="base model lacks"):
        kernel_of(method, SHAPE, [{}, {}], **settings)
