"""NaN and infinities are found among elements of every type, wherever they are."""

from __future__ import annotations

import pytest
import torch

from mergeloom.engine.base.dtypes import BY_CODE
from mergeloom.engine.run.finite import all_finite, not_finite

TYPES = [code for code, dtype in BY_CODE.items() if dtype.floating and dtype.block == 1]


@pytest.mark.parametrize("code", TYPES)
def test_every_code_is_finite_exactly_if_torch_says_so(code: str) -> None:
    dtype = BY_CODE[code]
    width = min(dtype.size, 2)
    leading = torch.arange(1 << (8 * width)).to(torch.uint8 if width == 1 else torch.uint16)
    codes = torch.zeros(leading.numel(), dtype.size // width).to(leading.dtype)
    codes[:, -1] = leading
    elements = codes.view(torch.uint8).view(dtype.torch).flatten()
    if code == "F8_E8M0":
        elements = elements.float()
    broken = ~elements.double().isfinite()
    content = memoryview(codes.view(torch.uint8).numpy().tobytes())
    found = torch.from_numpy(not_finite(content, dtype, len(broken)))
    assert torch.equal(found, broken)
    for number in (0, *broken.nonzero().flatten().tolist()[:300]):
        one = content[number * dtype.size : (number + 1) * dtype.size]
        assert all_finite(one, dtype) == (not broken[number])
    assert not all_finite(content, dtype)
    assert all_finite(content[:0], dtype)
