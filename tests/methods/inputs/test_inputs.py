"""Side inputs of any kind: budgets, values that are not finite, shapes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mergeloom.engine.base.dtypes import (
    F8_E8M0,
    F16,
    F32,
    U8,
)
from mergeloom.engine.base.errors import BudgetError, RunError
from mergeloom.engine.base.units import MIB
from mergeloom.engine.graph.graph import (
    Graph,
    GraphError,
    Load,
)
from mergeloom.engine.graph.kernel import Kernel
from mergeloom.engine.plan.schedule import schedule
from mergeloom.methods.inputs.dequantise import Dequantise, Scale
from mergeloom.methods.inputs.fill_rows import FillRows
from mergeloom.methods.inputs.low_rank import LowRank
from mergeloom.methods.inputs.transpose import Transpose
from mergeloom.methods.kernels.linear_combination import LinearCombination
from tests.engine.support import tensor_of
from tests.methods.inputs.graphs import MemoryGraphMaker, drawn, machine, run


def test_side_inputs_count_towards_the_smallest_budget() -> None:
    def graph_of(rank: int) -> Graph:
        maker = MemoryGraphMaker()
        weight, down, up = drawn(64, 1 << 16), drawn(rank, 1 << 16), drawn(64, rank)
        side = [maker.load(down, F32), maker.load(up, F32)]
        merge = maker.builder.merge([maker.load(weight, F32)], LowRank(1.0, rank), "w", side)
        return maker.graph(merge, F32)

    graph = graph_of(256)
    small, least = (schedule(g, None, machine(1)).minimum_bytes for g in (graph_of(1), graph))
    assert least - small > 63 * MIB
    with pytest.raises(BudgetError, match=r"1 inputs and 2 side inputs"):
        schedule(graph, least - 8 * MIB, machine(1))


def test_a_scale_that_is_not_a_number_is_no_overflow(tmp_path: Path) -> None:
    maker = MemoryGraphMaker()
    scales = torch.tensor([255, 127], dtype=torch.uint8)
    load = maker.of(maker.stored(scales, U8).view_as(F8_E8M0))
    merge = maker.builder.merge(
        [maker.load(drawn(2, 32), F32)], Dequantise((Scale(1, 0),)), "w", [load]
    )
    graph = maker.graph(merge, F32)
    run(graph, tmp_path / "out")
    assert bool(tensor_of(tmp_path / "out", graph.writes[0])[0].isnan().all())


def test_overflow_of_a_dequantised_value_is_an_error(tmp_path: Path) -> None:
    maker = MemoryGraphMaker()
    scale = maker.load(torch.tensor([1e6]), F32)
    merge = maker.builder.merge(
        *([maker.load(drawn(40, 30), F32)], Dequantise((Scale(),)), "w", [scale])
    )
    turned = maker.builder.merge([merge], Transpose(), "w")
    with pytest.raises(RunError, match="not finite as float16"):
        run(maker.graph(turned, F16), tmp_path / "out")


def test_kernels_refuse_shapes_that_do_not_match() -> None:
    maker = MemoryGraphMaker()
    matrix, vector = maker.load(drawn(6, 4), F32), maker.load(drawn(6), F32)
    cases: list[tuple[Kernel, list[Load], list[Load], str]] = [
        (LowRank(1.0, 2), [matrix], [matrix, matrix], "of rank 2 do not match"),
        (Transpose(), [vector], [], "fewer than two dimensions"),
        (FillRows(), [matrix, matrix], [matrix], "do not fit"),
        (LinearCombination((1.0,)), [matrix], [vector], "takes no side inputs, but has 1"),
    ]
    for kernel, inputs, side, message in cases:
        with pytest.raises(GraphError, match=message):
            maker.builder.merge(inputs, kernel, "w", side)
