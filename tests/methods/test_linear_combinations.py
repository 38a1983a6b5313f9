"""Passthrough, linear and the methods whose coefficients follow from the Gram matrix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.kernel import Copy
from methods.linear_combination import LinearCombination
from methods.method import ParameterError
from tests.methods import oracle
from tests.methods.drawing import Family, families, family, positive, some, weights
from tests.methods.support import assert_close, check_walks, kernel_of, run

SHAPE = (3, 5)


def test_passthrough_without_a_scale_copies() -> None:
    assert isinstance(kernel_of("passthrough", SHAPE, [{}]), Copy)
    assert isinstance(kernel_of("passthrough", SHAPE, [{"scale": 1}]), Copy)


def test_passthrough_scales() -> None:
    (tensor,) = family(SHAPE, 1, 0, torch.float32).others
    result = run(kernel_of("passthrough", SHAPE, [{"scale": -0.5}]), [tensor])
    assert torch.equal(result, tensor * -0.5)


@given(st.data(), families(), st.booleans())
def test_linear(data: st.DataObject, models: Family, normalize: bool) -> None:
    strategy = positive if normalize else weights
    chosen = some(data.draw, strategy, len(models.all))
    parameters = [{"weight": weight} for weight in chosen]
    kernel = kernel_of("linear", models.base.shape, parameters, normalize=normalize)
    answer = oracle.linear(models.all, chosen, normalize)
    assert_close(check_walks(kernel, models.all), answer.value, answer.scale, models.base.dtype)


@pytest.mark.parametrize("chosen", [(0.0, 0.0), (1.0, -1.0), (0.1, 0.2, -0.3)])
def test_weights_that_cancel_cannot_be_normalised(chosen: tuple[float, ...]) -> None:
    parameters = [{"weight": weight} for weight in chosen]
    with pytest.raises(ParameterError, match="sum to zero"):
        kernel_of("linear", SHAPE, parameters)
    assert isinstance(kernel_of("linear", SHAPE, parameters, normalize=False), LinearCombination)


@given(families(least=1, most=1), st.one_of(st.floats(0, 1), st.floats(-1, 2)), st.booleans())
def test_slerp(models: Family, t: float, base_first: bool) -> None:
    inputs = models.all if base_first else models.all[::-1]
    base = 0 if base_first else 1
    kernel = kernel_of("slerp", models.base.shape, [{}, {}], base=base, t=t)
    answer = oracle.slerp(*models.all, t)
    assert_close(check_walks(kernel, inputs), answer.value, answer.scale, models.base.dtype)


@pytest.mark.parametrize("t", [0.0, 1.0])
def test_slerp_ends_at_its_inputs(t: float) -> None:
    a, b = torch.randn(SHAPE), torch.randn(SHAPE)
    result = run(kernel_of("slerp", SHAPE, [{}, {}], base=0, t=t), [a, b])
    assert torch.equal(result, b if t else a)


@pytest.mark.parametrize("a", [torch.zeros(SHAPE), torch.ones(SHAPE)])
@pytest.mark.parametrize("b", [torch.zeros(SHAPE), torch.ones(SHAPE), -torch.ones(SHAPE)])
def test_slerp_of_degenerate_directions_is_finite(a: torch.Tensor, b: torch.Tensor) -> None:
    kernel = kernel_of("slerp", SHAPE, [{}, {}], base=0, t=0.25)
    answer = oracle.slerp(a, b, 0.25)
    assert_close(run(kernel, [a, b]), answer.value, answer.scale)


@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_one_input_is_copied(method: str) -> None:
    settings = {"t": 0.5} if method == "slerp" else {}
    models = [{"weight": 0.5}] if method == "linear" else [{}]
    assert isinstance(kernel_of(method, SHAPE, models, **settings), Copy)
