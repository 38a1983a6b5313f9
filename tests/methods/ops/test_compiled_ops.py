"""Machine code: each operation against torch's, and whole kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergeloom.engine.base.dtypes import (
    BY_CODE,
)
from mergeloom.engine.base.errors import RunError
from mergeloom.engine.graph.kernel import GrainView
from mergeloom.methods import registry
from mergeloom.methods.kernels import keep_at_random, keep_by_rank
from mergeloom.methods.ops import draws
from mergeloom.methods.ops.arithmetic import COMPILED, FUNCTIONS
from mergeloom.methods.ops.interface import (
    Bound,
    Factors,
    KeepRule,
    RandomBound,
    Vector,
    pairs,
)
from mergeloom.methods.ops.loops import build
from tests.methods.support import (
    Walk,
    compiled_ops,
    elements_of,
    kernel_of,
    run,
    same,
    torch_ops,
    vectors,
)


def test_every_operation_has_a_loop_and_every_loop_is_an_operation() -> None:
    assert {name for name, _ in build.loops()} == FUNCTIONS


# --- measuring --------------------------------------------------------------------------------


@given(st.integers(1, 9000), st.integers(0, 99), st.booleans(), st.booleans())
@settings(max_examples=40)
def test_sums_of_chosen_magnitudes_agree_with_torch(
    elements: int, seed: int, halves: bool, squares: bool
) -> None:
    vector, minus = vectors(2, elements, seed, False)
    if halves:
        vector = vector.bfloat16()
    rule = KeepRule(draw=RandomBound(seed, 0, draws.threshold(0.4)))
    ops, given_ = compiled_ops(), Vector(elements_of(vector), elements_of(minus))
    difference = vector.float() - minus
    numbers, work = torch.empty(2, elements, dtype=torch.int32)
    draws.draw(seed, 0, numbers, work)
    chosen = difference * (numbers < draws.threshold(0.4))
    if squares:
        assert ops.squares(given_, rule) == pytest.approx(
            float(chosen.double().square().sum()), 1e-5
        )
        return
    for found, expected in zip(ops.magnitudes(given_, rule), (difference, chosen), strict=True):
        assert found == pytest.approx(float(expected.double().abs().sum()), rel=1e-6)


@given(st.integers(1, 5), st.integers(1, 9000), st.integers(0, 99), st.booleans(), st.booleans())
@settings(max_examples=40)
def test_dot_products_agree_with_float64(
    count: int, elements: int, seed: int, halves: bool, based: bool
) -> None:
    base, *stored = vectors(count + 1, elements, seed, False)
    if halves:
        stored = [vector.bfloat16() for vector in stored]
    minus = elements_of(base) if based else None
    found = compiled_ops().dots([Vector(elements_of(vector), minus) for vector in stored])
    floats = [vector.float() - base if based else vector.float() for vector in stored]
    doubles = torch.stack(floats).double()
    gram = doubles @ doubles.T
    size = doubles.norm(dim=1).max() ** 2
    for (one, other), dot in zip(pairs(count), found, strict=True):
        assert dot == pytest.approx(float(gram[one, other]), rel=1e-12, abs=1e-14 * float(size))


@given(
    st.integers(1, 4), st.integers(1, 40), st.integers(1, 3000), st.integers(0, 9), st.booleans()
)
@settings(max_examples=40)
def test_dot_products_of_rows_and_columns_agree_with_float64(
    count: int, rows: int, row: int, seed: int, columns: bool
) -> None:
    stored = [each.view(rows, row) for each in vectors(count, rows * row, seed, False)]
    given_ = [Vector(elements_of(each)) for each in stored]
    ops = compiled_ops()
    doubles = [each.double() for each in stored]
    for number, (i, j) in enumerate(pairs(count)):
        expected = (doubles[i] * doubles[j]).sum(0 if columns else 1)
        size = float((doubles[i] * doubles[j]).abs().sum(0 if columns else 1).max())
        if columns:
            first = seed % row
            found = torch.from_numpy(ops.column_dots(given_, row, first)[number]).roll(-first)
        else:
            found = torch.from_numpy(ops.row_dots(given_, row)[i][j])
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-14 * size)


@given(st.integers(1, 5000), st.integers(0, 99), st.sampled_from((0.0, 0.5, 1.0, 7.7)))
@settings(max_examples=40)
def test_equal_magnitudes_are_counted_and_located(elements: int, seed: int, value: float) -> None:
    (vector,) = vectors(1, elements, seed, True)
    given_, ops, plain = Vector(elements_of(vector)), compiled_ops(), Vector(vector)
    places = torch.nonzero(vector.abs() == value).view(-1).tolist()
    assert ops.count_equal(given_, value) == len(places)
    assert int(torch_ops().count_equal(plain, value)) == len(places)
    for most in {0, 1, len(places) // 2, len(places), len(places) + 1}:
        end = places[most] if most < len(places) else elements
        assert ops.end_of_equal(given_, value, most) == end
        assert torch_ops().end_of_equal(plain, value, most) == end


@given(st.integers(1, 4), st.integers(1, 5000), st.integers(0, 99))
@settings(max_examples=40)
def test_counts_of_shared_and_unique_changes_agree_with_torch(
    count: int, elements: int, seed: int
) -> None:
    stored = vectors(count, elements, seed, True)
    found = compiled_ops().count_changed([Vector(elements_of(each)) for each in stored], 1.5)
    assert list(found) == torch_ops().count_changed([Vector(each) for each in stored], 1.5).tolist()


# --- choosing ---------------------------------------------------------------------------------


def choose(rows: torch.Tensor, choice: keep_at_random.RandomSparsifier, start: int = 0) -> None:
    """See that machine code keeps of ``rows`` what torch keeps."""
    shape = tuple(rows.shape)
    kept = torch.empty_like(rows)
    ops, plain = compiled_ops(), torch_ops()
    given_ = Vector(elements_of(rows))
    take: Any = None
    view = GrainView((given_.array,), 0, start, shape, take, ops)
    rule = choice.choose(0, given_, view, is_repeat=False)
    ops.combine([given_], [1.0], elements_of(kept), kept=[rule])
    seen = GrainView((rows,), 0, start, shape, take, plain)
    expected = torch.empty_like(rows)
    plain.combine(
        [Vector(rows)],
        [1.0],
        expected,
        kept=[choice.choose(0, Vector(rows), seen, is_repeat=False)],
    )
    assert same(kept + 0.0, expected + 0.0)  # no zero is negative


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**34), st.integers(1, 5000))
@settings(max_examples=40)
def test_draws_agree_with_torch(key: int, start: int, elements: int) -> None:
    choose(torch.ones(elements), keep_at_random.RandomKeep((0.5,), (key,), rescale=False), start)


@pytest.mark.parametrize("before", [0, 1, 99, 2048, 3333, 5000])
def test_draws_agree_across_the_end_of_the_low_index_word(before: int) -> None:
    choice = keep_at_random.RandomKeep((0.5,), (5,), rescale=False)
    choose(torch.ones(5000), choice, 2**32 - before)


@given(
    st.integers(1, 5),
    st.one_of(st.integers(1, 70), st.integers(1, 9000)),
    st.integers(0, 99),
    st.booleans(),
    st.sampled_from((0.0, 1e-9, 0.01, 0.15, 0.499999)),
)
@settings(max_examples=120)
def test_choices_by_rank_agree_with_torch(
    count: int, row: int, seed: int, ties: bool, epsilon: float
) -> None:
    (flat,) = vectors(1, count * row, seed, ties)
    choice = keep_by_rank.RandomByRank((0.5,), (epsilon,), (seed,), rescale=False)
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
def test_choices_by_rank_agree_if_there_are_few_magnitudes(
    row: int, magnitudes: tuple[float, ...]
) -> None:
    source = torch.Generator().manual_seed(row)
    places = torch.randint(0, len(magnitudes), (2, row), generator=source)
    signs = torch.randint(0, 2, (2, row), generator=source) * 2 - 1
    choice = keep_by_rank.RandomByRank((0.5,), (0.4,), (3,), rescale=False)
    choose(torch.tensor(magnitudes)[places] * signs, choice)


@pytest.mark.parametrize("outlier", [1.0, 1e4, float("inf")])
def test_choices_by_rank_agree_beside_a_huge_outlier(outlier: float) -> None:
    rows = torch.randn((2, 20000), generator=torch.Generator().manual_seed(2)) * 1e-3
    rows[:, 777] = outlier
    choose(rows, keep_by_rank.RandomByRank((0.5,), (0.3,), (4,), rescale=False))


@given(st.integers(1, 5000), st.integers(0, 99), st.integers(0, 5000), st.booleans())
@settings(max_examples=40)
def test_marked_choices_agree_with_torch(elements: int, seed: int, end: int, upto: bool) -> None:
    (vector,) = vectors(1, elements, seed, True)
    bound = Bound(0.4, 1.0, min(end, elements))
    rule = KeepRule(upto=bound) if upto else KeepRule(above=bound)
    ops, given_ = compiled_ops(), Vector(elements_of(vector))
    marks = ops.mark(given_, rule, ops.take_bytes(elements))
    ones, out, expected = torch.ones(elements), torch.empty(elements), torch.empty(elements)
    ops.combine([Vector(elements_of(ones))], [1.0], elements_of(out), kept=[KeepRule(marks=marks)])
    plain = torch_ops().mark(Vector(vector), rule, None)
    torch_ops().combine([Vector(ones)], [1.0], expected, kept=[KeepRule(marks=plain)])
    assert torch.equal(out, expected)


@given(
    st.integers(1, 9),
    st.one_of(st.integers(1, 70), st.integers(1, 5000)),
    st.integers(1, 4),
    st.integers(0, 99),
    st.integers(1, 20000),
)
@settings(max_examples=60)
def test_memoised_choices_change_no_byte(
    count: int, row: int, models: int, seed: int, grain: int
) -> None:
    base, *tunes = (each.view(count, row) for each in vectors(models + 1, count * row, seed, True))
    parameters = [
        {"weight": 0.4, "density": 1.0 if number == 1 else 0.5} for number in range(models)
    ]
    kernel = kernel_of("della", (count, row), [{}, *parameters], base=0)
    plain = run(kernel, [base, *tunes], Walk(grain))
    remembered = run(kernel, [base, *tunes], Walk(grain, 3, seed=seed, memo=True))
    assert same(remembered, plain)


def test_a_memo_is_used_instead_of_choosing_again() -> None:
    base, *tunes = (each.view(40, 100) for each in vectors(3, 4000, 1, False))
    models = [{"weight": 0.4, "density": 0.5}] * 2
    kernel = kernel_of("della", (40, 100), [{}, *models], base=0)
    lost = run(kernel, [base, *tunes], Walk(memo=True, forgetful=True))
    assert torch.equal(lost, base)


# --- writing ----------------------------------------------------------------------------------


@given(
    st.integers(1, 40),
    st.integers(1, 1500),
    st.integers(1, 40),
    st.integers(0, 99),
    st.sampled_from(("float32", "bfloat16", "float16", "float64")),
)
@settings(max_examples=60)
def test_low_rank_products_of_any_run_of_elements_are_exact_to_rounding(
    rows: int, columns: int, rank: int, seed: int, kind: str
) -> None:
    """A grain may begin and end anywhere in a row."""
    dtype = getattr(torch, kind)
    weight, down, up = vectors(3, rows * max(columns, rank) + rank * columns, seed, False)
    down = down[: rank * columns].to(dtype).view(rank, columns)
    up = up[: rows * rank].to(dtype).view(rows, rank)
    first = seed * rows * columns // 300
    last = rows * columns - seed % (rows * columns - first)
    weight = weight[: last - first].bfloat16()
    product = up.double() @ down.double()
    largest = float((up.double().abs() @ down.double().abs()).max()) + float(weight.abs().max())
    expected = weight.double() - 0.75 * product.view(-1)[first:last]
    compiled, plain = torch.empty(2, last - first)
    sides = elements_of(down), elements_of(up)
    given_ = elements_of(weight), *sides, rank, first, -0.75, elements_of(compiled)
    compiled_ops().add_product(*given_)
    torch_ops().add_product(weight.float(), down, up, rank, first, -0.75, plain)
    for found in (compiled, plain):
        assert torch.allclose(found.double(), expected, rtol=0, atol=1e-6 * largest)


def test_low_rank_products_do_not_depend_on_the_grain() -> None:
    weight, down, up = vectors(3, 9 * 1300, 1, False)
    down, up = down[: 11 * 1300], up[: 9 * 11]
    whole = torch.empty(9 * 1300)
    sides = elements_of(down[: 11 * 1000]), elements_of(up), 11
    weight, whole = weight[: 9 * 1000], whole[: 9 * 1000]
    ops = compiled_ops()
    ops.add_product(elements_of(weight), *sides, 0, 2.0, elements_of(whole))
    for first, last in ((0, 1), (999, 1001), (700, 4321), (2000, 5000), (8999, 9000)):
        part = torch.empty(last - first)
        ops.add_product(elements_of(weight[first:last]), *sides, first, 2.0, elements_of(part))
        assert torch.equal(part, whole[first:last])


@given(
    st.integers(1, 4), st.integers(1, 70), st.sampled_from((1, 7, 900, 5000)), st.integers(0, 99)
)
@settings(max_examples=60)
def test_mean_rows_averages_the_rows_of_its_table(
    count: int, rows: int, row: int, seed: int
) -> None:
    stored = [each.view(rows, row) for each in vectors(count, rows * row, seed, True)]
    stored[0] = stored[0].bfloat16()
    source = torch.Generator().manual_seed(seed)
    first = seed % 5
    table = torch.randint(0, 2, (first + rows, count), generator=source).to(torch.uint8)
    compiled, plain = torch.empty(2, rows, row)
    arrays = [elements_of(each) for each in stored]
    compiled_ops().mean_rows(arrays, elements_of(table), row, first, elements_of(compiled))
    torch_ops().mean_rows([each.float() for each in stored], table, row, first, plain)
    expected = torch.zeros(rows, row, dtype=torch.float64)
    for number, own in enumerate(table[first:].bool().tolist()):
        chosen = [each[number].double() for each, there in zip(stored, own, strict=True) if there]
        if chosen:
            expected[number] = sum(chosen[1:], chosen[0]) / len(chosen)
    alone = table[first:].sum(1) == 1
    assert same(compiled, plain)
    assert same(compiled[alone], expected.float()[alone])
    assert torch.allclose(compiled.double(), expected, rtol=1e-6, atol=1e-44, equal_nan=True)


@given(st.integers(1, 9), st.integers(1, 3000), st.integers(0, 99))
@settings(max_examples=30)
def test_sums_of_columns_agree_with_repeated_rows(rows: int, columns: int, seed: int) -> None:
    (flat,) = vectors(1, rows * columns, seed, False)
    some = seed % (rows + 1)
    found = torch.from_numpy(compiled_ops().column_sums(elements_of(flat), some, columns))
    plain = torch_ops().column_sums(flat, some, columns)
    expected = flat.view(rows, columns)[:some].double().sum(0)
    for each in (found, plain):
        assert torch.allclose(each, expected, rtol=1e-12, atol=1e-12)
    row = expected.float()
    compiled, other = flat.clone(), flat.clone()
    compiled_ops().repeat(row.numpy(), some, elements_of(compiled))
    torch_ops().repeat(row, some, other)
    wanted = flat.view(rows, columns).clone()
    wanted[some:] = row
    assert torch.equal(compiled, wanted.view(-1))
    assert torch.equal(other, wanted.view(-1))


@given(
    st.integers(1, 4), st.integers(1, 200), st.integers(1, 200), st.integers(0, 99), st.booleans()
)
@settings(max_examples=40)
def test_transpose_agrees_with_torch(
    count: int, rows: int, columns: int, seed: int, half: bool
) -> None:
    (flat,) = vectors(1, count * rows * columns, seed, True)
    stored = flat.bfloat16() if half else flat
    compiled, plain = torch.empty(2, flat.numel())
    compiled_ops().transpose(elements_of(stored), (rows, columns), elements_of(compiled))
    torch_ops().transpose(stored.float(), (rows, columns), plain)
    expected = stored.float().view(count, rows, columns).transpose(1, 2).reshape(-1)
    assert same(compiled, expected)
    assert same(plain, expected)


@pytest.mark.parametrize("code", ["BF16", "F16", "F32", "F64"])
def test_numbers_of_a_side_input_are_read_in_every_dtype(code: str) -> None:
    (flat,) = vectors(1, 100, 3, False)
    stored = flat.to(BY_CODE[code].torch)
    found = torch.from_numpy(compiled_ops().numbers(elements_of(stored), 7, 50))
    assert torch.equal(found, stored[7:57].float().double())
    assert torch.equal(torch_ops().numbers(stored.view(10, 10), 7, 50), found)


@given(
    st.integers(1, 70),
    st.integers(1, 300),
    st.integers(0, 99),
    st.booleans(),
    st.sampled_from((torch.float32, torch.bfloat16)),
)
@settings(max_examples=60)
def test_choosing_by_weighted_rows_agrees_with_torch(
    count: int, row: int, seed: int, ties: bool, dtype: torch.dtype
) -> None:
    rows = vectors(2, count * row, seed, ties)
    first, second = (each.to(dtype).view(count, row) for each in rows)
    (factors,) = vectors(1, count, seed + 1, ties)
    factors = factors.abs()
    score = (first.float() - second.float()).abs() * factors.view(count, 1)
    least = float(score.view(-1)[seed % score.numel()])
    out = torch.empty(count, row)
    vector = Vector(elements_of(first), elements_of(second), Factors(factors.numpy()))
    compiled_ops().choose(vector, least, elements_of(out))
    assert same(out, torch.where(score >= least, first.float(), second.float()))


@given(st.integers(1, 30), st.integers(1, 300), st.integers(0, 400), st.integers(0, 99))
@settings(max_examples=40)
def test_column_factors_agree_with_torch(rows: int, columns: int, first: int, seed: int) -> None:
    (vector,) = vectors(1, rows * columns, seed, False)
    (factors,) = vectors(1, columns, seed + 1, False)
    out, expected = torch.empty(vector.numel()), torch.empty(vector.numel())
    by_column = Factors(factors.numpy(), by_column=True, first_column=first % columns)
    compiled_ops().combine([Vector(elements_of(vector), None, by_column)], [1.0], elements_of(out))
    here = Factors(factors, by_column=True, first_column=first % columns)
    torch_ops().combine([Vector(vector, None, here)], [1.0], expected)
    assert torch.equal(out, expected)
    assert torch.equal(out.view(rows, columns), vector.view(rows, columns) * factors.roll(-first))


def agree(one: torch.Tensor, other: torch.Tensor, few: int = 0) -> None:
    """Equal to rounding, but for a few elements at which a decision depends on the last bit."""
    wrong = ~torch.isclose(one, other, rtol=1e-5, atol=1e-6 * float(one.abs().max()))
    assert int(wrong.sum()) <= few


@pytest.mark.parametrize(
    ("method", "models", "settings_"),
    [
        ("linear", {"weight": 0.4}, {}),
        ("task_arithmetic", {"weight": 0.4}, {}),
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
        ("model_stock", {}, {"filter_wise": True}),
        ("multislerp", {"weight": 0.4}, {}),
        ("nuslerp", {"weight": 0.4}, {}),
        ("nuslerp", {"weight": 0.4}, {"nuslerp_flatten": False}),
        ("nuslerp", {"weight": 0.4}, {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
        ("ram", {}, {}),
        ("ramplus_tl", {}, {}),
        ("nearswap", {}, {"t": 1e-3}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("ties", [False, True])
def test_whole_kernels_agree_with_torch(
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
    based = None if method == "linear" else 0
    parameters = [models] * (count + 1) if based is None else [{}, *[models] * count]
    kernel = kernel_of(method, shape, parameters, base=based, **settings_)
    assert sum(map(COMPILED.cost, kernel.uses)) > 0
    inputs = [tensor.to(dtype) for tensor in (base, *tunes)]
    one, other = (run(kernel, inputs, torchs=torchs) for torchs in (False, True))
    agree(one, other, few=3 if method in ("arcee_fusion", "sce") else 0)
    assert not torch.equal(one, inputs[0].float())
    remembered = run(kernel, inputs, Walk(1000, 3, memo=True))
    plain = run(kernel, inputs, Walk(1000, 3))
    assert torch.equal(remembered.view(torch.int32), plain.view(torch.int32))


def test_a_cache_that_cannot_be_written_to_has_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(RunError) as caught:
        COMPILED.build(frozenset({"combine"}))
    assert caught.value.remedy == "set XDG_CACHE_HOME to a directory that can be written to"
