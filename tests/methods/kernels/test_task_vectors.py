"""Task vectors: sparsified, elected, combined."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergeloom.methods.declare import ParameterError
from mergeloom.methods.kernels.keep_by_magnitude import TopMagnitude
from mergeloom.methods.kernels.task_vectors import TaskVectors
from mergeloom.methods.reference import ReferenceResult, largest
from tests.methods.drawing import (
    Family,
    densities,
    dtypes,
    families,
    family,
    kinds,
    positive,
    shares,
    some,
    weights,
)
from tests.methods.support import (
    Walk,
    assert_close,
    check_formula,
    check_walks,
    compiled_ops,
    kernel_of,
    run,
)

SHAPE = (40, 11)
SPARSE = (
    "ties",
    "dare_linear",
    "dare_ties",
    "breadcrumbs",
    "breadcrumbs_ties",
    "della",
    "della_linear",
)
FAMILY = ("task_arithmetic", *SPARSE)


@given(st.data(), families(), st.booleans(), st.floats(-2, 2))
def test_task_arithmetic_agrees_with_the_formula(
    data: st.DataObject, models: Family, normalize: bool, lam: float
) -> None:
    chosen = some(data.draw, positive if normalize else weights, len(models.others))
    parameters = [{}, *({"weight": weight} for weight in chosen)]
    settings = {"normalize": normalize, "lambda": lam}
    check_formula("task_arithmetic", models.all, parameters, 0, **settings)


@given(st.data(), families(), st.booleans(), st.booleans(), st.floats(-2, 2))
def test_ties_agrees_with_the_formula(
    data: st.DataObject, models: Family, normalize: bool, rescale: bool, lam: float
) -> None:
    chosen = some(data.draw, positive if normalize else weights, len(models.others))
    dense = some(data.draw, densities, len(models.others))
    parameters = [
        {},
        *({"weight": weight, "density": d} for weight, d in zip(chosen, dense, strict=True)),
    ]
    settings = {"normalize": normalize, "rescale": rescale, "lambda": lam}
    check_formula("ties", models.all, parameters, 0, **settings)


@pytest.mark.parametrize("signs", [False, True])
@given(st.data(), families(), st.booleans(), st.booleans(), st.integers(0, 1 << 40))
def test_dare_agrees_with_the_formula(
    signs: bool, data: st.DataObject, models: Family, normalize: bool, rescale: bool, seed: int
) -> None:
    chosen = some(data.draw, positive if normalize else weights, len(models.others))
    dense = some(data.draw, densities, len(models.others))
    parameters = [
        {},
        *({"weight": weight, "density": d} for weight, d in zip(chosen, dense, strict=True)),
    ]
    lam = data.draw(st.floats(-2, 2))
    settings = {"normalize": normalize, "rescale": rescale, "lambda": lam}
    method = "dare_ties" if signs else "dare_linear"
    name = data.draw(st.sampled_from(("model.norm.weight", "ä")))
    check_formula(method, models.all, parameters, 0, seed=seed, tensor=name, **settings)


@pytest.mark.parametrize("signs", [False, True])
@given(st.data(), families(), st.booleans(), st.booleans())
def test_breadcrumbs_agrees_with_the_formula(
    signs: bool, data: st.DataObject, models: Family, normalize: bool, rescale: bool
) -> None:
    count = len(models.others)
    chosen = some(data.draw, positive if normalize else weights, count)
    dense = some(data.draw, densities, count)
    gammas = some(
        data.draw, st.one_of(st.sampled_from((0.0, 0.01, 0.5, 1.0)), st.floats(0, 1)), count
    )
    parameters = [
        {},
        *(
            {"weight": w, "density": d, "gamma": g}
            for w, d, g in zip(chosen, dense, gammas, strict=True)
        ),
    ]
    lam = data.draw(st.floats(-2, 2))
    settings = {"normalize": normalize, "rescale": rescale, "lambda": lam}
    method = "breadcrumbs_ties" if signs else "breadcrumbs"
    check_formula(method, models.all, parameters, 0, **settings)


@pytest.mark.parametrize("signs", [False, True])
@given(st.data(), families(), st.booleans(), st.booleans(), st.integers(0, 1 << 40))
def test_della_agrees_with_the_formula(
    signs: bool, data: st.DataObject, models: Family, normalize: bool, rescale: bool, seed: int
) -> None:
    count = len(models.others)
    chosen = some(data.draw, positive if normalize else weights, count)
    dense = some(data.draw, densities, count)
    room = [max(0.0, min(d, 1 - d)) * 0.99 for d in dense]
    epsilons = [data.draw(st.floats(0, most)) for most in room]
    parameters = [
        {},
        *(
            {"weight": w, "density": d, "epsilon": e}
            for w, d, e in zip(chosen, dense, epsilons, strict=True)
        ),
    ]
    lam = data.draw(st.floats(-2, 2))
    settings = {"normalize": normalize, "rescale": rescale, "lambda": lam}
    method = "della" if signs else "della_linear"
    check_formula(method, models.all, parameters, 0, seed=seed, **settings)


@settings(max_examples=30)
@given(st.integers(1, 3), st.integers(500, 5000), kinds, dtypes, st.floats(0, 0.4), st.integers(0))
def test_della_of_long_rows(
    rows: int, row: int, kind: str, dtype: torch.dtype, epsilon: float, seed: int
) -> None:
    """Long rows are counted before they are sorted."""
    models = family((rows, row), 1, seed % (1 << 30), dtype, kind)
    parameters = [{}, {"weight": 1.0, "density": 0.45, "epsilon": epsilon}]
    check_formula("della_linear", models.all, parameters, 0, seed=seed)


@pytest.mark.parametrize("method", ["della", "della_linear"])
@pytest.mark.parametrize(("density", "epsilon"), [(0.5, 0.5), (0.1, 0.15), (0.9, 0.15)])
def test_della_refuses_probabilities_outside_of_0_and_1(
    method: str, density: float, epsilon: float
) -> None:
    parameters = [{}, {"weight": 1.0, "density": density, "epsilon": epsilon}]
    with pytest.raises(ParameterError, match="'epsilon' below"):
        kernel_of(method, SHAPE, parameters, base=0)


@pytest.mark.parametrize("coarse", [False, True])
def test_della_keeps_each_rank_with_its_probability(coarse: bool) -> None:
    """Many rows of one and the same magnitudes, shuffled: a rate for every rank."""
    rows, row, density, epsilon = 4000, 64, 0.4, 0.3
    magnitudes = torch.arange(1.0, row + 1)
    if coarse:
        magnitudes = magnitudes.div(8).ceil()
    source = torch.Generator().manual_seed(0)
    order = torch.rand(rows, row, generator=source).argsort(1)
    other = magnitudes[order] * torch.where(order % 3 == 0, -1.0, 1.0)
    parameters = [{}, {"weight": 1.0, "density": density, "epsilon": epsilon}]
    kernel = kernel_of("della_linear", other.shape, parameters, base=0, rescale=False)
    kept = (run(kernel, [torch.zeros_like(other), other]) != 0).double()
    for value in magnitudes.unique():
        ranks = (magnitudes == value).nonzero().view(-1)
        expected = float((density - epsilon + 2 * epsilon * ranks / (row - 1)).mean())
        found = kept[other.abs() == value]
        spread = (expected * (1 - expected) / found.numel()) ** 0.5
        assert abs(float(found.mean()) - expected) < 5 * spread
    per_row = kept.sum(1)
    assert abs(float(per_row.mean()) - density * row) < 5 * (row * 0.25 / rows) ** 0.5


@given(families(), shares)
def test_sce_agrees_with_the_formula(models: Family, select_topk: float) -> None:
    parameters = [{}] * len(models.all)
    check_formula("sce", models.all, parameters, 0, select_topk=select_topk)


def test_sce_selects_the_first_of_equal_variances() -> None:
    """The weights too come from what is selected only."""
    base = torch.zeros(1000)
    others = [torch.full((1000,), 3.0), torch.arange(1000) % 2 * 2.0 + 2.0]
    for keep in (1, 64, 500, 777):
        share = (keep + 0.5) / 1000
        result = check_formula("sce", [base, *others], [{}] * 3, 0, select_topk=share)
        assert not result[keep:].any()
        assert result[:keep].all()


def test_sce_selects_nothing_where_all_task_vectors_are_equal() -> None:
    """As in layers that were frozen after a common ancestor: the mean of three equal float32 values
    is not always that value."""
    shared, own = torch.randn(1000), torch.zeros(1000)
    own[:100] = torch.arange(100) + 4.0
    kernel = kernel_of("sce", (1000,), [{}] * 4, base=0, select_topk=0.5)
    result = check_walks(kernel, [torch.zeros(1000), shared, shared, shared])
    assert not result.any()
    result = check_walks(kernel, [torch.zeros(1000), shared, shared, shared + own])
    assert result[50:100].all()
    assert not result[:50].any()
    assert not result[100:].any()


def test_breadcrumbs_drops_the_largest_and_the_smallest() -> None:
    other = torch.tensor([1.0, -5.0, 2.0, 5.0, -3.0, 0.5, 4.0, 0.0, 5.0, -2.0])
    for gamma, density, expected in (
        (0.2, 0.3, [0, 0, 0, 0, -3, 0, 4, 0, 5, 0]),  # of three fives the first two go
        (0.3, 0.3, [0, 0, 2, 0, -3, 0, 4, 0, 0, 0]),
        (0.9, 0.8, [1, 0, 2, 0, -3, 0.5, 4, 0, 5, -2]),  # no more than two can go
    ):
        parameters = [{}, {"weight": 1.0, "density": density + 0.05, "gamma": gamma + 0.05}]
        kernel = kernel_of("breadcrumbs", (10,), parameters, base=0)
        assert check_walks(kernel, [torch.zeros(10), other]).tolist() == expected


def test_breadcrumbs_rescales_correctly_beside_huge_outliers() -> None:
    """What is kept is a difference of two sums that are almost alike."""
    small = torch.tensor([2.9355e-4, 8.8471e-4, 9.7661e-4, 3.0543e-3])
    other = torch.cat([small, torch.tensor([1e-5, 2e-5, 1.9, 5.7, 8.0, 12.9, 0.56, 0.89])])
    parameters = [{}, {"weight": 1.0, "density": 4.5 / 12, "gamma": 6.5 / 12}]
    kernel = kernel_of("breadcrumbs", (12,), parameters, base=0, rescale=True)
    result = check_walks(kernel, [torch.zeros(12), other])
    factor = other.double().abs().sum() / small.double().sum()
    torch.testing.assert_close(result[:4].double(), small.double() * factor, rtol=1e-6, atol=0)
    assert not result[4:].any()


def test_ties_at_the_threshold_go_to_the_lowest_index() -> None:
    """Equal magnitudes everywhere: the first k survive, across grains, whatever their sign."""
    base = torch.zeros(1000)
    signs = torch.where(torch.rand(1000) < 0.5, -1.0, 1.0)
    for keep in (1, 63, 64, 65, 500, 999):
        parameters = [{}, {"weight": 1.0, "density": (keep + 0.5) / 1000}]
        kernel = kernel_of("ties", (1000,), parameters, base=0)
        result = check_walks(kernel, [base, signs])
        assert torch.equal(result[:keep], signs[:keep])
        assert not result[keep:].any()


@pytest.mark.parametrize(("density", "kept"), [(0.0, 0), (1e-4, 1), (0.3, 1), (0.5, 2)])
def test_ties_keeps_at_least_one_element(density: float, kept: int) -> None:
    """Else a density would undo all changes of small tensors, such as scales of one element."""
    for other, count in (
        (torch.tensor([1.0, -4.0, 3.0, 2.0, 0.5]), kept),
        (torch.ones(1), kept > 0),
    ):
        parameters = [{}, {"weight": 1.0, "density": density}]
        kernel = kernel_of("ties", tuple(other.shape), parameters, base=0)
        result = check_walks(kernel, [torch.zeros_like(other), other])
        assert int(result.count_nonzero()) == count
        assert torch.equal(result[result != 0].sum(), other[result != 0].sum())


def test_exactly_k_elements_are_kept() -> None:
    other = torch.tensor([1.0, 2.0, 1.0, 3.0, 1.0, 0.5, 1.0, 0.0] * 50)
    for keep in (50, 100, 101, 150, 299, 300, 301, 350):
        parameters = [{}, {"weight": 1.0, "density": (keep + 0.5) / 400}]
        kernel = kernel_of("ties", (400,), parameters, base=0)
        result = check_walks(kernel, [torch.zeros(400), other])
        assert torch.equal(result, other * largest(other, keep))


@pytest.mark.parametrize("method", [*FAMILY, "sce"])
def test_no_change_gives_the_base(method: str) -> None:
    models = family(SHAPE, 2, 0, torch.float32, "equal")
    parameters = [{}, {}, {}] if method == "sce" else [{}, {"weight": 0.3}, {"weight": 0.9}]
    result = run(kernel_of(method, SHAPE, parameters, base=0), models.all)
    assert torch.equal(result, models.base)


@pytest.mark.parametrize("method", SPARSE)
def test_density_0_gives_the_base(method: str) -> None:
    models = family(SHAPE, 2, 0, torch.float32)
    parameters = [{}, {"weight": 1.0, "density": 0.0}, {"weight": 1.0, "density": 0.0}]
    result = run(kernel_of(method, SHAPE, parameters, base=0), models.all)
    assert torch.equal(result, models.base)


@pytest.mark.parametrize("method", FAMILY)
def test_weights_that_cancel_cannot_be_normalised(method: str) -> None:
    parameters = [{}, {"weight": 1.0}, {"weight": -1.0}]
    with pytest.raises(ParameterError, match="sum to zero"):
        kernel_of(method, SHAPE, parameters, base=0, normalize=True)


@pytest.mark.parametrize("method", FAMILY)
def test_weights_that_are_all_zero_give_the_base(method: str) -> None:
    models = family(SHAPE, 2, 0, torch.float32)
    parameters = [{}, {"weight": 0.0}, {"weight": 0.0}]
    result = run(kernel_of(method, SHAPE, parameters, base=0, normalize=True), models.all)
    assert torch.equal(result, models.base)


@pytest.mark.parametrize("method", SPARSE)
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_a_nan_or_infinity_spreads_to_no_other_element(method: str, broken: float) -> None:
    """Statistics count a NaN as a large magnitude; elements beside it are merged as ever."""
    models = family(SHAPE, 2, 3, torch.float32)
    models.others[0][3, 4] = broken
    parameters = [{}, {"weight": 1.0, "density": 0.5}, {"weight": 1.0, "density": 0.5}]
    result = check_walks(kernel_of(method, SHAPE, parameters, base=0), models.all)
    finite = torch.isfinite(result)
    assert int((~finite).sum()) <= 1
    assert bool(finite[0, 0])


@pytest.mark.parametrize("method", FAMILY)
def test_a_tensor_that_the_base_lacks_is_refused(method: str) -> None:
    with pytest.raises(ParameterError, match="base model lacks"):
        kernel_of(method, SHAPE, [{"weight": 1.0}, {"weight": 1.0}])


@given(
    st.integers(1, 3000), st.lists(shares, min_size=2, max_size=4), st.integers(0, 99), kinds,
    st.sampled_from((None, float("nan"), float("inf"), 0.0)), shares,
)  # fmt: skip
@settings(max_examples=30)
def test_small_tensors_keep_the_elements_of_the_same_ranks(
    elements: int, dense: list[float], seed: int, kind: str, broken: float | None, gamma: float
) -> None:
    """Ranks decided in machine code, against sorting; NaN ranks first, then infinity."""
    models = family((elements,), len(dense), seed, torch.float32, kind)
    if broken is not None:
        for place, other in enumerate(models.others):
            other[place % elements :: place + 2] = broken
    counts = [max(int(share * elements), 1) for share in dense]
    skips = tuple(min(int(gamma * elements), elements - count) for count in counts)
    sparsifier = TopMagnitude(tuple(counts), skip=skips)
    kernel = TaskVectors(
        *(0, tuple(range(1, len(dense) + 1)), (1.0,) * len(dense), sparsifier),
        *(False, False, 1.0),
    )
    expected = torch.zeros(elements, dtype=torch.float64)
    for other, count, skip in zip(models.others, counts, skips, strict=True):
        tau = other - models.base
        bits = tau.view(torch.int32) & 0x7FFFFFFF
        order = torch.argsort(bits, descending=True, stable=True)[skip : skip + count]
        kept = torch.zeros_like(tau)
        kept[order] = tau[order]
        expected += kept
    special = kernel.for_one_grain(compiled_ops(), elements)
    assert not special.passes
    result = run(kernel, models.all, Walk(special=True))
    assert torch.equal(result.view(torch.int32), run(kernel, models.all).view(torch.int32))
    if broken is None:
        scale = sum(other.double().abs() for other in models.all)
        summed = torch.as_tensor(scale * (1 + len(dense)))
        assert_close(result, ReferenceResult(models.base.double() + expected, summed))
