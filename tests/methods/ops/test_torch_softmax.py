"""The exponential and the divergences against numbers of many more digits."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergeloom.methods.ops.torch_exp import exponential_
from mergeloom.methods.ops.torch_softmax import divergences, native_softmax_sums, softmax_sums


def exponential(*numbers: float) -> list[float]:
    values, powers, rests = torch.empty(3, len(numbers), dtype=torch.float64)
    values.copy_(torch.tensor(numbers, dtype=torch.float64))
    result: list[float] = exponential_(values, powers, rests).tolist()
    return result


@given(st.floats(-707, 0))
def test_exponential(x: float) -> None:
    (found,) = exponential(x)
    with localcontext(prec=50):
        exact = Decimal(x).exp()
        assert abs((Decimal(found) - exact) / exact) < Decimal("4e-16")


def test_exponential_at_the_ends() -> None:
    zero, negative, far, infinite, broken = exponential(
        0.0, -0.0, -1e30, float("-inf"), float("nan")
    )
    assert zero == negative == 1.0
    assert 0.0 < far == infinite < 1e-307
    assert math.isnan(broken)


def exact_divergence(base: list[float], other: list[float]) -> Decimal:
    with localcontext(prec=60):
        own = [Decimal(each).exp() for each in base]
        theirs = [Decimal(each).exp() for each in other]
        below, above = sum(own), sum(theirs)
        shares = [(p / below, q / above) for p, q in zip(own, theirs, strict=True)]
        return sum((q * (q / p).ln() for p, q in shares), Decimal())


@given(st.integers(1, 40), st.integers(0, 99), st.sampled_from((1e-3, 0.1, 10.0)))
def test_divergences(row: int, seed: int, size: float) -> None:
    source = torch.Generator().manual_seed(seed)
    base = torch.randn(2, row, generator=source)
    other = base + size * torch.randn(2, row, generator=source)
    found = divergences(base, other)
    for number in range(2):
        exact = exact_divergence(base[number].tolist(), other[number].tolist())
        # The terms are as large as the numbers, so that is what rounding is relative to.
        scale = 1 + float(base.abs().max() + other.abs().max())
        assert float(found[number]) == pytest.approx(float(exact), rel=1e-13, abs=1e-15 * scale)


@given(st.integers(1, 5), st.integers(1, 2000), st.integers(0, 99))
def test_sums_as_devices_take_them(rows: int, row: int, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    base, other = torch.randn(2, rows, row, generator=source)
    found, expected = native_softmax_sums(base, other), softmax_sums(base, other)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_rows_far_from_zero() -> None:
    base = torch.full((1, 700), 3e38)
    other = base.clone()
    other[0, 0] = -3e38
    assert float(divergences(base, other)) == pytest.approx(0.0014296, rel=1e-4)
