"""Sums of sparse inputs, against PEFT's own functions."""

from __future__ import annotations

import pytest
import torch
from peft.utils import merge_utils

from mergeloom.methods.adapters.combinations import COMBINATIONS, Combination, Combined
from tests.methods.support import check_walks, kernel_of, run

SHAPE = (40, 33)
ALIGNED = [each for each in COMBINATIONS.values() if each.what is not Combined.SIDE_BY_SIDE]
PRUNED = [each for each in ALIGNED if each.drops_smallest]


def factors(count: int) -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(count)
    return [torch.randn(SHAPE, generator=source) for _ in range(count)]


def by_peft(
    kind: Combination, inputs: list[torch.Tensor], weights: list[float], density: float, sign: str
) -> torch.Tensor:
    name = kind.name.removesuffix("_svd")
    given = torch.tensor(weights)
    if name in ("linear", "svd"):
        return merge_utils.task_arithmetic(inputs, given)
    function = getattr(merge_utils, name)
    elects = (sign,) if kind.elect else ()
    found: torch.Tensor = function(inputs, given, density, *elects)
    return found


@pytest.mark.parametrize("sign", ["total", "frequency"])
@pytest.mark.parametrize("kind", ALIGNED, ids=lambda kind: kind.name)
def test_sparse_sums_agree_with_peft(kind: Combination, sign: str) -> None:
    inputs, weights = factors(3), [0.7, -1.3, 0.4]
    for density in (1.0,) if kind.draws else (0.0, 0.3, 1.0):
        sparse = {"density": density} if kind.draws or kind.drops_smallest else {}
        settings = {"majority_sign_method": sign} if kind.elect else {}
        kernel = kernel_of(kind, SHAPE, [{"weight": w, **sparse} for w in weights], **settings)
        found = check_walks(kernel, inputs)
        torch.testing.assert_close(found, by_peft(kind, inputs, weights, density, sign))


def test_signs_are_counted_or_added_up() -> None:
    inputs = [torch.tensor([v]) for v in (-1.0, -1.0, 3.0)]
    for sign, expected in (("total", 3.0), ("frequency", -1.0)):
        models = [{"weight": 1.0, "density": 1.0}] * 3
        kernel = kernel_of(COMBINATIONS["ties"], (1,), models, majority_sign_method=sign)
        assert float(run(kernel, inputs)) == expected


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd"])
def test_a_random_choice_keeps_its_share_and_the_expected_sum(name: str) -> None:
    ones, density = torch.ones(300, 400), 0.3
    kernel = kernel_of(COMBINATIONS[name], ones.shape, [{"weight": 2.0, "density": density}])
    found = check_walks(kernel, [ones])
    kept = found[found != 0]
    assert torch.equal(kept, torch.full_like(kept, 2.0 / density))
    share = kept.numel() / ones.numel()
    assert abs(share - density) < 4 * (density * (1 - density) / ones.numel()) ** 0.5


def test_draws_of_two_adapters_and_of_two_seeds_differ() -> None:
    ones = torch.ones(200, 100)

    def result(seed: int, *weights: float) -> torch.Tensor:
        models = [{"weight": weight, "density": 0.5} for weight in weights]
        kind = COMBINATIONS["dare_linear"]
        return run(kernel_of(kind, ones.shape, models, seed=seed), [ones] * len(weights))

    both = result(0, 1.0, 1.0)
    assert set(both.unique().tolist()) == {0.0, 2.0, 4.0}
    assert not torch.equal(result(0, 1.0), result(1, 1.0))


@pytest.mark.parametrize("kind", PRUNED, ids=lambda kind: kind.name)
def test_equal_magnitudes_at_a_threshold_are_kept_up_to_the_number(kind: Combination) -> None:
    same = torch.ones(10, 10)
    kernel = kernel_of(kind, same.shape, [{"weight": 1.0, "density": 0.37}])
    assert int((check_walks(kernel, [same]) != 0).sum()) == 37
