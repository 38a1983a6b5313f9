"""Codes and scales: the values that they stand for, with the same bytes at every budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from mergeloom.engine.base.dtypes import (
    BY_CODE,
    F4,
    F8_E8M0,
    F32,
    I4,
    U2,
    U4,
    U4_EVEN,
    U4_UPPER,
    U8,
)
from mergeloom.engine.base.errors import RunError
from mergeloom.engine.graph.graph import (
    GraphError,
)
from mergeloom.engine.graph.kernel import Copy
from mergeloom.engine.plan.schedule import schedule
from mergeloom.methods.inputs.dequantise import Dequantise, Nested, Scale
from mergeloom.methods.inputs.transpose import Transpose
from tests.methods.inputs.graphs import (
    E4M3,
    I8,
    MemoryGraphMaker,
    at_every_budget,
    close,
    drawn,
    machine,
    run,
    whole_numbers,
)


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
    maker = MemoryGraphMaker()
    codes = drawn(*shape).to(torch.float8_e4m3fn)
    scale = Scale(*block)
    scales = drawn(*scale.grid(shape), seed=1).abs() + 0.1
    kernel = Dequantise((scale,))
    merge = maker.builder.merge([maker.load(codes, E4M3)], kernel, "w", [maker.load(scales, F32)])
    found = at_every_budget(maker, merge, tmp_path)
    close(found, codes.double() * expanded(scales, block, shape))


FP4 = torch.tensor([0.0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def packed(codes: torch.Tensor) -> torch.Tensor:
    """Two codes a byte, the first in the lower half."""
    return (codes[..., ::2] | codes[..., 1::2] << 4).to(torch.uint8)


def test_mxfp4_of_gpt_oss_is_dequantised(tmp_path: Path) -> None:
    """Blocks of 32 in sixteen bytes, scales as exponents, experts in a stack, dense transposed."""
    maker = MemoryGraphMaker()
    codes = whole_numbers(0, 16, 3, 700, 640)
    exponents = whole_numbers(110, 135, 3, 700, 20, seed=1).to(torch.uint8)
    stored = maker.stored(packed(codes), U8, (3, 700, 20, 16)).reshape((3, 700, 320)).view_as(F4)
    scales = maker.stored(exponents, U8).view_as(F8_E8M0)
    values = maker.builder.merge(
        [maker.of(stored)], Dequantise((Scale(1, 32),)), "w", [maker.of(scales)]
    )
    merge = maker.builder.merge([values], Transpose(), "w")
    assert merge.shape == (3, 640, 700)
    found = at_every_budget(maker, merge, tmp_path)
    powers = 2.0 ** (exponents.double() - 127)
    expected = FP4[codes].double() * expanded(powers, (1, 32), codes.shape)
    assert torch.equal(found.double(), expected.transpose(1, 2))


def test_every_other_row_of_codes_is_dequantised(tmp_path: Path) -> None:
    """Gate and up of gpt-oss are interleaved: one of them costs half of the reading."""
    maker = MemoryGraphMaker()
    codes = whole_numbers(0, 16, 900, 640)
    exponents = whole_numbers(120, 130, 900, 20, seed=1).to(torch.uint8)
    stored = maker.stored(packed(codes), U8).view_as(F4).rows(range(1, 900, 2))
    scales = maker.stored(exponents, U8).view_as(F8_E8M0).rows(range(1, 900, 2))
    kernel = Dequantise((Scale(1, 32),))
    merge = maker.builder.merge([maker.of(stored)], kernel, "up", [maker.of(scales)])
    found = at_every_budget(maker, merge, tmp_path)
    powers = 2.0 ** (exponents.double() - 127)
    expected = FP4[codes].double() * expanded(powers, (1, 32), codes.shape)
    assert torch.equal(found.double(), expected[1::2])


def test_two_scales_one_of_them_inverse_are_applied(tmp_path: Path) -> None:
    maker = MemoryGraphMaker()
    codes = whole_numbers(0, 16, 800, 1024)
    scales = drawn(800, 64, seed=1).abs().to(torch.float8_e4m3fn)
    merge = maker.builder.merge(
        *([maker.load(packed(codes), F4, (800, 1024))],),
        Dequantise((Scale(1, 16), Scale(single=True, inverse=True))),
        "w",
        [maker.load(scales, E4M3), maker.load(torch.tensor([3.0]), F32)],
    )
    found = at_every_budget(maker, merge, tmp_path)
    close(found, FP4[codes].double() * expanded(scales, (1, 16), codes.shape) / 3)


@pytest.mark.parametrize("kind", ["int8", "int4", "table", "points", "groups", "int2", "nested"])
def test_integer_codes_are_dequantised(tmp_path: Path, kind: str) -> None:
    maker = MemoryGraphMaker()
    shape = (900, 640)
    scales = drawn(900, 5, seed=1)
    side = [maker.load(scales, F32)]
    codes = whole_numbers(0, 16, *shape)
    points = whole_numbers(0, 16, 900, 5, seed=2)
    block = (Scale(1, 128),)
    wide = expanded(scales, (1, 128), shape)
    if kind == "int8":
        codes = whole_numbers(-128, 128, *shape)
        load, kernel, values = maker.load(codes.to(torch.int8), I8), Dequantise(block), codes
    elif kind == "int4":
        load, kernel = maker.load(packed(codes), I4, shape), Dequantise(block)
        values = torch.where(codes > 7, codes - 16, codes)
    elif kind == "int2":
        codes = whole_numbers(0, 4, *shape)
        shared = sum(codes[:, k::4] << (2 * k) for k in range(4)).to(torch.uint8)
        load, kernel, values = maker.load(shared, U2, shape), Dequantise(block, zero=2.0), codes - 2
    elif kind == "table":  # as bitsandbytes packs codes
        table = drawn(16, seed=5)
        shared = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8)
        load, kernel = maker.load(shared, U4_UPPER, shape), Dequantise(block, table=16)
        values = table[codes]
        side.insert(0, maker.load(table, F32))
    elif kind == "groups":  # as GPTQ does with desc_act, scales and points in columns
        load, column = maker.load(packed(codes), U4, shape), Scale(1, 128, across_first=True)
        kernel = Dequantise((column,), points=column, groups=True)
        groups = whole_numbers(0, 5, 640, seed=4)
        values, wide = codes - points[:, groups], scales.double()[:, groups]
        side = [
            maker.load(scales.t(), F32, (5, 900)),
            maker.load(packed(points.t().contiguous()), U4, (5, 900)),
            maker.load(groups.int(), BY_CODE["I32"]),
        ]
    elif kind == "nested":
        load, values = maker.load(packed(codes), U4, shape), codes
        entries, inner = drawn(256, seed=5), drawn(18, seed=6)
        numbers = whole_numbers(0, 256, 900, 5, seed=7)
        kernel = Dequantise((Scale(1, 128, nested=Nested(256, 0.25)),), factor=1 / 127)
        each = inner.repeat_interleave(256)[: numbers.numel()].view_as(numbers)
        wide = expanded(entries.double()[numbers] * each + 0.25, (1, 128), shape) / 127
        side = [
            *(maker.load(numbers.to(torch.uint8), U8), maker.load(entries, F32)),
            maker.load(inner, F32),
        ]
    else:
        load = maker.load(packed(codes), U4, shape)
        kernel = Dequantise(block, zero=1.0, points=Scale(1, 128))
        values = codes - 1 - expanded(points, (1, 128), shape)
        side.append(maker.load(points.to(torch.uint8), U8))
    found = at_every_budget(maker, maker.builder.merge([load], kernel, "w", side), tmp_path)
    close(found, values.double() * wide)


def test_a_group_number_out_of_range_is_an_error(tmp_path: Path) -> None:
    maker = MemoryGraphMaker()
    groups = torch.tensor([0, 1] * 15 + [0, 2]).int()
    merge = maker.builder.merge(
        [maker.load(drawn(4, 32), F32)],
        Dequantise((Scale(1, 16),), groups=True),
        "w",
        [maker.load(drawn(4, 2), F32), maker.load(groups, BY_CODE["I32"])],
    )
    with pytest.raises(RunError, match="'out': 4 or more values are not finite"):
        run(maker.graph(merge, F32), tmp_path / "out")


def test_awqs_words_of_eight_rows_are_dequantised(tmp_path: Path) -> None:
    """Words are exchanged by the reader, what is in them by a kernel, band by band of rows."""
    maker = MemoryGraphMaker()
    inside, outside = 1300, 1040
    codes = whole_numbers(0, 16, inside, outside)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    parts = codes.view(inside, outside // 8, 8)[:, :, order]
    numbers = sum(parts[:, :, k] << (4 * k) for k in range(8))
    stored = maker.stored(numbers.to(torch.uint32), BY_CODE["U32"], (inside, outside // 8))
    bands = stored.transpose().view_as(U4_EVEN).reshape((outside // 8, inside, 8))
    turned = maker.builder.merge([maker.of(bands)], Transpose(), "w")
    scales = drawn(outside, seed=1)
    kernel = Dequantise((Scale(1, 0),), shape=(outside, inside))
    merge = maker.builder.merge([turned], kernel, "w", [maker.load(scales, F32)])
    found = at_every_budget(maker, merge, tmp_path)
    close(found, codes.t().double() * scales.double().unsqueeze(1))


def test_scales_that_do_not_fit_are_refused_while_planning() -> None:
    maker = MemoryGraphMaker()
    codes, scales = maker.load(drawn(300, 200), F32), maker.load(drawn(2, 2), F32)
    with pytest.raises(GraphError, match=r"300x200 need side inputs of 6 numbers, not 2x2"):
        maker.builder.merge([codes], Dequantise((Scale(128, 128),)), "w", [scales])


def test_codes_are_copied_byte_for_byte(tmp_path: Path) -> None:
    maker, codes = MemoryGraphMaker(), packed(whole_numbers(0, 16, 1500, 1024))
    merge = maker.builder.merge([maker.load(codes, F4, (1500, 1024))], Copy(), "codes")
    graph = maker.graph(merge, F4)
    for ram in (None, schedule(graph, None, machine(1)).minimum_bytes):
        run(graph, tmp_path / f"{ram}", ram)
        assert (tmp_path / f"{ram}" / "out.bin").read_bytes()[4:] == codes.numpy().tobytes()
