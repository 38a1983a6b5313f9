"""Rows made for tokens that a model lacks: each way against plain float64, at several budgets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mergeloom.engine.base.dtypes import BF16, BY_CODE, F16, F32, DType
from mergeloom.engine.graph import kernel
from mergeloom.engine.graph.graph import GraphError, Load, Merge
from mergeloom.engine.plan.schedule import schedule
from mergeloom.methods.transplant import ways
from mergeloom.methods.transplant.graft import OWN, PADDING, GraftRows, RowKinds, Way
from mergeloom.methods.transplant.well_trained import WellTrained
from tests.engine.support import sha256, tensor_of
from tests.methods.inputs.graphs import MemoryGraphMaker, at_every_budget, close, machine, run
from tests.methods.transplant import oracle

I32, F64 = BY_CODE["I32"], BY_CODE["F64"]
ROWS, WIDTH, DONOR, ATOMS, MISSING = 9000, 72, 50, 203, 523


class Pair:
    """A model's table and a donor's, which has tokens that the model lacks. In several grains."""

    def __init__(self, width: int = WIDTH, dtype: DType = BF16, atoms: int = ATOMS) -> None:
        random = np.random.default_rng(5)
        self.maker = MemoryGraphMaker()
        self.kinds = np.full(ROWS, OWN, np.int32)
        places = random.permutation(ROWS - 10)
        self.missing = np.sort(places[:MISSING])
        self.kinds[self.missing] = random.permutation(MISSING)
        self.kinds[-10:] = PADDING
        self.table = random.standard_normal((ROWS, width)) * random.uniform(0.5, 2.0, width) + 0.3
        self.table[self.kinds != OWN] = 0.0
        self.atoms = random.standard_normal((atoms, DONOR)) + 0.2
        self.targets = random.standard_normal((MISSING, DONOR)) + 0.2
        self.twins = random.standard_normal((atoms, width)) - 0.1
        self.dtype = dtype
        for name in ("table", "atoms", "targets", "twins"):  # as they are once stored
            values = torch.from_numpy(getattr(self, name)).to(dtype.torch)
            setattr(self, name, values.double().numpy())

    def load(self, values: np.ndarray[Any, Any], dtype: DType | None = None) -> Load:
        dtype = dtype or self.dtype
        return self.maker.load(torch.from_numpy(values).to(dtype.torch), dtype)

    def merge(self, way: Way, *tables: Load, side: Sequence[Load] = ()) -> Merge:
        kinds = RowKinds(self.kinds.tobytes())
        rows = GraftRows(way, kinds, MISSING / ROWS, self.table.shape[1], padding=True)
        own = [self.load(self.table)]
        return self.maker.builder.merge(own, rows, "embedding", side, tables)

    def once(self, merge: Merge, path: Path) -> torch.Tensor:
        """The result of one run."""
        graph = self.maker.graph(merge, F32)
        run(graph, path / "free")
        return tensor_of(path / "free", graph.writes[0])

    def counts(self, rows: int) -> list[int]:
        """Missing tokens in each run of rows."""
        return [int((self.kinds[i : i + rows] >= 0).sum()) for i in range(0, ROWS, rows)]

    def tables(self) -> list[Load]:
        return [self.load(each) for each in (self.targets, self.atoms, self.twins)]

    @property
    def space(self) -> ways.DonorSizes:
        return ways.DonorSizes(MISSING, len(self.atoms), DONOR)

    def check(
        self,
        merge: Merge,
        made: np.ndarray[Any, Any],
        path: Path,
        relative: float,
        budgets: bool = False,
    ) -> None:
        """The result is the table, with ``made`` for the missing tokens, by their numbers."""
        found = at_every_budget(self.maker, merge, path) if budgets else self.once(merge, path)
        own = self.kinds == OWN
        assert np.array_equal(found[own].numpy(), self.table[own].astype(np.float32))
        mean = torch.from_numpy(self.table[own].mean(0))
        close(found[self.kinds == PADDING], mean.expand(10, -1))
        expected = torch.from_numpy(made[self.kinds[self.missing]])
        close(found[torch.from_numpy(self.missing)], expected, relative)


EVERY = np.ones(ATOMS, bool)


@pytest.mark.parametrize(("most", "dtype"), [(1, BF16), (7, F16), (20, F32)])
def test_pursuit_agrees_with_the_reference(
    tmp_path: Path, most: int, dtype: DType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From tables of several blocks, which are held in memory or not."""
    monkeypatch.setattr(kernel, "TABLE_BLOCK_BYTES", 4096)
    pair = Pair(dtype=dtype)
    made = oracle.pursuit(pair.targets, pair.atoms, pair.twins, most, EVERY)
    merge = pair.merge(ways.Pursuit(pair.space, most), *pair.tables())
    pair.check(merge, made, tmp_path, 1e-4, budgets=most > 1)


def test_a_table_is_read_again_where_it_cannot_be_held(tmp_path: Path) -> None:
    """As often as the plan says, in a budget that is smaller than the tables."""
    pair = Pair(dtype=F32, atoms=30_000)
    tables = pair.tables()
    _, atoms, twins = (load.nbytes for load in tables)
    merge = pair.merge(ways.Pursuit(pair.space, 3), *tables)
    graph = pair.maker.graph(merge, F32)
    least = schedule(graph, None, machine(1)).minimum_bytes
    tight, ample = (schedule(graph, ram, machine(1)) for ram in (least, None))
    (placed,) = tight.merges
    assert (placed.flow.held, ample.merges[0].flow.held) == ((), (1, 2))
    batches = sum(-(-n // 256) for n in pair.counts(placed.work.grains.size // WIDTH))
    assert tight.read_bytes - ample.read_bytes == (3 * batches - 1) * atoms + (batches - 1) * twins
    for name, ram in (("held", None), ("again", least)):
        run(graph, tmp_path / name, ram, 1)
    assert sha256(tmp_path / "held") == sha256(tmp_path / "again")


def test_pursuit_stops_when_the_residual_vanishes(tmp_path: Path) -> None:
    """Targets that are atoms are made of one; those of zeros of none; more atoms than dimensions
    help nobody."""
    pair = Pair(dtype=F32)
    pair.targets[:ATOMS] = pair.atoms
    pair.targets[300:310] = 0.0
    pair.atoms[50:53] = pair.atoms[49]
    made = np.zeros((MISSING, WIDTH))
    made[:ATOMS] = pair.twins
    made[50:53] = pair.twins[49]
    made[ATOMS:300] = oracle.pursuit(pair.targets[ATOMS:300], pair.atoms, pair.twins, 49, EVERY)
    merge = pair.merge(ways.Pursuit(pair.space, DONOR + 5), *pair.tables())
    found = pair.once(merge, tmp_path)
    by_number = torch.from_numpy(pair.missing[np.argsort(pair.kinds[pair.missing])])
    rows = found[by_number]
    close(rows[:49], torch.from_numpy(made[:49]))
    assert not rows[300:310].any()
    assert torch.isfinite(rows).all()


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("scheme", ways.SCHEMES)
def test_interpolation_agrees_with_the_reference(
    tmp_path: Path, cosine: bool, scheme: ways.Scheme
) -> None:
    pair = Pair()
    made = oracle.interpolation(pair.targets, pair.atoms, pair.twins, 9, cosine, scheme)
    way = ways.Interpolation(pair.space, 9, cosine, scheme)
    budgets = cosine and scheme == "distance"
    pair.check(pair.merge(way, *pair.tables()), made, tmp_path, 1e-4, budgets)


@pytest.mark.parametrize("width", [72, 50, 31])
def test_landmarks_agree_with_the_reference(tmp_path: Path, width: int) -> None:
    pair = Pair(width, F32)
    made = oracle.landmarks(pair.targets, pair.atoms, pair.twins)
    merge = pair.merge(ways.LandmarkMap(pair.space, width), *pair.tables())
    pair.check(merge, made, tmp_path, 1e-5, budgets=width == DONOR)


def test_a_mixture_of_named_rows_is_written(tmp_path: Path) -> None:
    pair, random = Pair(), np.random.default_rng(1)
    numbers = random.integers(0, ATOMS, (MISSING, 4)).astype(np.int32)
    weights = random.standard_normal((MISSING, 4))
    weights[:100, 1:] = 0.0
    made = np.einsum("nm,nmw->nw", weights, pair.twins[numbers])
    side = [pair.load(numbers, I32), pair.load(weights, F64)]
    merge = pair.merge(ways.Mixture(MISSING, 4), pair.load(pair.twins), side=side)
    pair.check(merge, made, tmp_path, 1e-6)


def test_mean_and_zero_rows_are_written(tmp_path: Path) -> None:
    pair = Pair()
    mean = np.broadcast_to(pair.table[pair.kinds == OWN].mean(0), (MISSING, WIDTH))
    (tmp_path / "mean").mkdir()
    pair.check(pair.merge(ways.Mean()), mean, tmp_path / "mean", 1e-6)
    (tmp_path / "zero").mkdir()
    pair.check(pair.merge(ways.Zero()), 0.0 * mean, tmp_path / "zero", 1e-6)


def test_random_rows_have_the_mean_and_deviation_of_the_others(tmp_path: Path) -> None:
    pair = Pair()
    merges = [pair.merge(ways.Random(seed, "embedding")) for seed in (0, 1)]
    paths = [tmp_path / "0", tmp_path / "1"]
    for path in paths:
        path.mkdir()
    found, other = (
        pair.once(merge, path)[torch.from_numpy(pair.missing)].double()
        for merge, path in zip(merges, paths, strict=True)
    )
    own = torch.from_numpy(pair.table[pair.kinds == OWN])
    assert not (found == other).any()
    assert ((found.mean(0) - own.mean(0)).abs() < 5 * own.std(0) / MISSING**0.5).all()
    assert ((found.std(0) / own.std(0) - 1).abs() < 5 / (2 * MISSING) ** 0.5).all()


def test_under_trained_tokens_are_not_taken(tmp_path: Path) -> None:
    """Rows that are short, and rows that point where unused ones do, in either model."""
    pair, random = Pair(dtype=F32), np.random.default_rng(2)
    unused = random.standard_normal((6, WIDTH)) * 0.05 + random.standard_normal(WIDTH)
    pair.atoms[7:9] *= 0.01
    pair.twins[20:23] = unused[:3] + 0.05
    usable = EVERY.copy()
    norms = np.linalg.norm(pair.atoms, axis=1)
    usable &= norms >= np.quantile(norms, 0.01)
    direction = unused.mean(0)
    cosines = pair.twins @ direction / np.linalg.norm(pair.twins, axis=1)
    cosines /= np.linalg.norm(direction)
    usable &= cosines <= max(np.quantile(cosines, 0.99), 0.5)
    assert not usable[7:9].any()
    assert not usable[20:23].any()
    assert usable.sum() == ATOMS - 6  # a hundredth of the short ones is one more
    judge = WellTrained(ATOMS, DONOR, WIDTH, (True, False), 0, len(unused))
    beside = [*pair.tables(), pair.load(unused)]
    made = oracle.pursuit(pair.targets, pair.atoms, pair.twins, 5, usable)
    merge = pair.merge(ways.Pursuit(pair.space, 5, judge), *beside)
    pair.check(merge, made, tmp_path, 1e-4, budgets=True)
    (tmp_path / "near").mkdir()
    near = pair.merge(ways.Interpolation(pair.space, 3, well_trained=judge), *beside)
    atoms, twins = pair.atoms[usable], pair.twins[usable]
    made = oracle.interpolation(pair.targets, atoms, twins, 3, False, "distance")
    pair.check(near, made, tmp_path / "near", 1e-4)


def test_torch_makes_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.engine import support

    pair = Pair(dtype=F32)
    tables = pair.tables()
    two = [
        ways.Pursuit(pair.space, 8),
        ways.Interpolation(pair.space, 5, True, "barycentric"),
        ways.LandmarkMap(pair.space, WIDTH),
        ways.Mean(),
    ]
    monkeypatch.setattr(support, "COMPILED", support.TORCH)
    made = [
        oracle.pursuit(pair.targets, pair.atoms, pair.twins, 8, EVERY),
        oracle.interpolation(pair.targets, pair.atoms, pair.twins, 5, True, "barycentric"),
        oracle.landmarks(pair.targets, pair.atoms, pair.twins),
        np.broadcast_to(pair.table[pair.kinds == OWN].mean(0), (MISSING, WIDTH)),
    ]
    for number, (way, rows) in enumerate(zip(two, made, strict=True)):
        path = tmp_path / str(number)
        path.mkdir()
        side = [] if isinstance(way, ways.Mean) else tables
        pair.check(pair.merge(way, *side), rows, path, 1e-4)


def test_tables_that_do_not_go_together_are_refused() -> None:
    pair = Pair()
    targets, atoms, twins = pair.tables()
    for side in ((atoms, targets, twins), (targets, atoms), (targets, atoms, atoms)):
        with pytest.raises(GraphError, match="embedding"):
            pair.merge(ways.Pursuit(pair.space, 5), *side)
    with pytest.raises(GraphError, match="no use"):
        pair.merge(ways.Zero(), targets)
