"""Compiled loops give the bits that torch gives, one by one and in whole kernels."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergeloom.engine.graph.kernel import GrainView
from mergeloom.methods import registry
from mergeloom.methods.kernels import keep_at_random as keep_random
from mergeloom.methods.kernels.linear_combination import GramCombination, Rule
from mergeloom.methods.ops import compiled_ops as compiled
from mergeloom.methods.ops import draws as random
from mergeloom.methods.ops import torch_dots as dots
from mergeloom.methods.ops.torch_elect import elected_sum
from mergeloom.methods.ops.torch_softmax import divergences
from mergeloom.methods.ops.torch_sums import magnitude_sum
from mergeloom.methods.ops.vectors import Inputs
from mergeloom.methods.statistics.selection import CoarseHistogram, FineHistogram
from tests.methods.drawing import DTYPES
from tests.methods.support import Hiding, Walk, kernel_of, loops_of, run

pytest.importorskip("numba", reason="compiled loops need the extra 'fast'")

from mergeloom.methods.ops.loops import build as building

SPECIAL = torch.tensor([0.0, -0.0, 1.0, -1.0, 1e-40, -1e-40, 3e38, float("inf"), float("nan")])


@dataclass(frozen=True)
class Norms(Rule):
    """Not asked for coefficients here."""


def grain(*inputs: torch.Tensor) -> GrainView:

    def take() -> torch.Tensor:
        return torch.full_like(inputs[0], float("nan"))

    shape, hidden = inputs[0].shape, Hiding(inputs, [True] * len(inputs))
    return GrainView(hidden, 0, 0, shape, take, loops(), stored=inputs.__getitem__)


def loops() -> compiled.Loops:
    return loops_of(frozenset(name for name, _ in building.loops()))


def vectors(count: int, elements: int, seed: int, ties: bool) -> list[torch.Tensor]:
    """Random numbers of many magnitudes; with ``ties`` few different ones, and special ones."""
    source = torch.Generator().manual_seed(seed)
    result = []
    for _ in range(count):
        vector = torch.randn(elements, generator=source)
        vector *= torch.exp2(torch.randint(-6, 7, (elements,), generator=source).float())
        if ties:
            vector = (vector * 2).round() / 2
            places = torch.randint(0, max(elements, 1), (elements // 9,), generator=source)
            vector[places] = SPECIAL[places % len(SPECIAL)]
        result.append(vector)
    return result


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal bit for bit, but for which NaN a NaN is."""
    broken = torch.isnan(one) & torch.isnan(other)
    return bool((one.view(torch.int32).eq(other.view(torch.int32)) | broken).all())


@given(st.integers(1, 6), st.integers(1, 9000), st.integers(0, 99), st.booleans(), st.booleans())
@settings(max_examples=40)
def test_elected_sum(count: int, elements: int, seed: int, ties: bool, normalize: bool) -> None:
    given_vectors = vectors(count, elements, seed, ties)
    weights = vectors(3, count, seed + 1, False)
    votes, coefficients, shares = (weight.tolist() for weight in weights)
    out, expected = torch.empty(2, elements)
    divided = shares if normalize else None
    base = torch.randn(elements)
    described: list[tuple[compiled.Operands, compiled.Kept]] = [
        ((vector.clone(), None), compiled.Kept()) for vector in given_vectors
    ]
    loops().combine(described, coefficients, votes, divided, base, 0.7, out)
    work = tuple(torch.empty(3, elements))
    elected_sum(given_vectors, votes, coefficients, divided, expected, work)
    torch.add(base, expected, alpha=0.7, out=expected)
    assert same(out, expected)


@given(st.integers(1, 9000), st.integers(0, 99), st.booleans())
@settings(max_examples=40)
def test_magnitude_sums(elements: int, seed: int, halves: bool) -> None:
    vector, minus = vectors(2, elements, seed, False)
    if halves:
        vector = vector.bfloat16()
    kept = compiled.Kept(draw=compiled.Draw.of(seed, 0, random.threshold(0.4)))
    whole, rest = loops().magnitude_sums((vector, minus), kept)
    difference = vector.float() - minus
    numbers, work = torch.empty(2, elements, dtype=torch.int32)
    random.draw(seed, 0, numbers, work)
    chosen = difference * (numbers < random.threshold(0.4))
    for found, expected in ((whole, difference), (rest, chosen)):
        plain = magnitude_sum(expected.abs(), torch.empty(elements))
        assert float(found) == float(plain)
        assert float(found) == pytest.approx(float(expected.double().abs().sum()), rel=1e-6)


@given(st.integers(1, 5), st.integers(1, 9000), st.integers(0, 99), st.booleans(), st.booleans())
@settings(max_examples=40)
def test_dot_products(count: int, elements: int, seed: int, halves: bool, based: bool) -> None:
    base, *stored = vectors(count + 1, elements, seed, False)
    if halves:
        stored = [vector.bfloat16() for vector in stored]
    found = loops().dot_products([(vector, base if based else None) for vector in stored])
    floats = [vector.float() - base if based else vector.float() for vector in stored]
    plain = dots.dot_products(floats, lambda: torch.empty(elements))
    assert torch.equal(found, plain)
    doubles = torch.stack(floats).double()
    gram = doubles @ doubles.T
    size = doubles.norm(dim=1).max() ** 2
    for (one, other), dot in zip(dots.pairs(count), found.tolist(), strict=True):
        assert dot == pytest.approx(float(gram[one, other]), rel=1e-12, abs=1e-14 * float(size))


@given(st.integers(1, 4), st.integers(1, 5000), st.integers(0, 99), st.booleans())
@settings(max_examples=40)
def test_combinations_with_coefficients_of_a_rule(
    count: int, elements: int, seed: int, based: bool
) -> None:
    inputs = vectors(count + 1, elements, seed, True)
    coefficients = [0.0 if seed % 3 == number else 0.3 - number for number in range(count)]
    kernel = GramCombination(Norms(), tuple(range(1, count + 1)), 0 if based else None)
    out, expected = torch.empty(2, elements)
    kernel.combine(grain(*inputs), out, [coefficients], ())
    view = GrainView(inputs, 0, 0, (elements,), lambda: torch.empty(elements))
    kernel.combine(view, expected, [coefficients], ())
    assert same(out, expected)


def choose(rows: torch.Tensor, choice: keep_random.Dropping, start: int = 0) -> None:
    """See that compiled loops keep of ``rows`` what torch keeps, and sum it up alike."""
    work = [torch.empty_like(rows) for _ in range(2)]
    view = GrainView((rows,), 0, start, rows.shape, lambda: torch.empty_like(rows), loops())
    expected = rows.clone()
    choice.drop(0, expected, work, view)
    vector: compiled.Operands = (rows, None)
    kept = choice.chosen(0, vector, view, again=False)
    out = torch.empty_like(rows)
    loops().combine([(vector, kept)], [1.0], None, None, torch.zeros_like(rows), 1.0, out)
    assert same(out, expected + 0.0)  # no zero is negative
    sums = loops().magnitude_sums(vector, kept)
    for found, values in zip(sums, (rows, expected), strict=True):
        assert same(found.float(), magnitude_sum(values.abs(), work[0]).float())


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**34), st.integers(1, 5000))
@settings(max_examples=40)
def test_draw(key: int, start: int, elements: int) -> None:
    choose(torch.ones(elements), keep_random.RandomKeep((0.5,), (key,), rescale=False), start)


@pytest.mark.parametrize("before", [0, 1, 99, 2048, 3333, 5000])
def test_draw_across_the_end_of_a_word(before: int) -> None:
    choice = keep_random.RandomKeep((0.5,), (5,), rescale=False)
    choose(torch.ones(5000), choice, 2**32 - before)


@given(
    st.integers(1, 5),
    st.one_of(st.integers(1, 70), st.integers(1, 9000)),
    st.integers(0, 99),
    st.booleans(),
    st.sampled_from((0.0, 1e-9, 0.01, 0.15, 0.499999)),
)
@settings(max_examples=120)
def test_ranks_in_rows(count: int, row: int, seed: int, ties: bool, epsilon: float) -> None:
    (flat,) = vectors(1, count * row, seed, ties)
    choice = keep_random.RandomByRank((0.5,), (epsilon,), (seed,), rescale=False)
    choose(flat.view(count, row), choice, 2**32 - seed * row)


@pytest.mark.parametrize("row", [1, 3, 512, 3000, 70000])
@pytest.mark.parametrize(
    "magnitudes",
    [
        (1.0,),
        (0.0,),
        (0.0, 1e-45),
        (1.0, float("nan")),
        (1.0, 1.0 + 2**-23),
        (1e-45, 3e-45, 1e30),
        (0.0, 1e-45, 1.0, 1.0 + 2**-20, float("inf")),
    ],
)
def test_ranks_in_rows_of_few_magnitudes(row: int, magnitudes: tuple[float, ...]) -> None:
    source = torch.Generator().manual_seed(row)
    places = torch.randint(0, len(magnitudes), (2, row), generator=source)
    signs = torch.randint(0, 2, (2, row), generator=source) * 2 - 1
    choice = keep_random.RandomByRank((0.5,), (0.4,), (3,), rescale=False)
    choose(torch.tensor(magnitudes)[places] * signs, choice)


@pytest.mark.parametrize("outlier", [1.0, 1e4, float("inf")])
def test_ranks_in_rows_that_one_magnitude_towers_over(outlier: float) -> None:
    rows = torch.randn((2, 20000), generator=torch.Generator().manual_seed(2)) * 1e-3
    rows[:, 777] = outlier
    choose(rows, keep_random.RandomByRank((0.5,), (0.3,), (4,), rescale=False))


@given(
    st.integers(1, 9),
    st.one_of(st.integers(1, 70), st.integers(1, 5000)),
    st.integers(1, 4),
    st.integers(0, 99),
    st.integers(1, 20000),
)
@settings(max_examples=60)
def test_choices_that_are_noted(count: int, row: int, models: int, seed: int, grain: int) -> None:
    base, *tunes = (each.view(count, row) for each in vectors(models + 1, count * row, seed, True))
    parameters = [
        {"weight": 0.4, "density": 1.0 if number == 1 else 0.5} for number in range(models)
    ]
    kernel = kernel_of("della", (count, row), [{}, *parameters], base=0)
    plain = run(kernel, [base, *tunes], Walk(grain))
    noted = run(kernel, [base, *tunes], Walk(grain, 3, seed=seed, notes=True), compiled=True)
    assert same(noted, plain)


def test_what_is_noted_is_not_chosen_again() -> None:
    base, *tunes = (each.view(40, 100) for each in vectors(3, 4000, 1, False))
    models = [{"weight": 0.4, "density": 0.5}] * 2
    kernel = kernel_of("della", (40, 100), [{}, *models], base=0)
    lost = run(kernel, [base, *tunes], Walk(notes=True, forgetful=True), compiled=True)
    assert torch.equal(lost, base)


@given(st.integers(1, 9000), st.integers(0, 99), st.booleans(), st.data())
@settings(max_examples=40)
def test_selection_by_rank(elements: int, seed: int, ties: bool, data: st.DataObject) -> None:
    (vector,) = vectors(1, elements, seed, ties)
    ranks = data.draw(st.lists(st.integers(1, elements), min_size=1, max_size=2))
    source = Inputs((0,))
    found = []
    for given_loops in (loops(), None):
        view = GrainView((vector,), 0, 0, vector.shape, vector.clone, given_loops)
        coarse, fine = CoarseHistogram(source, (tuple(ranks),)), FineHistogram(source)
        counts = coarse.start()
        coarse.update(counts, view, [])
        buckets = coarse.finish(counts, [])
        inside = fine.start()
        fine.update(inside, view, [buckets])
        found.append(fine.finish(inside, [buckets]).of)
    assert repr(found[0]) == repr(found[1])  # where NaN equals NaN


@given(
    st.integers(1, 70),
    st.integers(1, 300),
    st.integers(0, 99),
    st.booleans(),
    st.sampled_from((torch.float32, torch.bfloat16)),
)
@settings(max_examples=60)
def test_choice_by_weighted_rows(
    count: int, row: int, seed: int, ties: bool, dtype: torch.dtype
) -> None:
    rows = vectors(2, count * row, seed, ties)
    first, second = (each.to(dtype).view(count, row) for each in rows)
    (factors,) = vectors(1, count, seed + 1, ties)
    factors = factors.view(count, 1).abs()
    score = (first.float() - second.float()).abs() * factors
    least = float(score.view(-1)[seed % score.numel()])
    out = torch.empty(count, row)
    loops().choose((first.view(-1), second, factors), least, out)
    assert same(out, torch.where(score >= least, first.float(), second.float()))


@given(
    st.integers(1, 9),
    st.integers(1, 5000),
    st.integers(0, 99),
    st.booleans(),
    st.sampled_from((torch.float32, torch.bfloat16)),
)
@settings(max_examples=60)
def test_divergences(count: int, row: int, seed: int, ties: bool, dtype: torch.dtype) -> None:
    rows = vectors(2, count * row, seed, ties)
    base, other = (each.to(dtype).view(count, row) for each in rows)
    found = divergences(base, other, loops())
    expected = divergences(base.float(), other.float())
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(), expected.nan_to_num())


@given(
    st.integers(1, 40),
    st.integers(1, 300),
    st.integers(0, 99),
    st.booleans(),
    st.sampled_from(DTYPES),
)
@settings(max_examples=40)
def test_arcee_fusion(count: int, row: int, seed: int, ties: bool, dtype: torch.dtype) -> None:
    inputs = [each.to(dtype).view(count, row) for each in vectors(2, count * row, seed, ties)]
    kernel = kernel_of("arcee_fusion", (count, row), [{}, {}], base=0)
    walk = Walk(64, 3)
    one, other = (run(kernel, inputs, walk, compiled=consent) for consent in (True, False))
    assert same(one, other)


@pytest.mark.parametrize(
    ("method", "models", "settings_"),
    [
        ("ties", {"weight": 0.4, "density": 0.3}, {}),
        ("ties", {"weight": 0.4, "density": 0.3}, {"rescale": True}),
        ("breadcrumbs", {"weight": 0.4, "density": 0.6, "gamma": 0.05}, {}),
        ("breadcrumbs_ties", {"weight": -0.4, "density": 0.6, "gamma": 0.05}, {}),
        ("dare_linear", {"weight": 0.4, "density": 0.3}, {}),
        ("dare_ties", {"weight": 0.4, "density": 0.3}, {"normalize": True}),
        ("della", {"weight": 0.4, "density": 0.5}, {}),
        ("della_linear", {"weight": 0.4, "density": 0.5}, {}),
        ("sce", {}, {"select_topk": 0.4}),
        ("sce", {}, {"select_topk": 1.0}),
        ("arcee_fusion", {}, {}),
        ("model_stock", {}, {}),
        ("multislerp", {"weight": 0.4}, {}),
        ("nuslerp", {"weight": 0.4}, {}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("ties", [False, True])
def test_whole_kernels(
    method: str, models: dict, settings_: dict, dtype: torch.dtype, ties: bool
) -> None:
    shape = (40, 333)
    source = torch.Generator().manual_seed(1)
    base = torch.randn(shape, generator=source).mul_(0.02)
    count = min(registry.get(method).maximum or 3, 3)
    changes = [torch.randn(shape, generator=source).mul_(1e-3) for _ in range(count)]
    if ties:  # of magnitudes with all their low bits
        base.zero_()
        changes = [change.sign() * (change.abs() * 1e3).ceil() * 0.1234567 for change in changes]
    tunes = [base + change for change in changes]
    kernel = kernel_of(method, shape, [{}, *[models] * count], base=0, **settings_)
    assert kernel.loops
    assert kernel.compiled_cost < kernel.cost
    inputs = [tensor.to(dtype) for tensor in (base, *tunes)]
    one, other = (run(kernel, inputs, compiled=consent) for consent in (True, False))
    assert torch.equal(one.view(torch.int32), other.view(torch.int32))
    assert not torch.equal(one, inputs[0].float())
    noted = run(kernel, inputs, Walk(1000, 3, notes=True), compiled=True)
    plain = run(kernel, inputs, Walk(1000, 3))
    assert torch.equal(noted.view(torch.int32), plain.view(torch.int32))
