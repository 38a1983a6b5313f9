"""Divergences of rows against numbers of many more digits."""

from __future__ import annotations

from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergeloom.methods.ops.torch_ops import TorchOps
from tests.methods.support import compiled_ops, elements_of


def divergences(base: torch.Tensor, other: torch.Tensor) -> tuple[list[float], list[float]]:
    """By machine code, and by torch."""
    row = base.shape[1]
    found = compiled_ops().divergences(elements_of(base), elements_of(other), row)
    return found.tolist(), TorchOps(torch.empty(0)).divergences(base, other, row).tolist()


def exact_divergence(base: list[float], other: list[float]) -> Decimal:
    with localcontext(prec=60):
        own = [Decimal(each).exp() for each in base]
        theirs = [Decimal(each).exp() for each in other]
        below, above = sum(own), sum(theirs)
        shares = [(p / below, q / above) for p, q in zip(own, theirs, strict=True)]
        return sum((q * (q / p).ln() for p, q in shares), Decimal())


@given(st.integers(1, 40), st.integers(0, 99), st.sampled_from((1e-3, 0.1, 10.0)))
def test_divergences_agree_with_exact_ones(row: int, seed: int, size: float) -> None:
    source = torch.Generator().manual_seed(seed)
    base = torch.randn(2, row, generator=source)
    other = base + size * torch.randn(2, row, generator=source)
    for number in range(2):
        exact = exact_divergence(base[number].tolist(), other[number].tolist())
        # The terms are as large as the numbers, so that is what rounding is relative to.
        scale = 1 + float(base.abs().max() + other.abs().max())
        for found in divergences(base, other):
            assert found[number] == pytest.approx(float(exact), rel=1e-7, abs=1e-15 * scale)


def test_divergences_of_rows_near_the_largest_float_are_finite() -> None:
    base = torch.full((1, 700), 3e38)
    other = base.clone()
    other[0, 0] = -3e38
    for found in divergences(base, other):
        assert found == [pytest.approx(0.0014296, rel=1e-4)]


@given(st.integers(1, 9), st.integers(1, 5000), st.integers(0, 99))
def test_divergences_of_bfloat16_agree_between_arithmetics(rows: int, row: int, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    base, other = torch.randn(2, rows, row, generator=source).bfloat16()
    found = compiled_ops().divergences(elements_of(base), elements_of(other), row)
    expected = TorchOps(torch.empty(0)).divergences(base.float(), other.float(), row)
    assert torch.allclose(torch.from_numpy(found), expected, rtol=1e-6, atol=1e-12)
