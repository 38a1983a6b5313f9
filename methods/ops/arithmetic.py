"""The two arithmetics of the CPU, machine code and torch: cost and memory for planning, and
opening.

Importing this module loads neither torch nor machine code.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import util
from pathlib import Path

from mergeloom.engine.base.dtypes import BF16, F32, DType
from mergeloom.engine.base.errors import RunError
from mergeloom.engine.base.grains import Grains
from mergeloom.engine.base.units import MIB
from mergeloom.engine.base.versions import version_of
from mergeloom.engine.graph.arithmetic import DECODING, Arithmetic, Ops
from mergeloom.engine.graph.kernel import Use
from mergeloom.engine.hardware.machine_code import CacheError, Library, MachineCodeError
from mergeloom.methods.ops.cuda.arithmetic import CUDA
from mergeloom.methods.ops.loops.sizes import (
    MAX_RANKED,
    ElementType,
    factors_bytes,
    leading_bytes,
    marks_bytes,
    product_bytes,
    ranking_bytes,
    work_bytes,
)

VARIABLE = "MERGELOOM_ARITHMETIC"
"""Environment variable that says which arithmetic the CPU uses: ``compiled`` or ``torch``."""

FUNCTIONS = frozenset(
    {
        *("add_product", "adjust", "choose", "choose_by_rank", "column_dots", "column_sums"),
        *("combine", "count_equal", "count_high", "count_low", "disjoint", "divergences", "dots"),
        *(
            "end_of_equal",
            "find_ranks",
            "bound_ranks",
            "leading_of_matrix",
            "leading_of_product",
            "look_up",
            "magnitudes",
            "mark",
            "mean_rows",
            "quantise",
            "row_dots",
            "count_changed",
        ),
        *("gather_scan", "mix_scan", "neighbours_scan", "products_of_rows"),
        *("pursue_fit", "pursue_scan", "step", "store", "transpose", "variance", "widen"),
    }
)
"""Names of all functions of the machine code."""

_COMPONENTS = {
    "count_high": ("count_high", "find_ranks", "bound_ranks"),
    "mix_rows": ("mix_scan",),
    "neighbours": ("neighbours_scan",),
    "products_of_rows": ("gather_scan", "products_of_rows"),
    "pursue": ("pursue_scan", "pursue_fit"),
}
"""The functions of operations that consist of several, by operation."""

_WRITABLE = frozenset({"BF16", "F16", "F32", "F64", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "I8"})
"""Dtypes that machine code can round to, by code."""

_BASIC = frozenset({"store", "widen"})
_NEED_NUMPY = frozenset(
    {
        *("choose_by_rank", "column_dots", "column_sums", "count_high", "count_low"),
        *("divergences", "numbers", "row_dots"),
        *(
            "mix_rows",
            "neighbours",
            "products_of_rows",
            "put_rows",
            "pursue",
            "read_rows",
            "rows_of",
        ),
    }
)
"""Operations that import numpy."""

_LLVM_BYTES, _FUNCTIONS_BYTES, _NUMPY_BYTES = 36 * MIB, 16 * MIB, 20 * MIB
"""Measured memory that loading LLVM, functions by it, and numpy adds to a process. The first and
last stay loaded, so that a later run of the same process has them already."""
_CODEC_BYTES = 8 * MIB
"""Bytes of the library that decodes blocks."""

_COMPILED_COST = {
    "add_product": 0.06,
    "adjust": 0.5,
    "choose": 0.6,
    "choose_by_rank": 2.8,
    "column_dots": 0.5,
    "combine": 0.1,
    "count_high": 0.6,
    "count_low": 0.5,
    "decode": 15.0,
    "disjoint": 0.4,
    "divergences": 2.0,
    "dots": 0.2,
    "look_up": 0.8,
    "draw": 0.2,
    "magnitudes": 0.3,
    "mean_rows": 0.5,
    "quantise": 1.5,
    "row_dots": 0.4,
    "count_changed": 0.3,
    "transpose": 1.0,
    "variance": 0.4,
}
_TORCH_COST = {
    "add_product": 0.03,
    "adjust": 0.7,
    "choose": 1.5,
    "choose_by_rank": 30.0,
    "column_dots": 1.2,
    "combine": 0.6,
    "count_high": 3.0,
    "count_low": 3.0,
    "decode": 15.0,
    "disjoint": 1.5,
    "divergences": 14.0,
    "dots": 0.9,
    "look_up": 2.0,
    "draw": 2.0,
    "magnitudes": 1.0,
    "mean_rows": 1.5,
    "row_dots": 1.0,
    "count_changed": 2.0,
    "transpose": 1.0,
    "variance": 1.5,
}
"""Nanoseconds per element and vector on one core of 2024, measured roughly."""
_ELECTING = 2.0
"""Factor for the time of `Ops.combine` when it elects signs."""


class CompiledArithmetic(Arithmetic):
    """Machine code, built and loaded by ``library``."""

    uses_torch = False
    name = "compiled 1"

    def __init__(self, library: Library) -> None:
        self._library = library

    def reads(self, dtype: DType) -> bool:
        return dtype in (BF16, F32)

    def widens(self, dtype: DType) -> bool:
        return dtype.code in ElementType.__members__ or bool(dtype.codec)

    def writes(self, dtype: DType) -> bool:
        return (dtype.stored or dtype).code in _WRITABLE or bool(dtype.codec)

    def workspace_bytes(self, use: Use, grains: Grains) -> int:
        rows = -(-grains.size // max(grains.row, 1))
        own = work_bytes(use.vectors, grains.row if use.operation == "choose_by_rank" else 0)
        if use.operation == "choose_by_rank":
            own += use.vectors * _pages(marks_bytes(grains.size)) + 32 * grains.row
        if use.operation == "mark":
            own += _pages(marks_bytes(grains.size))
        if use.operation == "count_high":
            own = max(own, ranking_bytes(MAX_RANKED))
        if use.operation == "row_dots":
            own += 8 * rows * (3 * use.vectors**2 + 16)
        if use.operation == "add_product":
            own = max(own, product_bytes(use.vectors))
        if use.operation == "divergences":
            own += 8 * rows * 12
        if use == DECODING:
            own += 2 * MIB
        if use.operation == "leading_of_matrix":
            own += leading_bytes(use.vectors, 0) + 8 * grains.size
        if use.operation == "leading_of_product":
            own += factors_bytes(use.vectors, 0)
        return _pages(own)

    def cost(self, use: Use) -> float:
        return _cost(_COMPILED_COST, use)

    def library_bytes(self, operations: frozenset[str]) -> int:
        codec = _CODEC_BYTES if DECODING.operation in operations else 0
        own = _FUNCTIONS_BYTES + (0 if "llvmlite.binding" in sys.modules else _LLVM_BYTES)
        if operations & (_NEED_NUMPY | {DECODING.operation}) and "numpy" not in sys.modules:
            own += _NUMPY_BYTES
        return own + codec

    def missing(self, operations: frozenset[str]) -> frozenset[str]:
        return self._code(operations) - self._library.built()

    def build(self, operations: frozenset[str]) -> None:
        try:
            self._library.build(operations)
        except CacheError as error:
            raise RunError(
                f"machine code cannot be stored: {error}",
                remedy="set XDG_CACHE_HOME to a directory that can be written to",
            ) from error
        except MachineCodeError as error:
            raise RunError(
                f"machine code cannot be built: {error}",
                remedy=f"set {VARIABLE}=torch to merge without it",
            ) from error

    def open(self, operations: frozenset[str]) -> Callable[..., Ops]:
        from mergeloom.methods.ops.compiled_ops import CompiledOps

        try:
            functions = self._library.open(self._code(operations))
        except MachineCodeError as error:
            raise RunError(
                f"machine code cannot be loaded: {error}",
                remedy=f"set {VARIABLE}=torch to merge without it",
            ) from error
        return lambda block: CompiledOps(functions, block)

    def _code(self, operations: frozenset[str]) -> frozenset[str]:
        parts = (_COMPONENTS.get(operation, (operation,)) for operation in operations)
        return frozenset(part for found in parts for part in found) & FUNCTIONS | _BASIC


class TorchArithmetic(Arithmetic):
    """Arithmetic by torch."""

    uses_torch = True

    def on_device(self, kind: str) -> Arithmetic:
        return CUDA if kind == "cuda" else self

    @property
    def name(self) -> str:
        version = version_of("torch")
        return f"torch {version}" if version is not None else "torch"

    def reads(self, dtype: DType) -> bool:
        return dtype == F32

    def widens(self, dtype: DType) -> bool:
        return True

    def writes(self, dtype: DType) -> bool:
        return True

    def workspace_bytes(self, use: Use, grains: Grains) -> int:
        count = use.vectors
        if use.operation.startswith("leading"):
            return 48 * count * (count + 64) + 16 * grains.size + MIB
        arrays = {
            "add_product": 5,
            "choose": 4,
            "choose_by_rank": 24,
            "column_dots": 2 * count + 8,
            "combine": count + 8 if use.elects_signs else 8,
            "count_low": 9,
            "disjoint": 6,
            "divergences": 16,
            "dots": 3 * count + 4,
            "draw": 4,
            "magnitudes": 6,
            "mean_rows": 8,
            "row_dots": 2 * count + 8,
            "count_changed": 3 * count + 4,
            "variance": count + 4,
        }.get(use.operation, 5)
        return 4 * arrays * grains.size + MIB

    def cost(self, use: Use) -> float:
        return _cost(_TORCH_COST, use)

    def library_bytes(self, operations: frozenset[str]) -> int:
        return (
            _CODEC_BYTES if DECODING.operation in operations else 0
        )  # the memory of torch itself is measured

    def missing(self, operations: frozenset[str]) -> frozenset[str]:
        return frozenset()

    def build(self, operations: frozenset[str]) -> None:
        pass

    def open(self, operations: frozenset[str]) -> Callable[..., Ops]:
        from mergeloom.methods.ops.torch_ops import TorchOps

        return TorchOps


def _cost(table: dict[str, float], use: Use) -> float:
    return table.get(use.operation, 0.3) * use.vectors * (_ELECTING if use.elects_signs else 1.0)


def _pages(nbytes: int) -> int:
    """Round up to pages, the unit of scratch memory."""
    return -(-nbytes // 4096) * 4096


LIBRARY = Library("mergeloom.methods.ops.loops.build", Path(__file__).resolve().parent / "loops")

COMPILED: Arithmetic = CompiledArithmetic(LIBRARY)
TORCH: Arithmetic = TorchArithmetic()


def cpu_arithmetic() -> Arithmetic:
    """The arithmetic for the CPU: machine code, or torch where there is no compiler.

    Raises:
        RunError: the environment variable names an arithmetic that is not available.
    """
    has_compiler = util.find_spec("numba") is not None and util.find_spec("llvmlite") is not None
    wanted = os.environ.get(VARIABLE, "")
    if wanted == "torch" or (not wanted and not has_compiler):
        return TORCH
    if wanted not in ("", "compiled"):
        raise RunError(f"{VARIABLE} is '{wanted}': it must be 'compiled' or 'torch'")
    if not has_compiler:
        raise RunError(f"{VARIABLE} is 'compiled', which needs numba", remedy="install it")
    return COMPILED
