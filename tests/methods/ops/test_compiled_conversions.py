"""Conversions of compiled operations: the bytes that torch makes of the same numbers."""

from __future__ import annotations

import math
from typing import Any

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
    DType,
)
from mergeloom.engine.memory.elements import Elements
from mergeloom.methods.ops.interface import (
    Adjustment,
    Blocks,
    Lookup,
)
from tests.methods.support import compiled_ops, elements_of, same, torch_ops, vectors

_FLOATS = ["BF16", "F16", "F32", "F64", "F8_E4M3", "F8_E5M2"]
_WIDENED = [*_FLOATS, "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"]


@pytest.mark.parametrize("code", [*_WIDENED, "I64", "I32", "I16", "I8", "U8", "BOOL"])
def test_widening_agrees_with_torch(code: str) -> None:
    dtype = BY_CODE[code]
    if dtype.size == 1:
        stored = torch.arange(256).to(torch.uint8)
        stored = stored.bool() if code == "BOOL" else stored.view(dtype.torch)
    elif dtype.size == 2:
        stored = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype.torch)
    elif dtype.floating:
        stored = torch.cat(vectors(3, 3000, 1, True)).to(dtype.torch)
    else:
        stored = torch.randint(-(1 << 31), 1 << 31, (5000,)).to(dtype.torch)
    out = torch.empty(stored.numel())
    compiled_ops().widen(dtype, elements_of(stored), elements_of(out))
    assert same(out, stored.float())


@pytest.mark.parametrize("dtype", [F4, I4, U2, U4, U4_EVEN, U4_UPPER], ids=str)
def test_widening_of_packed_codes_agrees_with_torch(dtype: DType) -> None:
    stored = torch.randint(0, 256, (9000,), dtype=torch.uint8)
    count = len(stored) * 8 // dtype.bits
    found, expected = torch.empty(count), torch.empty(count)
    compiled_ops().widen(dtype, elements_of(stored), elements_of(found))
    torch_ops().widen(dtype, stored, expected)
    assert same(found, expected)
    assert len(found.unique()) == (4 if dtype is U2 else 15 if dtype is F4 else 16)


@pytest.mark.parametrize("how", Adjustment)
@pytest.mark.parametrize("code", ["F32", "BF16", "F16", "F8_E8M0", "F8_E4M3", "U4", "nested"])
@pytest.mark.parametrize("across_first", [False, True])
@pytest.mark.parametrize("grid", [(3, 5, 7), (1, 10, 7), (1, 1, 1)])
def test_scaling_of_codes_agrees_with_torch(
    how: Adjustment, code: str, across_first: bool, grid: tuple[int, int, int]
) -> None:
    rows, row, first = 13, 100, 4
    count = math.prod(grid) + math.prod(grid) % 2
    torch.manual_seed(count)
    stored = torch.randn(count).to(BY_CODE.get(code, F32).torch if code != "F8_E8M0" else F32.torch)
    numbers: Any = elements_of(stored)
    if code in ("U4", "nested", "F8_E8M0"):
        stored = torch.randint(100, 140, (count,), dtype=torch.uint8)
        dtype = {"U4": U4, "F8_E8M0": F8_E8M0}.get(code, U8)
        numbers = Elements(stored.data_ptr(), dtype, count * 8 // dtype.bits)
    values, scales = torch.randn(256), torch.randn(99)
    groups = (torch.arange(row) * 7 % (grid[2] + 1)).int()
    lookups: list[Any] = [None, None]
    if code == "nested":
        lookups = [Lookup(of(values), of(scales), 4, 0.125) for of in (elements_of, torch.clone)]
    other = stored
    if code == "U4":
        other = torch.empty(2 * count)
        torch_ops().widen(U4, stored, other)
    elif code == "F8_E8M0":
        other = stored.view(torch.float8_e8m0fnu)
    array = torch.randn(rows * row)
    for grouped in (False, True) if grid[2] > 1 else (False,):
        found, expected = torch.empty(rows * row), torch.empty(rows * row)
        tall = 100 if grid == (1, 1, 1) else 2
        shape = (grid, tall, -(-row // grid[2]), tall * grid[1], first, across_first)
        place = elements_of(groups) if grouped else None
        blocks = Blocks(numbers, *shape, place, lookups[0])
        out = elements_of(found)
        compiled_ops().adjust(elements_of(array), blocks, how, row, out, zero=1.5, factor=0.75)
        blocks = Blocks(other, *shape, groups if grouped else None, lookups[1])
        torch_ops().adjust(array, blocks, how, row, expected, zero=1.5, factor=0.75)
        assert same(found, expected)
        assert bool(found.isnan().any()) == grouped  # some columns are in a group that is not there


@pytest.mark.parametrize("code", _FLOATS)
def test_rounding_agrees_with_torch(code: str) -> None:
    dtype = BY_CODE[code]
    halves = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.float16).float()
    eights = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn).float()
    near = torch.cat([halves, eights, *vectors(2, 3000, 2, True)])
    bits = near.view(torch.int32)
    values = torch.cat([near, *((bits + step).view(torch.float32) for step in (-1, 1, 0x0FFF))])
    values = torch.cat([values, values * 2**-8, values * 1.5, values * 2**-14])
    if code == "F8_E5M2":  # where torch's own way may be to infinity or to NaN
        values = values[values.abs() < 57344]
    if code == "F8_E4M3":  # or to the largest number
        values = values[values.abs() <= 464]
    out = torch.empty(values.numel(), dtype=dtype.torch)
    bad = compiled_ops().store(elements_of(values), elements_of(out))
    expected = values.to(dtype.torch)
    found, wanted = out.float(), expected.float()
    wrong = found.view(torch.int32).ne(wanted.view(torch.int32)) & ~(found.isnan() & wanted.isnan())
    assert not wrong.any(), (values[wrong][:5], found[wrong][:5], wanted[wrong][:5])
    assert bad == int((~wanted.isfinite()).sum())


def test_storing_in_place_changes_nothing_and_counts_non_finite_values() -> None:
    values = torch.tensor([1.0, float("inf"), -0.0, float("nan")])
    kept = values.clone()
    assert compiled_ops().store(elements_of(values), elements_of(values)) == 2
    assert same(values, kept)
