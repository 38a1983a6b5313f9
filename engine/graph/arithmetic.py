"""The protocol between the engine and a way to compute merges: compiled code, or a library.

An `Arithmetic` says, while planning and without importing anything, which operations it can do and
what they cost; opened, it gives each thread its `Ops`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

from mergeloom.engine.base.dtypes import DType
from mergeloom.engine.base.grains import Grains
from mergeloom.engine.graph.kernel import Array, Use
from mergeloom.engine.memory.ledger import Block

DECODING = Use("decode")
"""The use of a library by the engine itself, to decode blocks of quantised values."""


class Ops(Protocol):
    """The operations that the engine itself needs; kernels use further ones.

    An instance belongs to one thread and has scratch memory, allocated like a stack.
    """

    @property
    def on_device(self) -> bool:
        """See `GrainView`."""

    @property
    def brief(self) -> Ops:
        """The same operations, in the same scratch memory, for arrays of so few elements that each
        takes microseconds."""

    def reads(self, dtype: DType) -> bool:
        """Whether kernels accept elements of a dtype directly, without widening."""

    def view(self, block: Block, offset: int, dtype: DType, count: int) -> Array:
        """``count`` elements at byte ``offset`` of a block of main memory."""

    def shaped(self, array: Array, shape: tuple[int, ...]) -> Array:
        """The same elements in the shape for kernels."""

    def take(self, count: int) -> Array:
        """``count`` uninitialised float32 elements, valid until an earlier `top` is released."""

    def top(self) -> int:
        """The current end of allocated scratch memory."""

    def release(self, top: int) -> None:
        """Free scratch memory beyond ``top``."""

    def widen(self, dtype: DType, array: Array, out: Array) -> None:
        """Convert elements of a dtype to float32; sub-byte elements from the bytes they share."""

    def whole_bytes(self, dtype: DType, array: Array, count: int) -> Array:
        """``count`` elements as they are stored, or widened if they share bytes."""

    def store(self, result: Array, out: Array) -> Any:
        """Round float32 elements to the type of ``out``, which may be ``result``.

        Returns nonzero if any result may not be finite: a number, or a 0-d tensor.
        """

    def pack(self, dtype: DType, result: Array, out: Array) -> Any:
        """Encode float32 elements as blocks of quantised values, and write them to the bytes
        ``out``.

        Returns nonzero if any may not be finite; see `store`.
        """


class DeviceOps(Ops, Protocol):
    """The same for a device."""

    def at(self, memory: Any, offset: int, dtype: DType, count: int) -> Array:
        """``count`` elements at byte ``offset`` of a block of device memory."""

    def bring(self) -> None:
        """Start copying the counters created since the last call to main memory."""

    def flush(self) -> None:
        """Enqueue operations that were put off."""


class Arithmetic(ABC):
    """A way to compute merges; the methods that planning calls import no library."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name and version; results of different arithmetics agree only up to rounding."""

    uses_torch: ClassVar[bool]

    def on_device(self, kind: str) -> Arithmetic:
        """The corresponding arithmetic for devices of a kind (`Accelerator.kind`)."""
        return self

    def can(self, use: Use) -> bool:
        """Whether it supports a use."""
        return True

    @abstractmethod
    def reads(self, dtype: DType) -> bool:
        """Whether its operations accept elements of a dtype directly, without widening."""

    @abstractmethod
    def widens(self, dtype: DType) -> bool:
        """Whether it can convert elements of a dtype to float32."""

    @abstractmethod
    def writes(self, dtype: DType) -> bool:
        """Whether it can round results to a dtype."""

    @abstractmethod
    def workspace_bytes(self, use: Use, grains: Grains) -> int:
        """Temporary memory of a use in bytes, beyond inputs, output and scratch."""

    def cost(self, use: Use) -> float:
        """Approximate nanoseconds per output element on one core of 2024; 0 on devices."""
        return 0.0

    @abstractmethod
    def library_bytes(self, operations: frozenset[str]) -> int:
        """Memory in bytes added to the process by loading the libraries for these operations."""

    @abstractmethod
    def missing(self, operations: frozenset[str]) -> frozenset[str]:
        """The operations whose machine code has to be compiled first."""

    @abstractmethod
    def build(self, operations: frozenset[str]) -> None:
        """Compile the machine code of the ``operations``.

        Raises:
            RunError: it failed.
        """

    @abstractmethod
    def open(self, operations: frozenset[str]) -> Callable[..., Ops]:
        """Load the code of the ``operations``; returns a function that creates an `Ops`.

        Its argument is scratch memory: a `Block`, or memory of the device given as second argument.

        Raises:
            RunError: it cannot be loaded.
        """
