"""Low-rank changes of weights: against plain float64, with the same bytes at every budget."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mergeloom.engine import job as jobs
from mergeloom.engine.base.dtypes import (
    BF16,
    F16,
    F32,
    U8,
)
from mergeloom.engine.base.errors import RunError
from mergeloom.engine.graph.graph import (
    Load,
    Merge,
)
from mergeloom.engine.job import Options
from mergeloom.methods.inputs.fill_rows import FillRows
from mergeloom.methods.inputs.low_rank import LowRank
from mergeloom.methods.inputs.transpose import Transpose
from mergeloom.methods.kernels.linear_combination import LinearCombination
from mergeloom.methods.ops.arithmetic import TORCH
from tests.engine.support import job, tensor_of
from tests.methods.inputs.graphs import (
    MemoryGraphMaker,
    at_every_budget,
    close,
    drawn,
    machine,
    run,
    whole_numbers,
)


@pytest.mark.parametrize("shape", [(1500, 1024), (3, 700_000), (640, 32, 3, 3), (9, 5)])
def test_low_rank_is_weight_plus_scaled_product(tmp_path: Path, shape: tuple[int, ...]) -> None:
    maker, rank = MemoryGraphMaker(), 8
    weight = drawn(*shape, dtype=torch.bfloat16)
    down = drawn(rank, weight[0].numel(), seed=1)
    up = drawn(shape[0], rank, dtype=torch.float16, seed=2)
    side = [maker.load(down, F32), maker.load(up, F16)]
    merge = maker.builder.merge([maker.load(weight, BF16)], LowRank(0.5, rank), "w", side)
    found = at_every_budget(maker, merge, tmp_path)
    close(found, weight.double() + 0.5 * (up.double() @ down.double()).view(shape))


def test_each_of_many_matrices_has_factors_of_its_own(tmp_path: Path) -> None:
    """Matrices of 600 x 384 elements, of which a grain has two and a third."""
    maker, (n, out, width, rank) = MemoryGraphMaker(), (5, 600, 384, 3)
    weight = drawn(n, out, width, dtype=torch.bfloat16)
    down = drawn(n, rank, width, seed=1, dtype=torch.float16)
    up = drawn(n, out, rank, seed=2)
    side = [maker.load(down, F16), maker.load(up, F32)]
    kernel = LowRank(0.5, rank, matrices=n)
    merge = maker.builder.merge([maker.load(weight, BF16)], kernel, "w", side)
    found = at_every_budget(maker, merge, tmp_path)
    expected = weight.double() + 0.5 * (up.double() @ down.double())
    close(found, expected)
    spoken = replace(job(graph := maker.graph(merge, F32)), arithmetic=TORCH)
    jobs.run(spoken, tmp_path / "torch", Options(machine=replace(machine(2), arithmetic=TORCH)))
    close(tensor_of(tmp_path / "torch", graph.writes[0]), expected)


def test_two_adapters_one_of_them_transposed_are_added(tmp_path: Path) -> None:
    maker = MemoryGraphMaker()
    weight = drawn(1200, 900)
    first, second = (
        (drawn(4, 900, seed=1), drawn(1200, 4, seed=2)),
        (
            drawn(6, 1200, seed=3),
            drawn(900, 6, seed=4),
        ),
    )
    one = maker.builder.merge(
        *([maker.load(weight, F32)], LowRank(2.0, 4), "w"),
        [maker.load(each, F32) for each in first],
    )
    turned = [maker.of(maker.stored(each, F32).transpose()) for each in reversed(second)]
    both = maker.builder.merge([one], LowRank(-0.25, 6), "w", turned)
    found = at_every_budget(maker, both, tmp_path)
    (a, b), (c, d) = ([each.double() for each in pair] for pair in (first, second))
    close(found, weight.double() + 2 * b @ a - 0.25 * (d @ c).T)


def test_an_adapted_model_is_merged_with_another(tmp_path: Path) -> None:
    maker = MemoryGraphMaker()
    weight, other = drawn(1100, 1000), drawn(1100, 1000, dtype=torch.bfloat16, seed=1)
    down, up = drawn(4, 1000, seed=2), drawn(1100, 4, seed=3)
    side = [maker.load(down, F32), maker.load(up, F32)]
    adapted = maker.builder.merge([maker.load(weight, F32)], LowRank(1.0, 4), "w", side)
    merge = maker.builder.merge(
        [adapted, maker.load(other, BF16)], LinearCombination((0.25, 0.75)), "m"
    )
    found = at_every_budget(maker, merge, tmp_path, BF16)
    expected = 0.25 * (weight.double() + up.double() @ down.double()) + 0.75 * other.double()
    close(found, expected, 2**-8)


@pytest.mark.parametrize("turned", [False, True])
def test_dora_gives_rows_their_learnt_lengths(tmp_path: Path, turned: bool) -> None:
    """DoRA; also where the weight is stored the other way round."""
    maker, rows = MemoryGraphMaker(), 1300
    weight, down = drawn(rows, 700, dtype=torch.bfloat16), drawn(5, 700, seed=1)
    up, lengths = drawn(rows, 5, seed=2), drawn(rows, seed=3, dtype=torch.float16).abs() + 0.5
    up[7] = 0
    weight[7] = 0
    weight[7, 3] = 2
    side = [maker.load(down, F32), maker.load(up, F32), maker.load(lengths, F16)]
    node: Load | Merge = maker.load(weight.T if turned else weight, BF16)
    if turned:
        node = maker.builder.merge([node], Transpose(), "w")
    merge = maker.builder.merge([node], LowRank(2.0, 5, lengths=True), "w", side)
    if turned:
        merge = maker.builder.merge([merge], Transpose(), "w")
    found = at_every_budget(maker, merge, tmp_path)
    summed = weight.double() + 2 * up.double() @ down.double()
    expected = summed * (lengths.double() / summed.norm(dim=1)).unsqueeze(1)
    close(found.T if turned else found, expected)


def test_a_row_without_a_direction_gets_no_length(tmp_path: Path) -> None:
    """As PEFT has it: what is divided by 0 is no number; here that is found."""
    maker = MemoryGraphMaker()
    side = [maker.load(torch.zeros(*shape), F32) for shape in ((1, 4), (2, 1), (2,))]
    merge = maker.builder.merge(
        [maker.load(torch.zeros(2, 4), F32)], LowRank(1.0, 1, lengths=True), "w", side
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RunError, match="'out': 8 or more values are not finite"):
            run(maker.graph(merge, F32), tmp_path / "out")


@pytest.mark.parametrize("shape", [(1500, 1024), (3, 700_000)])
def test_torch_and_machine_code_agree_to_rounding(tmp_path: Path, shape: tuple[int, ...]) -> None:
    maker = MemoryGraphMaker()
    rows, width = shape
    table = whole_numbers(0, 2, rows, 2).to(torch.uint8)
    inputs = [maker.load(drawn(*shape, seed=seed), F32) for seed in (0, 1)]
    filled = maker.builder.merge(inputs, FillRows(1), "w", [maker.load(table, U8)])
    beside = [maker.load(drawn(9, width, seed=2), F32), maker.load(drawn(rows, 9, seed=3), F32)]
    merge = maker.builder.merge([filled], LowRank(0.5, 9), "w", beside)
    graph = maker.graph(merge, F32)
    run(graph, tmp_path / "compiled")
    spoken = replace(job(graph), arithmetic=TORCH)
    jobs.run(spoken, tmp_path / "torch", Options(machine=replace(machine(2), arithmetic=TORCH)))
    found, other = (tensor_of(tmp_path / name, graph.writes[0]) for name in ("compiled", "torch"))
    close(found, other.double())
