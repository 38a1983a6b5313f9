"""Arithmetic on CUDA devices: their memory for planning, and how workers open it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mergeloom.engine.base.dtypes import BF16, F32, DType
from mergeloom.engine.base.errors import RunError
from mergeloom.engine.base.grains import Grains
from mergeloom.engine.graph.arithmetic import Arithmetic, Ops
from mergeloom.engine.graph.kernel import Use
from mergeloom.engine.hardware.machine_code import MachineCodeError
from mergeloom.methods.ops.cuda.sizes import MAX_VECTORS

_PARTS = ("device", "sums", "counting", "choosing", "writing")
"""The device's code: each file uses what is in earlier ones."""

_OPERATIONS = frozenset(
    {
        *("choose", "choose_by_rank", "combine", "copy", "count_equal", "count_high", "count_low"),
        *("disjoint", "divergences", "dots", "draw", "end_of_equal", "magnitudes", "mark"),
        *("count_changed", "squares", "step", "variance"),
    }
)
_OF_ROWS = frozenset({"choose", "count_high", "count_low"})
"""Operations whose vectors may have a factor for each row, which is copied to the device."""
_TYPES = frozenset({"BF16", "F32", "F16", "F64", "F8_E4M3", "F8_E5M2"})


class CudaArithmetic(Arithmetic):
    """Our own CUDA code."""

    uses_torch = False
    name = "cuda 1"

    def can(self, use: Use) -> bool:
        return use.operation in _OPERATIONS and use.vectors <= MAX_VECTORS

    def reads(self, dtype: DType) -> bool:
        return dtype in (BF16, F32)

    def widens(self, dtype: DType) -> bool:
        return dtype.code in _TYPES

    def writes(self, dtype: DType) -> bool:
        return dtype.code in _TYPES

    def workspace_bytes(self, use: Use, grains: Grains) -> int:
        size, row = grains.size, max(grains.row, 1)
        if use.operation == "choose_by_rank":
            return use.vectors * _pages(size) + _pages(16 * size) + _pages(4 * row)
        if use.operation == "mark":
            return _pages(size)
        if use.operation in _OF_ROWS:
            return _pages(4 * -(-size // row))
        return 0

    def library_bytes(self, operations: frozenset[str]) -> int:
        return 0  # the device reports its own

    def missing(self, operations: frozenset[str]) -> frozenset[str]:
        return frozenset()

    def build(self, operations: frozenset[str]) -> None:
        pass

    def open(self, operations: frozenset[str]) -> Callable[..., Ops]:
        from mergeloom.engine.hardware.device_code import device_code
        from mergeloom.methods.ops.cuda.ops import SIGNATURES, CudaOps, workspace

        rooms: dict[int, Any] = {}

        def make(memory: Any, device: Any) -> Ops:
            if id(device) not in rooms:
                try:
                    code = device_code(source_code(), device.capability)
                except MachineCodeError as error:
                    raise RunError(f"'{device.name}' cannot be used: {error}") from error
                device.load(code, list(SIGNATURES))
                rooms[id(device)] = workspace(device)
            return CudaOps(device, rooms[id(device)], memory)

        return make


def source_code() -> bytes:
    """The device's code as one source; the compiler's messages name file and line."""
    folder = Path(__file__).resolve().parent
    files = [f"{part}.cu" for part in _PARTS]
    return b"".join(f'#line 1 "{name}"\n'.encode() + (folder / name).read_bytes() for name in files)


def prepare_code(number: int) -> None:
    """Compile the code for device ``number`` unless it is cached.

    Raises:
        RunError: it cannot be compiled.
    """
    from mergeloom.engine.hardware.cuda import CudaError, capability_of
    from mergeloom.engine.hardware.device_code import device_code

    try:
        device_code(source_code(), capability_of(number))
    except (CudaError, MachineCodeError) as error:
        raise RunError(f"'cuda:{number}' cannot be used: {error}") from error


def _pages(nbytes: int) -> int:
    """Round up to pages, the unit of scratch memory."""
    return -(-nbytes // 4096) * 4096


CUDA: Arithmetic = CudaArithmetic()
