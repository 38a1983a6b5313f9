"""Rows that are taken, averaged or missing, with the same bytes at every budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from mergeloom.engine.base.dtypes import (
    BF16,
    F16,
    F32,
    U8,
)
from mergeloom.engine.graph.kernel import Copy
from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.engine.plan.schedule import schedule
from mergeloom.methods.inputs.fill_rows import FillRows
from mergeloom.methods.kernels.linear_combination import LinearCombination
from tests.engine.support import tensor_of
from tests.methods.inputs.graphs import (
    MemoryGraphMaker,
    at_every_budget,
    close,
    drawn,
    machine,
    run,
)


def table_of(sets: Sequence[Sequence[int]], inputs: int) -> torch.Tensor:
    table = torch.zeros(len(sets), inputs, dtype=torch.uint8)
    for row, own in enumerate(sets):
        table[row, list(own)] = 1
    return table


@pytest.mark.parametrize("padding", [0, 70])
@pytest.mark.parametrize("width", [900, 1])
def test_fill_rows_copies_averages_or_zeroes_missing_rows(
    tmp_path: Path, padding: int, width: int
) -> None:
    maker, rows = MemoryGraphMaker(), 1300
    chance = torch.Generator().manual_seed(3)
    inputs, loads, present = [], [], []
    for number, dtype in enumerate((BF16, F32, F16)):
        there = torch.rand(rows, generator=chance) < (0.9, 0.5, 0.3)[number]
        own = drawn(int(there.sum()), width, dtype=dtype.torch, seed=number)
        own[0] = -0.0
        place = iter(range(rows))
        numbers = [next(place) if each else -1 for each in there.tolist()]
        stored = maker.stored(own, dtype).rows(numbers)
        loads.append(maker.of(stored if width > 1 else stored.reshape((rows,))))
        dense = torch.zeros(rows, width, dtype=torch.float64)
        dense[there] = own.double()
        inputs.append(dense)
        present.append(there)
    sets = [
        [0] if present[0][row] else [n for n in (1, 2) if present[n][row]] for row in range(rows)
    ]
    side = [maker.load(table_of(sets, 3), U8)]
    merge = maker.builder.merge(loads, FillRows(padding), "embed", side)
    found = at_every_budget(maker, merge, tmp_path).reshape(rows, width)
    expected = torch.zeros(rows, width, dtype=torch.float64)
    for row, own in enumerate(sets):
        for number in own:
            expected[row] += inputs[number][row] / len(own)
    if padding:
        expected[-padding:] = expected[:-padding].mean(0)
    close(found, expected, 1e-6)
    alone = [row for row, own in enumerate(sets[: rows - padding]) if len(own) == 1]
    assert torch.equal(found[alone].double(), expected[alone])
    minus = found[: rows - padding].signbit() & (found[: rows - padding] == 0)
    assert bool(minus.any())


def test_holes_are_not_read(tmp_path: Path) -> None:
    maker = MemoryGraphMaker()
    stored = maker.stored(drawn(1000, 800), F32)
    load = maker.of(stored.rows([*range(300), *[-1] * 900, *range(300, 1000)]))
    merge = maker.builder.merge([load], LinearCombination((2.0,)), "w")
    graph = maker.graph(merge, F32)
    outcome = run(graph, tmp_path / "out", schedule(graph, None, machine(1)).minimum_bytes)
    assert outcome.read_bytes == 1000 * 800 * 4
    found = tensor_of(tmp_path / "out", graph.writes[0])
    assert not bool(found[300:1200].any())
    assert torch.equal(found[1200:], 2 * drawn(1000, 800)[300:])


def test_arranged_bytes_are_copied_in_order(tmp_path: Path) -> None:
    maker = MemoryGraphMaker()
    first, second = drawn(700, 900, dtype=torch.bfloat16), drawn(500, 900, dtype=torch.bfloat16)
    joined = StoredTensor.join(
        [maker.stored(first, BF16), maker.stored(second, BF16).rows([3, -1])]
    )
    merge = maker.builder.merge([maker.of(joined.transpose())], Copy(), "w")
    found = at_every_budget(maker, merge, tmp_path, BF16)
    assert torch.equal(found, torch.cat([first, second[3:4], 0 * second[:1]]).T)
