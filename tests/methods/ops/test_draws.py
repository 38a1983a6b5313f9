"""Random numbers: the defined ones, uniform, independent of each other and of the walk."""

from __future__ import annotations

import math

import pytest
import torch

from mergeloom.methods.ops import draws as random
from mergeloom.methods.reference import drawn
from tests.methods.support import Walk, kernel_of, run

COUNT = 1 << 18


def draw(key: int, start: int, count: int) -> torch.Tensor:
    out, work = torch.empty(2, count, dtype=torch.int32)
    random.draw(key, start, out, work)
    return out


def uniform(seed: int = 0, tensor: str = "a", number: int = 0, count: int = COUNT) -> torch.Tensor:
    """Numbers between -1 and 1."""
    return draw(random.key_of(seed, tensor, number), 0, count).double() / 2**31


def test_random_numbers_follow_the_definition() -> None:
    numbers = draw(random.key_of(7, "model.norm.weight", 2), 0, 3000).double() / 2**32 + 0.5
    assert torch.equal(numbers, drawn(7, "model.norm.weight", 2, (3000,)))


@pytest.mark.parametrize("start", [0, (1 << 31) - 100, (1 << 32) - 700, (1 << 40) - 1])
def test_random_numbers_depend_on_the_element_only(start: int) -> None:
    """However the elements are cut, also where the low word of the index starts anew."""
    together = draw(5, start, 4000)
    for cut in (1, 699, 700, 701, 2048):
        assert torch.equal(draw(5, start + cut, 4000 - cut), together[cut:])


def test_random_numbers_differ_beyond_the_low_index_word() -> None:
    assert not torch.equal(draw(5, 0, 100), draw(5, 1 << 32, 100))


@pytest.mark.parametrize("density", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_the_kept_share_is_the_density(density: float) -> None:
    for number in range(3):
        kept = int((uniform(number=number) * 2**31 < random.threshold(density)).sum())
        spread = math.sqrt(COUNT * density * (1 - density))
        assert abs(kept - COUNT * density) < 5 * spread


@pytest.mark.parametrize("other", [{"seed": 1}, {"tensor": "b"}, {"number": 1}])
def test_seeds_tensors_and_inputs_are_independent(other: dict[str, int | str]) -> None:
    a, b = uniform(), uniform(**other)
    for lag in (0, 1, 2, 64, 2048):
        correlation = float((a[lag:] * b[: COUNT - lag]).mean()) * 3
        assert abs(correlation) < 5 / math.sqrt(COUNT)


def test_neighbours_are_independent() -> None:
    a = uniform()
    for lag in (1, 2, 3, 4, 7, 8, 16, 64, 128, 1000, 1024, 2048, 4096, 1 << 16, 1 << 17):
        correlation = float((a[lag:] * a[:-lag]).mean()) * 3
        assert abs(correlation) < 5 / math.sqrt(COUNT - lag)


@pytest.mark.parametrize("row", [64, 1000, 2048])
def test_kept_counts_of_rows_and_columns_vary_as_expected(row: int) -> None:
    kept = (uniform()[: COUNT // row * row] < 0).double().view(-1, row)
    for dim in (0, 1):
        length = kept.shape[dim]
        deviation = (kept.sum(dim) - length / 2) / math.sqrt(length / 4)
        groups = deviation.numel()
        assert abs(float(deviation.square().mean()) - 1) < 5 * math.sqrt(2 / groups)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_another_seed_or_name_gives_another_draw(method: str) -> None:
    base, other = torch.zeros(1000), torch.ones(1000)
    parameters = [{}, {"weight": 1.0, "density": 0.5}]

    def kept(**given: object) -> torch.Tensor:
        return run(kernel_of(method, (1000,), parameters, 0, **given), [base, other])

    assert torch.equal(kept(), kept())
    assert not torch.equal(kept(), kept(seed=1))
    assert not torch.equal(kept(), kept(tensor="layers.1.weight"))


def test_equal_models_lose_different_elements() -> None:
    base, other = torch.zeros(10_000), torch.ones(10_000)
    parameters = [{}, *[{"weight": 1.0, "density": 0.5}] * 2]
    kernel = kernel_of("dare_linear", (10_000,), parameters, 0, rescale=False)
    counts = torch.bincount(run(kernel, [base, other, other]).int(), minlength=3)
    for count, share in zip(counts.tolist(), (0.25, 0.5, 0.25), strict=True):
        assert abs(count - 10_000 * share) < 5 * math.sqrt(10_000 * share * (1 - share))


def test_the_size_of_a_grain_does_not_matter() -> None:
    base, other = torch.zeros(5000), torch.randn(5000)
    kernel = kernel_of(
        "dare_linear", (5000,), [{}, {"weight": 1.0, "density": 0.3}], 0, rescale=False
    )
    results = [run(kernel, [base, other], Walk(grain)) for grain in (64, 1000, 1 << 19)]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
