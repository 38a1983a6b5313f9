"""Values made from side inputs: each against plain float64, with the same bytes at every budget."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mergeloom.engine import job as jobs
from mergeloom.engine.base.dtypes import (
    BF16,
    BY_CODE,
    F4,
    F8_E8M0,
    F16,
    F32,
    I4,
    U2,
    U4,
    U4_EVEN,
    U4_UPPER,
    U8,
    DType,
)
from mergeloom.engine.base.errors import BudgetError, RunError
from mergeloom.engine.base.units import MIB
from mergeloom.engine.graph.graph import (
    Graph,
    GraphBuilder,
    GraphError,
    Load,
    Merge,
    OutputFile,
    Write,
)
from mergeloom.engine.graph.kernel import Kernel
from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.engine.graph.verify import verify
from mergeloom.engine.hardware.spec import Machine
from mergeloom.engine.job import Options
from mergeloom.engine.plan.schedule import schedule
from mergeloom.engine.run.outcome import Outcome
from mergeloom.engine.storage.memory_source import MemorySource
from mergeloom.methods.inputs.dequantise import Dequantise, Nested, Scale
from mergeloom.methods.inputs.fill_rows import FillRows
from mergeloom.methods.inputs.low_rank import LowRank
from mergeloom.methods.inputs.transpose import Transpose
from mergeloom.methods.kernels.linear_combination import LinearCombination
from mergeloom.methods.ops.arithmetic import TORCH
from tests.engine.support import job, sha256, spec, tensor_of

E4M3 = BY_CODE["F8_E4M3"]
I8 = BY_CODE["I8"]


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + 7)).to(dtype)


def whole_numbers(low: int, high: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


class Desk:
    """Collects tensors and merges for one graph."""

    def __init__(self) -> None:
        self.builder = GraphBuilder()

    def stored(self, tensor: torch.Tensor, dtype: DType, shape: Sequence[int] = ()) -> StoredTensor:
        content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        source = MemorySource(b"\0" * 24 + content, "tensor")
        return StoredTensor.at(source, 24, dtype, tuple(shape or tensor.shape))

    def load(self, tensor: torch.Tensor, dtype: DType, shape: Sequence[int] = ()) -> Load:
        return self.of(self.stored(tensor, dtype, shape))

    def of(self, stored: StoredTensor) -> Load:
        return self.builder.load_bytes(stored.bytes, stored.dtype, stored.shape, "tensor")

    def graph(self, merge: Merge, dtype: DType) -> Graph:
        file = OutputFile("out.bin", b"head", 4 + dtype.nbytes(torch.Size(merge.shape).numel()))
        graph = self.builder.build([Write(merge, file, 4, dtype, "out")], [file])
        verify(graph)
        return graph


def machine(threads: int) -> Machine:
    return spec(threads, 300 * MIB, 0)


def run(graph: Graph, output: Path, ram: int | None = None, threads: int = 2) -> Outcome:
    outcome = jobs.run(job(graph), output, Options(ram=ram, machine=machine(threads)))
    assert outcome.schedule is not None
    assert outcome.read_bytes == outcome.schedule.read_bytes
    return outcome


def at_every_budget(desk: Desk, merge: Merge, tmp_path: Path, dtype: DType = F32) -> torch.Tensor:
    """The result, after checking that no budget and no number of threads changes a byte."""
    graph = desk.graph(merge, dtype)
    least = schedule(graph, None, machine(1)).minimum_bytes
    run(graph, tmp_path / "free")
    for more, threads in ((0, 1), (5 * MIB, 2), (30 * MIB, 3)):
        output = tmp_path / f"{more}"
        run(graph, output, least + more, threads)
        assert sha256(output) == sha256(tmp_path / "free")
    return tensor_of(tmp_path / "free", graph.writes[0])


def close(found: torch.Tensor, expected: torch.Tensor, relative: float = 1e-5) -> None:
    scale = float(expected.abs().max())
    torch.testing.assert_close(found.double(), expected, rtol=relative, atol=relative * scale)


# --- adapters ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1500, 1024), (3, 700_000), (640, 32, 3, 3), (9, 5)])
def test_low_rank_is_weight_plus_scaled_product(tmp_path: Path, shape: tuple[int, ...]) -> None:
    desk, rank = Desk(), 8
    weight = drawn(*shape, dtype=torch.bfloat16)
    down = drawn(rank, weight[0].numel(), seed=1)
    up = drawn(shape[0], rank, dtype=torch.float16, seed=2)
    side = [desk.load(down, F32), desk.load(up, F16)]
    merge = desk.builder.merge([desk.load(weight, BF16)], LowRank(0.5, rank), "w", side)
    found = at_every_budget(desk, merge, tmp_path)
    close(found, weight.double() + 0.5 * (up.double() @ down.double()).view(shape))


def test_two_adapters_one_of_them_transposed_are_added(tmp_path: Path) -> None:
    desk = Desk()
    weight = drawn(1200, 900)
    first, second = (
        (drawn(4, 900, seed=1), drawn(1200, 4, seed=2)),
        (
            drawn(6, 1200, seed=3),
            drawn(900, 6, seed=4),
        ),
    )
    one = desk.builder.merge(
        *([desk.load(weight, F32)], LowRank(2.0, 4), "w"),
        [desk.load(each, F32) for each in first],
    )
    turned = [desk.of(desk.stored(each, F32).transpose()) for each in reversed(second)]
    both = desk.builder.merge([one], LowRank(-0.25, 6), "w", turned)
    found = at_every_budget(desk, both, tmp_path)
    (a, b), (c, d) = ([each.double() for each in pair] for pair in (first, second))
    close(found, weight.double() + 2 * b @ a - 0.25 * (d @ c).T)


def test_an_adapted_model_is_merged_with_another(tmp_path: Path) -> None:
    desk = Desk()
    weight, other = drawn(1100, 1000), drawn(1100, 1000, dtype=torch.bfloat16, seed=1)
    down, up = drawn(4, 1000, seed=2), drawn(1100, 4, seed=3)
    side = [desk.load(down, F32), desk.load(up, F32)]
    adapted = desk.builder.merge([desk.load(weight, F32)], LowRank(1.0, 4), "w", side)
    merge = desk.builder.merge(
        [adapted, desk.load(other, BF16)], LinearCombination((0.25, 0.75)), "m"
    )
    found = at_every_budget(desk, merge, tmp_path, BF16)
    expected = 0.25 * (weight.double() + up.double() @ down.double()) + 0.75 * other.double()
    close(found, expected, 2**-8)


@pytest.mark.parametrize("turned", [False, True])
def test_dora_gives_rows_their_learnt_lengths(tmp_path: Path, turned: bool) -> None:
    """DoRA; also where the weight is stored the other way round."""
    desk, rows = Desk(), 1300
    weight, down = drawn(rows, 700, dtype=torch.bfloat16), drawn(5, 700, seed=1)
    up, lengths = drawn(rows, 5, seed=2), drawn(rows, seed=3, dtype=torch.float16).abs() + 0.5
    up[7] = 0
    weight[7] = 0
    weight[7, 3] = 2
    side = [desk.load(down, F32), desk.load(up, F32), desk.load(lengths, F16)]
    node: Load | Merge = desk.load(weight.T if turned else weight, BF16)
    if turned:
        node = desk.builder.merge([node], Transpose(), "w")
    merge = desk.builder.merge([node], LowRank(2.0, 5, lengths=True), "w", side)
    if turned:
        merge = desk.builder.merge([merge], Transpose(), "w")
    found = at_every_budget(desk, merge, tmp_path)
    summed = weight.double() + 2 * up.double() @ down.double()
    expected = summed * (lengths.double() / summed.norm(dim=1)).unsqueeze(1)
    close(found.T if turned else found, expected)


def test_a_row_without_a_direction_gets_no_length(tmp_path: Path) -> None:
    """As PEFT has it: what is divided by 0 is no number; here that is found."""
    desk = Desk()
    side = [desk.load(torch.zeros(*shape), F32) for shape in ((1, 4), (2, 1), (2,))]
    merge = desk.builder.merge(
        [desk.load(torch.zeros(2, 4), F32)], LowRank(1.0, 1, lengths=True), "w", side
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RunError, match="'out': 8 or more values are not finite"):
            run(desk.graph(merge, F32), tmp_path / "out")


@pytest.mark.parametrize("shape", [(1500, 1024), (3, 700_000)])
def test_torch_and_machine_code_agree_to_rounding(tmp_path: Path, shape: tuple[int, ...]) -> None:
    desk = Desk()
    rows, width = shape
    table = whole_numbers(0, 2, rows, 2).to(torch.uint8)
    inputs = [desk.load(drawn(*shape, seed=seed), F32) for seed in (0, 1)]
    filled = desk.builder.merge(inputs, FillRows(1), "w", [desk.load(table, U8)])
    beside = [desk.load(drawn(9, width, seed=2), F32), desk.load(drawn(rows, 9, seed=3), F32)]
    merge = desk.builder.merge([filled], LowRank(0.5, 9), "w", beside)
    graph = desk.graph(merge, F32)
    run(graph, tmp_path / "compiled")
    spoken = replace(job(graph), arithmetic=TORCH)
    jobs.run(spoken, tmp_path / "torch", Options(machine=replace(machine(2), arithmetic=TORCH)))
    found, other = (tensor_of(tmp_path / name, graph.writes[0]) for name in ("compiled", "torch"))
    close(found, other.double())


# --- codes and scales -------------------------------------------------------------------------


def expanded(scales: torch.Tensor, block: tuple[int, int], shape: Sequence[int]) -> torch.Tensor:
    """The scale of each element, the plain way."""
    rows, columns = (size or whole for size, whole in zip(block, shape[-2:], strict=True))
    down, across = -(-shape[-2] // rows), -(-shape[-1] // columns)
    grid = scales.double().reshape(*(shape[:-2] if scales.numel() > 1 else ()), -1)
    grid = grid.reshape(*grid.shape[:-1], down, across)
    wide = grid.repeat_interleave(rows, -2).repeat_interleave(columns, -1)
    return wide[..., : shape[-2], : shape[-1]]


@pytest.mark.parametrize("shape", [(1500, 1024), (3, 260, 909), (1, 7)])
@pytest.mark.parametrize("block", [(0, 0), (1, 0), (128, 128), (1, 32)])
def test_float8_blocks_with_ragged_edges_are_dequantised(
    tmp_path: Path, shape: tuple[int, ...], block: tuple[int, int]
) -> None:
    desk = Desk()
    codes = drawn(*shape).to(torch.float8_e4m3fn)
    scale = Scale(*block)
    scales = drawn(*scale.grid(shape), seed=1).abs() + 0.1
    kernel = Dequantise((scale,))
    merge = desk.builder.merge([desk.load(codes, E4M3)], kernel, "w", [desk.load(scales, F32)])
    found = at_every_budget(desk, merge, tmp_path)
    close(found, codes.double() * expanded(scales, block, shape))


FP4 = torch.tensor([0.0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def packed(codes: torch.Tensor) -> torch.Tensor:
    """Two codes a byte, the first in the lower half."""
    return (codes[..., ::2] | codes[..., 1::2] << 4).to(torch.uint8)


def test_mxfp4_of_gpt_oss_is_dequantised(tmp_path: Path) -> None:
    """Blocks of 32 in sixteen bytes, scales as exponents, experts in a stack, dense transposed."""
    desk = Desk()
    codes = whole_numbers(0, 16, 3, 700, 640)
    exponents = whole_numbers(110, 135, 3, 700, 20, seed=1).to(torch.uint8)
    stored = desk.stored(packed(codes), U8, (3, 700, 20, 16)).reshape((3, 700, 320)).view_as(F4)
    scales = desk.stored(exponents, U8).view_as(F8_E8M0)
    values = desk.builder.merge(
        [desk.of(stored)], Dequantise((Scale(1, 32),)), "w", [desk.of(scales)]
    )
    merge = desk.builder.merge([values], Transpose(), "w")
    assert merge.shape == (3, 640, 700)
    found = at_every_budget(desk, merge, tmp_path)
    powers = 2.0 ** (exponents.double() - 127)
    expected = FP4[codes].double() * expanded(powers, (1, 32), codes.shape)
    assert torch.equal(found.double(), expected.transpose(1, 2))


def test_every_other_row_of_codes_is_dequantised(tmp_path: Path) -> None:
    """Gate and up of gpt-oss are interleaved: one of them costs half of the reading."""
    desk = Desk()
    codes = whole_numbers(0, 16, 900, 640)
    exponents = whole_numbers(120, 130, 900, 20, seed=1).to(torch.uint8)
    stored = desk.stored(packed(codes), U8).view_as(F4).rows(range(1, 900, 2))
    scales = desk.stored(exponents, U8).view_as(F8_E8M0).rows(range(1, 900, 2))
    kernel = Dequantise((Scale(1, 32),))
    merge = desk.builder.merge([desk.of(stored)], kernel, "up", [desk.of(scales)])
    found = at_every_budget(desk, merge, tmp_path)
    powers = 2.0 ** (exponents.double() - 127)
    expected = FP4[codes].double() * expanded(powers, (1, 32), codes.shape)
    assert torch.equal(found.double(), expected[1::2])


def test_two_scales_one_of_them_inverse_are_applied(tmp_path: Path) -> None:
    desk = Desk()
    codes = whole_numbers(0, 16, 800, 1024)
    scales = drawn(800, 64, seed=1).abs().to(torch.float8_e4m3fn)
    merge = desk.builder.merge(
        *([desk.load(packed(codes), F4, (800, 1024))],),
        Dequantise((Scale(1, 16), Scale(single=True, inverse=True))),
        "w",
        [desk.load(scales, E4M3), desk.load(torch.tensor([3.0]), F32)],
    )
    found = at_every_budget(desk, merge, tmp_path)
    close(found, FP4[codes].double() * expanded(scales, (1, 16), codes.shape) / 3)


@pytest.mark.parametrize("kind", ["int8", "int4", "table", "points", "groups", "int2", "nested"])
def test_integer_codes_are_dequantised(tmp_path: Path, kind: str) -> None:
    desk = Desk()
    shape = (900, 640)
    scales = drawn(900, 5, seed=1)
    side = [desk.load(scales, F32)]
    codes = whole_numbers(0, 16, *shape)
    points = whole_numbers(0, 16, 900, 5, seed=2)
    block = (Scale(1, 128),)
    wide = expanded(scales, (1, 128), shape)
    if kind == "int8":
        codes = whole_numbers(-128, 128, *shape)
        load, kernel, values = desk.load(codes.to(torch.int8), I8), Dequantise(block), codes
    elif kind == "int4":
        load, kernel = desk.load(packed(codes), I4, shape), Dequantise(block)
        values = torch.where(codes > 7, codes - 16, codes)
    elif kind == "int2":
        codes = whole_numbers(0, 4, *shape)
        shared = sum(codes[:, k::4] << (2 * k) for k in range(4)).to(torch.uint8)
        load, kernel, values = desk.load(shared, U2, shape), Dequantise(block, zero=2.0), codes - 2
    elif kind == "table":  # as bitsandbytes packs codes
        table = drawn(16, seed=5)
        shared = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8)
        load, kernel = desk.load(shared, U4_UPPER, shape), Dequantise(block, table=16)
        values = table[codes]
        side.insert(0, desk.load(table, F32))
    elif kind == "groups":  # as GPTQ does with desc_act, scales and points in columns
        load, column = desk.load(packed(codes), U4, shape), Scale(1, 128, across_first=True)
        kernel = Dequantise((column,), points=column, groups=True)
        groups = whole_numbers(0, 5, 640, seed=4)
        values, wide = codes - points[:, groups], scales.double()[:, groups]
        side = [
            desk.load(scales.t(), F32, (5, 900)),
            desk.load(packed(points.t().contiguous()), U4, (5, 900)),
            desk.load(groups.int(), BY_CODE["I32"]),
        ]
    elif kind == "nested":
        load, values = desk.load(packed(codes), U4, shape), codes
        entries, inner = drawn(256, seed=5), drawn(18, seed=6)
        numbers = whole_numbers(0, 256, 900, 5, seed=7)
        kernel = Dequantise((Scale(1, 128, nested=Nested(256, 0.25)),), factor=1 / 127)
        each = inner.repeat_interleave(256)[: numbers.numel()].view_as(numbers)
        wide = expanded(entries.double()[numbers] * each + 0.25, (1, 128), shape) / 127
        side = [
            *(desk.load(numbers.to(torch.uint8), U8), desk.load(entries, F32)),
            desk.load(inner, F32),
        ]
    else:
        load = desk.load(packed(codes), U4, shape)
        kernel = Dequantise(block, zero=1.0, points=Scale(1, 128))
        values = codes - 1 - expanded(points, (1, 128), shape)
        side.append(desk.load(points.to(torch.uint8), U8))
    found = at_every_budget(desk, desk.builder.merge([load], kernel, "w", side), tmp_path)
    close(found, values.double() * wide)


def test_a_group_number_out_of_range_is_an_error(tmp_path: Path) -> None:
    desk = Desk()
    groups = torch.tensor([0, 1] * 15 + [0, 2]).int()
    merge = desk.builder.merge(
        [desk.load(drawn(4, 32), F32)],
        Dequantise((Scale(1, 16),), groups=True),
        "w",
        [desk.load(drawn(4, 2), F32), desk.load(groups, BY_CODE["I32"])],
    )
    with pytest.raises(RunError, match="'out': 4 or more values are not finite"):
        run(desk.graph(merge, F32), tmp_path / "out")


def test_awqs_words_of_eight_rows_are_dequantised(tmp_path: Path) -> None:
    """Words are exchanged by the reader, what is in them by a kernel, band by band of rows."""
    desk = Desk()
    inside, outside = 1300, 1040
    codes = whole_numbers(0, 16, inside, outside)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    parts = codes.view(inside, outside // 8, 8)[:, :, order]
    numbers = sum(parts[:, :, k] << (4 * k) for k in range(8))
    stored = desk.stored(numbers.to(torch.uint32), BY_CODE["U32"], (inside, outside // 8))
    bands = stored.transpose().view_as(U4_EVEN).reshape((outside // 8, inside, 8))
    turned = desk.builder.merge([desk.of(bands)], Transpose(), "w")
    scales = drawn(outside, seed=1)
    kernel = Dequantise((Scale(1, 0),), shape=(outside, inside))
    merge = desk.builder.merge([turned], kernel, "w", [desk.load(scales, F32)])
    found = at_every_budget(desk, merge, tmp_path)
    close(found, codes.t().double() * scales.double().unsqueeze(1))


def test_scales_that_do_not_fit_are_refused_while_planning() -> None:
    desk = Desk()
    codes, scales = desk.load(drawn(300, 200), F32), desk.load(drawn(2, 2), F32)
    with pytest.raises(GraphError, match=r"300x200 need side inputs of 6 numbers, not 2x2"):
        desk.builder.merge([codes], Dequantise((Scale(128, 128),)), "w", [scales])


# --- rows -------------------------------------------------------------------------------------


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
    desk, rows = Desk(), 1300
    chance = torch.Generator().manual_seed(3)
    inputs, loads, present = [], [], []
    for number, dtype in enumerate((BF16, F32, F16)):
        there = torch.rand(rows, generator=chance) < (0.9, 0.5, 0.3)[number]
        own = drawn(int(there.sum()), width, dtype=dtype.torch, seed=number)
        own[0] = -0.0
        place = iter(range(rows))
        numbers = [next(place) if each else -1 for each in there.tolist()]
        stored = desk.stored(own, dtype).rows(numbers)
        loads.append(desk.of(stored if width > 1 else stored.reshape((rows,))))
        dense = torch.zeros(rows, width, dtype=torch.float64)
        dense[there] = own.double()
        inputs.append(dense)
        present.append(there)
    sets = [
        [0] if present[0][row] else [n for n in (1, 2) if present[n][row]] for row in range(rows)
    ]
    side = [desk.load(table_of(sets, 3), U8)]
    merge = desk.builder.merge(loads, FillRows(padding), "embed", side)
    found = at_every_budget(desk, merge, tmp_path).reshape(rows, width)
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
    desk = Desk()
    stored = desk.stored(drawn(1000, 800), F32)
    load = desk.of(stored.rows([*range(300), *[-1] * 900, *range(300, 1000)]))
    merge = desk.builder.merge([load], LinearCombination((2.0,)), "w")
    graph = desk.graph(merge, F32)
    outcome = run(graph, tmp_path / "out", schedule(graph, None, machine(1)).minimum_bytes)
    assert outcome.read_bytes == 1000 * 800 * 4
    found = tensor_of(tmp_path / "out", graph.writes[0])
    assert not bool(found[300:1200].any())
    assert torch.equal(found[1200:], 2 * drawn(1000, 800)[300:])


def test_arranged_bytes_are_copied_in_order(tmp_path: Path) -> None:
    from mergeloom.engine.graph.kernel import Copy

    desk = Desk()
    first, second = drawn(700, 900, dtype=torch.bfloat16), drawn(500, 900, dtype=torch.bfloat16)
    joined = StoredTensor.join([desk.stored(first, BF16), desk.stored(second, BF16).rows([3, -1])])
    merge = desk.builder.merge([desk.of(joined.transpose())], Copy(), "w")
    found = at_every_budget(desk, merge, tmp_path, BF16)
    assert torch.equal(found, torch.cat([first, second[3:4], 0 * second[:1]]).T)


def test_codes_are_copied_byte_for_byte(tmp_path: Path) -> None:
    from mergeloom.engine.graph.kernel import Copy

    desk, codes = Desk(), packed(whole_numbers(0, 16, 1500, 1024))
    merge = desk.builder.merge([desk.load(codes, F4, (1500, 1024))], Copy(), "codes")
    graph = desk.graph(merge, F4)
    for ram in (None, schedule(graph, None, machine(1)).minimum_bytes):
        run(graph, tmp_path / f"{ram}", ram)
        assert (tmp_path / f"{ram}" / "out.bin").read_bytes()[4:] == codes.numpy().tobytes()


# --- what holds for all -----------------------------------------------------------------------


def test_side_inputs_count_towards_the_smallest_budget() -> None:
    desk = Desk()
    weight, down, up = drawn(64, 1 << 16), drawn(256, 1 << 16), drawn(64, 256)
    side = [desk.load(down, F32), desk.load(up, F32)]
    merge = desk.builder.merge([desk.load(weight, F32)], LowRank(1.0, 256), "w", side)
    graph = desk.graph(merge, F32)
    least = schedule(graph, None, machine(1)).minimum_bytes
    assert least > 300 * MIB + 2 * 64 * MIB
    with pytest.raises(BudgetError, match=r"1 inputs and 2 side inputs"):
        schedule(graph, least - 8 * MIB, machine(1))


def test_a_scale_that_is_not_a_number_is_no_overflow(tmp_path: Path) -> None:
    desk = Desk()
    scales = torch.tensor([255, 127], dtype=torch.uint8)
    load = desk.of(desk.stored(scales, U8).view_as(F8_E8M0))
    merge = desk.builder.merge(
        [desk.load(drawn(2, 32), F32)], Dequantise((Scale(1, 0),)), "w", [load]
    )
    graph = desk.graph(merge, F32)
    run(graph, tmp_path / "out")
    assert bool(tensor_of(tmp_path / "out", graph.writes[0])[0].isnan().all())


def test_overflow_of_a_dequantised_value_is_an_error(tmp_path: Path) -> None:
    desk = Desk()
    scale = desk.load(torch.tensor([1e6]), F32)
    merge = desk.builder.merge(
        *([desk.load(drawn(40, 30), F32)], Dequantise((Scale(),)), "w", [scale])
    )
    turned = desk.builder.merge([merge], Transpose(), "w")
    with pytest.raises(RunError, match="not finite as float16"):
        run(desk.graph(turned, F16), tmp_path / "out")


def test_kernels_refuse_shapes_that_do_not_match() -> None:
    desk = Desk()
    matrix, vector = desk.load(drawn(6, 4), F32), desk.load(drawn(6), F32)
    cases: list[tuple[Kernel, list[Load], list[Load], str]] = [
        (LowRank(1.0, 2), [matrix], [matrix, matrix], "of rank 2 do not match"),
        (Transpose(), [vector], [], "fewer than two dimensions"),
        (FillRows(), [matrix, matrix], [matrix], "do not fit"),
        (LinearCombination((1.0,)), [matrix], [vector], "takes no side inputs, but has 1"),
    ]
    for kernel, inputs, side, message in cases:
        with pytest.raises(GraphError, match=message):
            desk.builder.merge(inputs, kernel, "w", side)
