"""The protocol between the engine and the arithmetic of merging.

A kernel is an immutable record: its access pattern, its statistics and the operations it uses are
known without any library, for planning. The engine processes a merge in up to
``len(kernel.passes) + 1`` passes over its inputs: one for each statistic, then one that writes the
output. Within a pass, grains are processed one at a time, in any order and from several threads;
nothing may be carried from grain to grain except through a `Statistic` or a scan.

A kernel that lists the operations it `uses` works only through ``grain.ops``, on plain memory or on
tensors of a device. A kernel that lists none works on torch tensors itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from mergeloom.engine.base.dtypes import DType
from mergeloom.engine.base.grains import Access, Grains
from mergeloom.engine.base.records import dataclass, record
from mergeloom.engine.graph.sums import GrainSums, Sums
from mergeloom.engine.memory.pages import block_bytes, span_bytes

if TYPE_CHECKING:
    from torch import Tensor

A = TypeVar("A")
R = TypeVar("R")

Array = Any
"""An array of an arithmetic: `engine.memory.elements.Elements`, or a tensor."""


@dataclass(frozen=True, slots=True)
class Use:
    """An operation that a kernel or statistic uses, on ``vectors`` vectors at once.

    ``elects_signs`` says whether a sum elects the sign of each element first.
    """

    operation: str
    vectors: int = 1
    elects_signs: bool = False


TABLE_BLOCK_BYTES = 4 << 20
"""Approximate bytes of one block of a table, which is read at once."""
_TABLE_ROWS = 64
"""The number of rows of a block is a multiple of this."""


def table_rows(width: int, dtype: DType) -> int:
    """Number of rows of each block of a table except the last; it does not depend on the budget."""
    return max(TABLE_BLOCK_BYTES // max(dtype.nbytes(width), 1) // _TABLE_ROWS, 1) * _TABLE_ROWS


def table_buffer_bytes(shape: tuple[int, ...], dtype: DType) -> int:
    """Bytes of the buffer in which one worker reads the blocks of a table that is not in memory."""
    count, width = shape
    return block_bytes(span_bytes(dtype.nbytes(min(table_rows(width, dtype), count) * width)))


class Table(Protocol):
    """A matrix of ``count`` rows of ``width`` elements beside the inputs of a merge."""

    @property
    def count(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def dtype(self) -> DType: ...

    def blocks(self, first: int = 0, stop: int | None = None) -> Iterator[tuple[int, int, Array]]:
        """The blocks of rows ``[first, stop)`` in order: first row, number of rows, and their
        elements in the stored dtype, which are valid until the next block is requested."""


@record(frozen=True, slots=True)
class GrainView:
    """The view of one grain for kernels.

    ``inputs`` has one array for each input of the gather, in order; they are read-only, because
    several kernels may share them. For a torch kernel they are float32 tensors of ``shape``:
    ``(elements,)`` for an elementwise kernel, ``(rows, row)`` for a rowwise one, the tensor's shape
    for a whole one. ``ops`` is the arithmetic, for kernels that list their `Kernel.uses`.

    ``index`` is the grain's position in its tensor and ``start`` its first flat element.
    ``take()`` returns an uninitialised float32 scratch array of that shape, valid until the kernel
    returns; at most ``kernel.scratch`` may be taken per call.

    The inputs may be on any device, and a kernel's allocations must be on the same one.
    ``on_device`` means that the device runs asynchronously: reading a number (``int``, ``float``,
    ``nonzero``) waits for it, so results should stay there as tensors.

    ``memo`` (uint8, flat) holds data that earlier passes stored for this grain, if the kernel
    requests it by `Kernel.memo_bytes` and the schedule grants it (for all passes and grains).

    ``side`` are the side inputs, each complete, in its own shape and stored dtype; ``tables`` are
    those that are read in blocks.
    ``whole_shape`` is the shape of the whole first input, of which this is one grain. ``parts`` has
    arrays for the `Kernel.parts` of the root.
    """

    inputs: Sequence[Any]
    index: int
    start: int
    shape: tuple[int, ...]
    take: Callable[[], Any]
    ops: Any = None
    on_device: bool = False
    memo: Any = None
    side: Sequence[Any] = ()
    whole_shape: tuple[int, ...] = ()
    parts: Sequence[Any] = ()
    tables: Sequence[Table] = ()

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class Statistic(Generic[A, R]):
    """A streaming accumulator over the grains of one merge, whose instances can be combined.

    The result must not depend on how grains are grouped into accumulators, nor on the order in
    which these are combined: integers may be added freely, floating-point sums use `GrainSums`.
    """

    @property
    def uses(self) -> tuple[Use, ...]:
        """The operations of ``grain.ops`` that `update` uses; see `Kernel.uses`."""
        return ()

    @property
    def scratch(self) -> int:
        """Maximum number of scratch arrays per call of `update`."""
        return 0

    def accumulator_bytes(self, grains: Grains) -> int:
        """Upper bound of the size of one accumulator in bytes.

        This includes temporary allocations of `combine` and `finalize`.
        """
        return 0

    def workspace_bytes(self, grains: Grains) -> int:
        """Bytes that one call of `update` allocates itself, beyond scratch and `uses`.

        The larger of this and the kernel's is reserved.
        """
        return 0

    @property
    def uses_float64(self) -> bool:
        """Whether `update` computes in float64, which some devices do not support."""
        return True

    def init(self) -> A:
        """An empty accumulator."""
        raise NotImplementedError

    def update(self, into: A, grain: GrainView, earlier: Sequence[Any]) -> None:
        """Add one grain; ``earlier`` has the results of the kernel's earlier passes."""
        raise NotImplementedError

    def fetch(self, into: A) -> None:
        """Copy results of `update` from a device to main memory, for the other methods."""

    def combine(self, into: A, other: A) -> None:
        """Add ``other``, an accumulator of other grains, to ``into``; it is not used afterwards."""
        raise NotImplementedError

    def finalize(self, total: A, earlier: Sequence[Any]) -> R:
        """The result of the statistic, passed to later passes and to `Kernel.apply`."""
        raise NotImplementedError


class GrainSum(Statistic[GrainSums, R]):
    """A statistic computed from a sum over grains."""

    def init(self) -> GrainSums:
        return GrainSums()

    def fetch(self, into: GrainSums) -> None:
        into.fetch()

    def combine(self, into: GrainSums, other: GrainSums) -> None:
        into.combine(other)


class Kernel:
    """The arithmetic of one merge with its resolved parameters; subclass as a frozen dataclass.

    Fields must be hashable and have a complete ``repr``: equal kernels over equal inputs are
    computed once, and the representation (with ``version``) enters the plan's fingerprint.
    Properties may be overridden by class variables if they are constant.
    """

    version: ClassVar[int] = 1
    """Increased whenever the bytes of the result change."""

    accepts_integers: ClassVar[bool] = False
    """Whether inputs may be integers, such as quantised values."""

    is_aligned: ClassVar[bool] = True
    """Whether element i of the result is computed from elements i of the inputs."""

    lossy: ClassVar[bool] = False
    """Whether its result is quantised, so that `loss` measures the error."""

    @property
    def uses(self) -> tuple[Use, ...]:
        """The operations of ``grain.ops`` that `apply`, `scan_value` and `loss` use.

        Memory, machine code and time are derived from them. Without any, the kernel works on torch
        tensors.
        """
        return ()

    @property
    def planning_key(self) -> Hashable:
        """A key that is equal for kernels with the same memory, operations, passes and time, so
        that they are planned once. They may differ in numbers such as weights or random keys. By
        default the kernel itself."""
        return self

    @property
    def access(self) -> Access:
        """The part of the inputs that every pass must see at once."""
        return Access.ELEMENTWISE

    @property
    def row_multiple(self) -> int:
        """The number of rows of a grain is a multiple of this; for rowwise kernels."""
        return 1

    @property
    def parts(self) -> tuple[DType, ...]:
        """Dtypes of additional results, with a few numbers for each block of the result
        (`DType.for_blocks`). They are float32 in `GrainView.parts`, and written like the result."""
        return ()

    @property
    def scratch(self) -> int:
        """Maximum number of scratch arrays per call of `apply` or `scan_value`; `loss` has one."""
        return 0

    @property
    def cost(self) -> float:
        """Approximate nanoseconds per element of one input, for all passes, on one core of 2024.

        This excludes the cost derived from ``uses``.
        """
        return 0.0 if self.uses else 1.0

    @property
    def passes(self) -> tuple[Statistic[Any, Any], ...]:
        """The statistics in order, one pass over the inputs each."""
        return ()

    @property
    def uses_float64(self) -> bool:
        """Whether any of its arithmetic on grains is float64, which some devices do not support."""
        return any(statistic.uses_float64 for statistic in self.passes)

    def workspace_bytes(self, grains: Grains) -> int:
        """Bytes that one call of `apply`, `scan_value` or a statistic's `update` allocates itself,
        beyond scratch, output, accumulator and `uses`."""
        return 0

    def table_reads(self, grains: Grains, evaluations: int) -> tuple[int, ...]:
        """How many times each of `Gather.tables` is read completely, by all passes together.

        `apply` is called ``evaluations`` times for each of ``grains``: once for the output, and
        once for each statistics pass of a merge that this one is an input of.
        """
        return ()

    def memo_bytes(self, grains: Grains) -> int:
        """Bytes of one grain's memo, in which passes keep results for later passes.

        It is granted on the CPU if there is memory; results must not depend on that.
        """
        return 0

    def output_shape(
        self, inputs: Sequence[tuple[int, ...]], side: Sequence[tuple[int, ...]]
    ) -> tuple[int, ...]:
        """The shape of the result, from the shapes of inputs and side inputs.

        It has as many elements as each input.

        Raises:
            ValueError: the shapes do not match.
        """
        if not inputs:
            raise ValueError("it has no input")
        if inputs.count(inputs[0]) < len(inputs):
            raise ValueError(f"shapes differ: {', '.join(map(str, inputs))}")
        if side:
            raise ValueError(f"it takes no side inputs, but has {len(side)}")
        return inputs[0]

    def for_one_grain(self, ops: Any, count: int) -> Kernel:
        """A kernel with the same results for tensors of one grain of ``count`` elements, computed
        by ``ops`` on the CPU; it may need fewer passes."""
        return self

    def needs_scan(self, statistics: Sequence[Any]) -> bool:
        """Whether `apply` must know the sum of `scan_value` over all earlier grains.

        Called once per merge, after all statistics; a scan costs arithmetic, but no reading.
        """
        return False

    def scan_value(self, grain: GrainView, statistics: Sequence[Any]) -> tuple[int | Tensor, ...]:
        """Integers of this grain whose sums the grains after it need.

        They may be 0-d tensors.
        """
        raise NotImplementedError

    def apply(
        self,
        grain: GrainView,
        out: Array,
        statistics: Sequence[Any],
        prefix: tuple[int, ...],
    ) -> None:
        """Write the result of one grain to ``out``: float32, of the shape of the inputs.

        ``statistics`` are the results of `passes` in order; ``prefix`` is the elementwise sum of
        `scan_value` over all earlier grains, or ``()`` if `needs_scan` was false.
        """
        raise NotImplementedError

    def loss(self, grain: GrainView, quantised: Array) -> Sums:
        """The quantisation error of one grain.

        ``quantised`` (float32) are the result's elements as written; they may be overwritten.
        Returns two sums in float64: Σ (written - computed)² and Σ computed², where ``written`` are
        the values that the quantised elements stand for.
        """
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Copy(Kernel):
    """Copies its one input, byte for byte if the output has the same dtype."""

    uses = (Use("copy"),)

    def apply(
        self,
        grain: GrainView,
        out: Array,
        statistics: Sequence[Any],
        prefix: tuple[int, ...],
    ) -> None:
        grain.ops.copy(grain.inputs[0], out)


def all_uses(kernel: Kernel) -> tuple[Use, ...]:
    """The uses of a kernel and its statistics."""
    return kernel.uses + tuple(use for statistic in kernel.passes for use in statistic.uses)
