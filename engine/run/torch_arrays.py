"""The engine's array operations with torch. Only workers import this."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mergeloom.engine.base.dtypes import BF16, F16, F32, DType
from mergeloom.engine.memory.ledger import Block
from mergeloom.engine.memory.pages import PAGE
from mergeloom.engine.run.codecs import decode, encode

_SAFE_SQUARES = {F16: 65504.0**2, BF16: 3e38}
"""Sums of squares below which no element overflows when rounded to a dtype."""


_PACKED = {
    "F4": [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0],
    "I4": [*range(8), *range(-8, 0)],
    "U4": list(range(16)),
    "U4_UPPER": list(range(16)),
    "U4_EVEN": list(range(16)),
    "U2": list(range(4)),
}
_UPPER_FIRST = "U4_UPPER"
_EVEN_FIRST = "U4_EVEN"
_UNPACKED = 1 << 16
"""Bytes unpacked at once."""


def use_one_thread() -> None:
    """Keep torch from starting threads for the calling thread: tiles already run in parallel.

    Every computing thread must call it: the library that torch uses for logarithms has its own
    thread count for each thread.
    """
    torch.set_num_threads(1)


use_one_thread()  # the default for threads that do not call it


class TorchArrays:
    """`engine.graph.kernel.Ops` with torch.

    ``memory`` is a block, or flat uint8 memory of a ``device``, aligned to `PAGE` bytes. Scratch is
    allocated from it as a stack.
    """

    def __init__(self, memory: Block | Tensor, device: object = None) -> None:
        if isinstance(memory, Block):
            count = memory.size // 4
            memory = torch.frombuffer(memory.memory, dtype=torch.float32, count=count)
        self.on_device = device is not None
        self._memory = memory.view(torch.float32)
        self._used = 0

    def reads(self, dtype: DType) -> bool:
        return dtype == F32

    def view(self, block: Block, offset: int, dtype: DType, count: int) -> Tensor:
        """``count`` elements at byte ``offset`` of a block, as a flat tensor."""
        return torch.frombuffer(block.memory, dtype=dtype.torch, count=count, offset=offset)

    def at(self, memory: Tensor, offset: int, dtype: DType, count: int) -> Tensor:
        """``count`` elements at byte ``offset`` of device memory, as a flat tensor."""
        return memory[offset : offset + dtype.nbytes(count)].view(dtype.torch)

    def bring(self) -> None:
        """No effect: tensors are copied one by one."""

    def flush(self) -> None:
        """No effect: no operation is put off."""

    def shaped(self, array: Tensor, shape: tuple[int, ...]) -> Tensor:
        return array.view(shape)

    def take(self, count: int) -> Tensor:
        """Uninitialised float32 elements, valid until an earlier `top` is released."""
        start = self._used
        self._used = start + -(-count * 4 // PAGE) * PAGE // 4
        taken = self._memory[start : start + count]
        if taken.numel() != count:
            raise AssertionError("a kernel took more scratch than it declares")
        return taken

    def top(self) -> int:
        return self._used

    def release(self, top: int) -> None:
        self._used = top

    def widen(self, dtype: DType, array: Tensor, out: Tensor) -> None:
        """Convert elements to float32; packed dtypes are given as bytes."""
        if dtype.block == 1:
            out.copy_(array.view(out.shape))
            return
        if dtype.codec:
            decode(dtype, array.numpy(), out.view(-1).numpy())
            return
        values = torch.tensor(_PACKED[dtype.code], dtype=torch.float32, device=array.device)
        bits = int(dtype.bits)
        codes = torch.arange(256, device=array.device).unsqueeze(1)
        shifts = torch.arange(0, 8, bits, device=array.device)
        if dtype.code == _UPPER_FIRST:
            shifts = shifts.flip(0)
        of_bytes = values[(codes >> shifts) & ((1 << bits) - 1)]
        runs = out.view(-1, 8 // bits)
        for start in range(0, len(runs), _UNPACKED):
            part = slice(start, start + _UNPACKED)
            torch.index_select(of_bytes, 0, array[part].int(), out=runs[part])
        if dtype.code == _EVEN_FIRST:
            words = out.view(-1, 2, 4)
            words.copy_(words.transpose(1, 2).reshape(words.shape))

    def whole_bytes(self, dtype: DType, array: Tensor, count: int) -> Tensor:
        """``count`` elements in their stored dtype, or as float32 if the dtype is packed."""
        if dtype.block == 1:
            return array
        widened = torch.empty(count)
        self.widen(dtype, array, widened)
        return widened

    def copy(self, array: Tensor, out: Tensor) -> None:
        """Copy an array."""
        out.copy_(array)

    def pack(self, dtype: DType, result: Tensor, out: Tensor) -> int:
        """Write float32 elements as blocks; returns how many may not be finite afterwards."""
        return encode(dtype, result.view(-1).numpy(), out.numpy())

    def store(self, result: Tensor, out: Tensor) -> Any:
        """Round elements into ``out``; returns whether any may not be finite (0-d)."""
        if out.data_ptr() != result.data_ptr():
            out.copy_(result)
        # A sum of squares costs a tenth of testing each element, and bounds them all.
        squares = torch.dot(result, result)
        bound = next(
            (limit for dtype, limit in _SAFE_SQUARES.items() if dtype.torch == out.dtype), 0
        )
        return squares.lt(bound or math.inf).logical_not_()
