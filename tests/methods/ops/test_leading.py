"""The closest matrix of a rank, by machine code and by torch, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mergeloom.methods.ops.torch_ops import TorchOps
from tests.methods.support import compiled_ops, elements_of

SHAPES = [(5, 9), (9, 5), (1, 7), (7, 1), (64, 200), (200, 64), (70, 70)]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def closest(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


def both(
    compiled: bool, shape: tuple[int, int], rank: int, operation: str, *given: Any
) -> torch.Tensor:
    """The product of the two factors, which are checked to have the same lengths."""
    shapes = (rank, shape[1]), (shape[0], rank)
    down, up = (torch.full(each, float("nan")) for each in shapes)
    ops: Any = compiled_ops() if compiled else TorchOps(torch.empty(0))
    getattr(ops, operation)(
        *given, shape, rank, *(elements_of(each) if compiled else each for each in (down, up))
    )
    lengths = down.square().sum(1)
    torch.testing.assert_close(lengths, up.square().sum(0), rtol=1e-4, atol=0)
    return up.double() @ down.double()


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_leading_factors_of_a_matrix_are_the_closest(
    shape: tuple[int, int], compiled: bool
) -> None:
    for rank in (1, 3, 8):
        matrix = drawn(*shape)
        given = elements_of(matrix) if compiled else matrix
        found = both(compiled, shape, rank, "leading_of_matrix", given)
        torch.testing.assert_close(found, closest(matrix, rank), rtol=0, atol=2e-6 * shape[0])


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_leading_factors_of_a_product_are_the_closest(
    shape: tuple[int, int], compiled: bool
) -> None:
    ranks, coefficients = (3, 1, 6), (0.5, -2.0, 1.0)
    downs = [drawn(rank, shape[1], seed=rank) for rank in ranks]
    ups = [drawn(shape[0], rank, seed=rank + 1).bfloat16() for rank in ranks]
    downs[1] *= 1e-4  # rows of very different lengths
    ups[1] *= 1e4
    scaled = [c * up.double() for c, up in zip(coefficients, ups, strict=True)]
    whole = torch.cat(scaled, dim=1) @ torch.cat(downs).double()
    given = [[elements_of(t) if compiled else t for t in each] for each in (downs, ups)]
    for rank in (2, 12):
        found = both(compiled, shape, rank, "leading_of_product", *given, coefficients)
        close = 1e-6 * float(whole.abs().max())
        torch.testing.assert_close(found, closest(whole, rank), rtol=0, atol=close)


@pytest.mark.parametrize("compiled", [True, False])
def test_leading_factors_of_degenerate_matrices_are_the_closest(compiled: bool) -> None:
    def result(matrix: torch.Tensor, rank: int) -> torch.Tensor:
        given = elements_of(matrix) if compiled else matrix
        shape = (matrix.shape[0], matrix.shape[1])
        return both(compiled, shape, rank, "leading_of_matrix", given)

    assert not result(torch.zeros(20, 30), 4).any()
    low = drawn(40, 2) @ drawn(2, 30, seed=1)
    torch.testing.assert_close(result(low, 10), low.double(), rtol=0, atol=1e-5)
    same = result(torch.eye(40), 10)  # any ten directions are as good
    torch.testing.assert_close(same @ same, same, rtol=0, atol=1e-6)
    assert abs(float(same.trace()) - 10) < 1e-5
    twice = torch.block_diag(low, low, low)
    torch.testing.assert_close(result(twice, 6), twice.double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(300, 420), (420, 300), (256, 256)])
@pytest.mark.parametrize("rank", [1, 8, 30])
def test_leading_factors_are_found_among_close_singular_values(
    shape: tuple[int, int], rank: int
) -> None:
    low = drawn(shape[0], 6, seed=3) @ drawn(6, shape[1], seed=4)
    matrix = low * (drawn(*shape, seed=5) > 0)  # half is dropped: what is left has full rank
    found = both(True, shape, rank, "leading_of_matrix", elements_of(matrix))
    best = closest(matrix, rank)
    assert float((found - best).norm()) < 1e-6 * float(best.norm())


def test_all_equal_singular_values_are_found() -> None:
    """A space that is spanned by products with one vector has one vector of each."""
    left, right = (torch.linalg.qr(drawn(256, 256, seed=seed).double())[0] for seed in (1, 2))
    values = torch.linspace(0.9, 0.01, 256, dtype=torch.float64)
    values[:6] = 1.0
    matrix = ((left * values) @ right).float()
    found = both(True, (256, 256), 8, "leading_of_matrix", elements_of(matrix))
    torch.testing.assert_close(found, closest(matrix, 8), rtol=0, atol=1e-6)
    matrix = torch.eye(256)
    same = both(True, (256, 256), 4, "leading_of_matrix", elements_of(matrix))
    torch.testing.assert_close(same @ same, same, rtol=0, atol=1e-6)
    assert abs(float(same.trace()) - 4) < 1e-5


@pytest.mark.parametrize("compiled", [True, False])
def test_leading_factors_of_a_matrix_with_infinities_are_nan(compiled: bool) -> None:
    matrix, down, up = torch.ones(6, 4), torch.zeros(2, 4), torch.zeros(6, 2)
    matrix[3, 2] = float("inf")
    ops: Any = compiled_ops() if compiled else TorchOps(torch.empty(0))
    given = [elements_of(each) if compiled else each for each in (matrix, down, up)]
    ops.leading_of_matrix(given[0], (6, 4), 2, *given[1:])
    assert bool(down.isnan().all() and up.isnan().all())
