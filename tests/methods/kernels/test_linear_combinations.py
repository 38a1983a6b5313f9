"""Passthrough, linear and the methods whose coefficients follow from the Gram matrix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergeloom.engine.base.errors import RunError
from mergeloom.engine.graph.kernel import Copy
from mergeloom.methods.declare import ParameterError
from mergeloom.methods.kernels.linear_combination import LinearCombination
from tests.methods.drawing import Family, families, family, positive, some, weights
from tests.methods.support import check_formula, kernel_of, run

SHAPE = (3, 5)


def test_passthrough_without_a_scale_copies() -> None:
    assert isinstance(kernel_of("passthrough", SHAPE, [{}]), Copy)
    assert isinstance(kernel_of("passthrough", SHAPE, [{"scale": 1}]), Copy)


def test_passthrough_multiplies_by_its_scale() -> None:
    (tensor,) = family(SHAPE, 1, 0, torch.float32).others
    result = run(kernel_of("passthrough", SHAPE, [{"scale": -0.5}]), [tensor])
    assert torch.equal(result, tensor * -0.5)


@given(st.data(), families(), st.booleans())
def test_linear_agrees_with_the_formula(
    data: st.DataObject, models: Family, normalize: bool
) -> None:
    strategy = positive if normalize else weights
    chosen = some(data.draw, strategy, len(models.all))
    parameters = [{"weight": weight} for weight in chosen]
    check_formula("linear", models.all, parameters, normalize=normalize)


@pytest.mark.parametrize("chosen", [(0.0, 0.0), (1.0, -1.0), (0.1, 0.2, -0.3)])
def test_weights_that_cancel_cannot_be_normalised(chosen: tuple[float, ...]) -> None:
    parameters = [{"weight": weight} for weight in chosen]
    with pytest.raises(ParameterError, match="sum to zero"):
        kernel_of("linear", SHAPE, parameters)
    assert isinstance(kernel_of("linear", SHAPE, parameters, normalize=False), LinearCombination)


@given(families(least=1, most=1), st.one_of(st.floats(0, 1), st.floats(-1, 2)), st.booleans())
def test_slerp_agrees_with_the_formula(models: Family, t: float, base_first: bool) -> None:
    inputs = models.all if base_first else models.all[::-1]
    base = 0 if base_first else 1
    check_formula("slerp", inputs, [{}, {}], base, t=t)


@pytest.mark.parametrize("t", [0.0, 1.0])
def test_slerp_ends_at_its_inputs(t: float) -> None:
    a, b = torch.randn(SHAPE), torch.randn(SHAPE)
    result = run(kernel_of("slerp", SHAPE, [{}, {}], base=0, t=t), [a, b])
    assert torch.equal(result, b if t else a)


@pytest.mark.parametrize("a", [torch.zeros(SHAPE), torch.ones(SHAPE)])
@pytest.mark.parametrize("b", [torch.zeros(SHAPE), torch.ones(SHAPE), -torch.ones(SHAPE)])
def test_slerp_of_degenerate_directions_is_finite(a: torch.Tensor, b: torch.Tensor) -> None:
    assert bool(check_formula("slerp", [a, b], [{}, {}], 0, t=0.25).isfinite().all())


@given(
    st.data(),
    families(least=2, most=2),
    st.booleans(),
    st.sampled_from(("flat", "rows", "columns")),
)
def test_nuslerp_agrees_with_the_formula(
    data: st.DataObject, models: Family, with_base: bool, mode: str
) -> None:
    chosen = some(data.draw, weights, 2)
    parameters = [{"weight": weight} for weight in chosen]
    settings = {"nuslerp_flatten": mode == "flat", "nuslerp_row_wise": mode == "columns"}
    if with_base:
        check_formula("nuslerp", models.all, [{}, *parameters], 0, **settings)
    else:
        check_formula("nuslerp", models.others, parameters, **settings)


@given(st.data(), families(least=2, most=4), st.booleans(), st.booleans())
def test_multislerp_agrees_with_the_formula(
    data: st.DataObject, models: Family, with_base: bool, normalize: bool
) -> None:
    chosen = some(data.draw, positive if normalize else weights, len(models.others))
    parameters = [{"weight": weight} for weight in chosen]
    inputs = models.all if with_base else models.others
    if with_base:
        parameters.insert(0, {})
    try:
        check_formula(
            "multislerp", inputs, parameters, 0 if with_base else None, normalize_weights=normalize
        )
    except RunError:
        assert len(chosen) > 2


def test_nuslerp_of_one_model_on_a_base_is_the_model() -> None:
    """Where one of the two lacks the tensor, there is nothing to interpolate."""
    base, other = torch.randn(2, *SHAPE)
    result = run(kernel_of("nuslerp", SHAPE, [{}, {"weight": 0.3}], base=0), [base, other])
    assert torch.equal(result, other)


def test_multislerp_of_equal_models_whose_weights_cancel_is_zero() -> None:
    a = torch.randn(SHAPE)
    parameters = [{"weight": 1.0}, {"weight": -1.0}]
    kernel = kernel_of("multislerp", SHAPE, parameters, normalize_weights=False)
    assert not run(kernel, [a, a]).any()
    assert torch.allclose(run(kernel, [a, 3 * a]), -2 * a)


def test_multislerp_of_opposite_directions() -> None:
    a = torch.randn(SHAPE)
    parameters = [{"weight": 1.0}, {"weight": 1.0}]
    result = run(kernel_of("multislerp", SHAPE, parameters), [a, -2 * a])
    assert torch.allclose(result, -0.5 * a)
    parameters.append({"weight": 0.0})
    kernel = kernel_of("multislerp", SHAPE, parameters, tensor="w")
    with pytest.raises(RunError, match="'w': the weighted directions cancel"):
        run(kernel, [a, -2 * a, a])


@given(families(least=2, most=4), st.integers(0, 12))
def test_karcher_agrees_with_the_formula(models: Family, steps: int) -> None:
    check_formula("karcher", models.others, [{}] * len(models.others), max_iter=steps)


def test_karcher_of_nearly_opposite_directions() -> None:
    one = torch.tensor([-9.3369e-01, -1.0000e04, -1.4343e00, 1.1036e00])
    other = torch.tensor([-0.9960, 315.3181, -1.6037, -1.4596])
    result = check_formula("karcher", [one, other], [{}] * 2, max_iter=0)
    assert float((result[1] - one[1]).abs()) > 5000  # so that something is compared


def test_karcher_of_degenerate_directions() -> None:
    a, zero = torch.randn(SHAPE), torch.zeros(SHAPE)
    kernel = kernel_of("karcher", SHAPE, [{}, {}])
    assert torch.allclose(run(kernel, [a, -2 * a]), 1.5 * a)
    assert torch.allclose(run(kernel, [a, zero]), 0.5 * a)
    assert not run(kernel, [zero, zero]).any()
    assert torch.allclose(run(kernel_of("karcher", SHAPE, [{}, {}], tol=0.0), [a, a]), a)


@given(families(least=2, most=4), st.booleans())
def test_model_stock_agrees_with_the_formula(models: Family, filter_wise: bool) -> None:
    check_formula("model_stock", models.all, [{}] * len(models.all), 0, filter_wise=filter_wise)


def test_model_stock_needs_two_others() -> None:
    with pytest.raises(ParameterError, match="two models"):
        kernel_of("model_stock", SHAPE, [{}, {}], base=0)


def test_model_stock_of_opposite_changes_is_the_base() -> None:
    base, step = torch.zeros(SHAPE), torch.randn(SHAPE)
    for filter_wise in (False, True):
        kernel = kernel_of("model_stock", SHAPE, [{}] * 3, base=0, filter_wise=filter_wise)
        assert not run(kernel, [base, base + step, base - step]).any()


def test_one_input_is_copied() -> None:
    assert isinstance(kernel_of("linear", SHAPE, [{"weight": 0.5}]), Copy)
