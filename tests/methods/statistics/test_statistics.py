"""Statistics: exact order statistics and dot products, however grains are grouped."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergeloom.engine.graph.kernel import Kernel, Use
from mergeloom.methods.kernels.linear_combination import GramCombination, Rule
from mergeloom.methods.ops.maths import Maths
from mergeloom.methods.ops.vectors import Differences, Inputs
from mergeloom.methods.statistics.angles import Matrix
from mergeloom.methods.statistics.gram import GramMatrix
from mergeloom.methods.statistics.selection import CoarseHistogram, FineHistogram, Ranks
from tests.methods.support import WALKS, Walk, run


@dataclass(frozen=True)
class Asking(Kernel):
    """Keeps what its statistics found."""

    statistics: tuple[object, ...]
    found: list[object]

    @property
    def passes(self) -> tuple[object, ...]:
        return self.statistics

    uses = (Use("copy"),)

    def apply(self, grain: object, out: object, statistics: object, prefix: object) -> None:
        self.found[:] = statistics


def ask(
    inputs: list[torch.Tensor], *statistics: object, walk: Walk = WALKS[0], torchs: bool = False
) -> list[object]:
    found: list[object] = []
    run(Asking(statistics, found), inputs, walk, torchs)
    return found


@given(st.integers(1, 5000), st.integers(0, 1 << 30), st.sampled_from((0, 3, 12)), st.data())
def test_the_rank_is_exact(n: int, seed: int, digits: int, data: st.DataObject) -> None:
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(n, generator=source) * torch.exp2(8 * torch.randn(n, generator=source))
    if digits:  # few distinct values
        x = x.bfloat16().float() if digits == 12 else (x * 4).round() / 4
    ranks = data.draw(st.lists(st.integers(1, n), min_size=1, max_size=3))
    source_ = Inputs((0,))
    walk = data.draw(st.sampled_from(WALKS))
    coarse, fine = CoarseHistogram(source_, (tuple(ranks),)), FineHistogram(source_, sums=True)
    found = ask([x], coarse, fine, walk=walk, torchs=data.draw(st.booleans()))[1]
    assert isinstance(found, Ranks)
    magnitudes = x.abs().sort(descending=True).values
    for rank, ranked in zip(ranks, found.by_vector[0], strict=True):
        value = magnitudes[rank - 1]
        assert ranked.value == float(value)
        assert ranked.above == int((magnitudes > value).sum())
        assert ranked.equal == int((magnitudes == value).sum())
        expected = float(magnitudes[magnitudes > value].double().sum())
        assert ranked.sum_above == pytest.approx(expected, rel=1e-6)
    assert found.sums[0] == pytest.approx(float(magnitudes.double().sum()), rel=1e-6)


def test_the_rank_is_exact_in_a_crowded_bucket_and_a_large_grain() -> None:
    """All elements share their high bits: more of them than are gathered column by column."""
    x = 1.0 + torch.rand(200_000) * 2**-8
    walk = Walk(1 << 17, 2, seed=3)
    source = Inputs((0,))
    found = ask([x], CoarseHistogram(source, ((777,),)), FineHistogram(source), walk=walk)[1]
    assert isinstance(found, Ranks)
    assert found.by_vector[0][0].value == float(x.sort(descending=True).values[776])


@given(
    n=st.integers(1, 3000),
    seed=st.integers(0, 1 << 30),
    dtypes=st.tuples(*[st.sampled_from([torch.float32, torch.bfloat16])] * 2),
    data=st.data(),
)
def test_ranks_of_small_tensors_agree_with_sorting(
    n: int, seed: int, dtypes: tuple[torch.dtype, torch.dtype], data: st.DataObject
) -> None:
    source = torch.Generator().manual_seed(seed)
    x, y = ((torch.randn(n, generator=source) * 3).round().to(dtype) / 8 for dtype in dtypes)
    odd = st.sampled_from([0.0, -0.0, 1e-40, 3e38, math.inf, -math.inf, math.nan])
    for each in (x, y):
        each[torch.randint(n, (2,), generator=source)] = data.draw(odd)
    vectors, difference = Differences(1, (0,)), x.float() - y.float()
    ranks = data.draw(st.lists(st.integers(1, n), max_size=3))
    share = None if ranks else data.draw(st.floats(0.1, 1.0))
    coarse = CoarseHistogram(vectors, (tuple(ranks),), share)
    for sums in (False, True):
        fine = FineHistogram(vectors, sums)
        here, there = (ask([x, y], coarse, fine, torchs=torchs)[1] for torchs in (False, True))
        assert isinstance(here, Ranks)
        assert isinstance(there, Ranks)
        assert len(here.by_vector[0]) == len(there.by_vector[0])
        for own, other in zip(here.by_vector[0], there.by_vector[0], strict=True):
            assert struct.pack("f", own.value) == struct.pack("f", other.value)
            assert (own.rank, own.above, own.equal) == (other.rank, other.above, other.equal)
            assert None in (own.ties, other.ties) or own.ties == other.ties
            if own.end is not None:
                equal = (difference.abs() == own.value).nonzero().flatten().tolist()
                assert own.end == [*equal, n][own.rank - own.above]


def test_nan_and_infinity_rank_on_top() -> None:
    x = torch.tensor([1.0, float("nan"), -float("inf"), 2.0])
    source = Inputs((0,))
    found = ask([x], CoarseHistogram(source, ((1, 2, 3),)), FineHistogram(source))[1]
    assert isinstance(found, Ranks)
    first, second, third = (ranked.value for ranked in found.by_vector[0])
    assert math.isnan(first)
    assert (second, third) == (float("inf"), 2.0)


def test_the_share_of_elements_that_are_not_zero() -> None:
    x = torch.tensor([0.0, 5.0, -4.0, 0.0, 3.0, 2.0, 1.0, -0.0])
    source = Inputs((0,))
    found = ask([x], CoarseHistogram(source, ((),), 0.5), FineHistogram(source))[1]
    assert isinstance(found, Ranks)
    assert [ranked.value for ranked in found.by_vector[0]] == [4.0]


@given(st.integers(1, 5000), st.integers(1, 4), st.integers(0, 1 << 30))
def test_the_gram_matrix_is_exact_and_independent_of_grains(n: int, count: int, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(n, generator=source) for _ in range(count)]
    statistic = GramMatrix(Inputs(tuple(range(count))))
    results = [ask(inputs, statistic, walk=walk)[0] for walk in WALKS]
    assert all(result == results[0] for result in results)
    matrix = torch.stack(inputs).double()
    gram = torch.tensor(results[0], dtype=torch.float64)
    assert torch.allclose(gram, matrix @ matrix.T, rtol=1e-13, atol=1e-13)


@dataclass(frozen=True)
class Norms(Rule):
    def coefficients(self, gram: Matrix, maths: Maths) -> list[float]:
        return [gram[i][i] for i in range(len(gram))]


def test_the_gram_matrix_of_differences_is_exact() -> None:
    base, other = torch.ones(10), torch.full((10,), 3.0)
    result = run(GramCombination(Norms(), (1,), 0), [base, other])
    assert torch.equal(result, base + 40.0 * (other - base))
