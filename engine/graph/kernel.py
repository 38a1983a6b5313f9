"""The protocol between the engine and the arithmetic of merging.

A kernel is an immutable record: its access pattern, the statistics it needs and what arithmetic it
uses are known without any library, so that planning can place it. The engine walks a merge in up to
``len(kernel.passes) + 1`` passes over its inputs: one for each statistic, then one that writes the
output. Within a pass it hands over one grain at a time, in any order and from several threads;
nothing may be carried from grain to grain except through a `Statistic` or a scan.

Arithmetic has one seam. A kernel that names the words it `uses` speaks to ``grain.ops`` alone and
runs on whatever that works on: plain memory, or tensors of a device. A kernel that names none works
on torch's tensors itself.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from mergeloom.engine.base.dtypes import DType
from mergeloom.engine.base.grains import Access, Grains
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.sums import GrainSums, Sums
from mergeloom.engine.memory.ledger import Block
from mergeloom.engine.memory.pages import block_bytes, span_bytes

if TYPE_CHECKING:
    from torch import Tensor

A = TypeVar("A")
R = TypeVar("R")

Array = Any
"""What arithmetic works on: `engine.memory.elements.Elements`, or a tensor."""


@dataclass(frozen=True, slots=True)
class Use:
    """A word of arithmetic that a kernel or statistic uses, on ``vectors`` vectors at once.

    ``electing`` where it makes them vote.
    """

    word: str
    vectors: int = 1
    electing: bool = False


DECODING = Use("decode")
"""What the engine itself uses to take elements that lie in blocks of codes."""


class Ops(Protocol):
    """What the engine itself asks of arithmetic; kernels ask for more.

    One belongs to one thread, and has scratch memory that is handed out like a stack.
    """

    @property
    def on_device(self) -> bool:
        """See `GrainView`."""

    def reads(self, dtype: DType) -> bool:
        """Whether kernels take elements of a type as they are stored, without widening."""

    def view(self, block: Block, offset: int, dtype: DType, count: int) -> Array:
        """``count`` elements at a byte of a block of main memory."""

    def shaped(self, array: Array, shape: tuple[int, ...]) -> Array:
        """The same elements as kernels are to see them."""

    def take(self, count: int) -> Array:
        """``count`` uninitialised float32 elements, valid until a `top` before is released."""

    def top(self) -> int:
        """How far scratch is handed out."""

    def release(self, top: int) -> None:
        """Take back what was handed out beyond ``top``."""

    def widen(self, dtype: DType, array: Array, out: Array) -> None:
        """Write elements of a type as float32; of less than a byte from the bytes they share."""

    def whole_bytes(self, dtype: DType, array: Array, count: int) -> Array:
        """``count`` elements as they are stored, or widened if they share bytes."""

    def store(self, result: Array, out: Array) -> Any:
        """Round float32 elements to the type of ``out``, which may be ``result``.

        Returns whether any is not finite then, or may not be: a number, or a 0-d tensor.
        """

    def pack(self, dtype: DType, result: Array, out: Array) -> Any:
        """Write float32 elements as blocks of codes to the bytes ``out``.

        Returns what is not 0 where any may not be finite; see `store`.
        """


class DeviceOps(Ops, Protocol):
    """The same on a device."""

    def at(self, memory: Any, dtype: DType, count: int) -> Array:
        """``count`` elements that fill bytes of the device's memory."""

    def bring(self) -> None:
        """Order that what was counted since the last time be brought to main memory."""


TABLE_BLOCK_BYTES = 4 << 20
"""Bytes of a table that are looked at together, roughly."""
_TABLE_ROWS = 64
"""Of as many rows, or of a multiple, is a block of a table."""


def table_rows(width: int, dtype: DType) -> int:
    """Rows of each block of a table but the last: the same whatever the budget."""
    return max(TABLE_BLOCK_BYTES // max(dtype.nbytes(width), 1) // _TABLE_ROWS, 1) * _TABLE_ROWS


def table_buffer_bytes(shape: tuple[int, ...], dtype: DType) -> int:
    """Bytes that reading a table takes that is not held, of one worker."""
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
        """Rows ``[first, stop)`` in order: number of the first, their number, and their elements as
        they are stored, which are valid until the next are asked for."""


class Arithmetic(ABC):
    """One way to compute merges. What planning asks of it needs no library."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name and version: results of two that differ agree to rounding only."""

    uses_torch: ClassVar[bool]

    def on_device(self, kind: str) -> Arithmetic:
        """What computes on devices of a kind (`Accelerator.kind`) in its place."""
        return self

    def can(self, use: Use) -> bool:
        """Whether it has a word, for so many vectors."""
        return True

    @abstractmethod
    def reads(self, dtype: DType) -> bool:
        """Whether its words take elements of a type as they are stored, without widening."""

    @abstractmethod
    def widens(self, dtype: DType) -> bool:
        """Whether it can take elements of a type at all."""

    @abstractmethod
    def writes(self, dtype: DType) -> bool:
        """Whether it can round results to a type."""

    @abstractmethod
    def workspace_bytes(self, use: Use, grains: Grains) -> int:
        """Memory in bytes that a use takes for a moment, beyond inputs, output and scratch."""

    @abstractmethod
    def cost(self, use: Use) -> float:
        """Nanoseconds for one element of the output on one core of 2024, roughly."""

    @abstractmethod
    def library_bytes(self, words: frozenset[str]) -> int:
        """Memory in bytes that loading what these words need adds to the process."""

    @abstractmethod
    def missing(self, words: frozenset[str]) -> frozenset[str]:
        """Those of ``words`` that machine code has to be built for first."""

    @abstractmethod
    def build(self, words: frozenset[str]) -> None:
        """Build the machine code of ``words``.

        Raises:
            RunError: it failed.
        """

    @abstractmethod
    def open(self, words: frozenset[str]) -> Callable[..., Ops]:
        """Load what ``words`` need: a function that makes an `Ops` with scratch memory.

        That is a `Block`, or memory of the device that is then the second argument.

        Raises:
            RunError: it cannot be loaded.
        """


@dataclass(frozen=True, slots=True)
class GrainView:
    """What a kernel sees of one grain.

    ``inputs`` are one array for each input of the gather, in order, read-only: several kernels may
    share them. For a kernel of torch they are float32 tensors of ``shape``: that is ``(elements,)``
    for an elementwise kernel, ``(rows, row)`` for a rowwise one, the tensor's own shape for a whole
    one. ``ops`` is the arithmetic at hand, which those that name their `Kernel.uses` go by.

    ``index`` is the grain's position in its tensor and ``start`` its first flat element.
    ``take()`` returns an uninitialised float32 scratch array of that shape, valid until the kernel
    returns; at most ``kernel.scratch`` may be taken for one call.

    The inputs may lie on any device, and what a kernel allocates must lie there too. ``on_device``
    says that it is one that runs behind this thread: every number that is asked of it (``int``,
    ``float``, ``nonzero``) makes both wait, so results stay there as tensors.

    ``memo`` (uint8, flat) is what earlier passes have left of this grain, or room for that, where
    the kernel asks for it by `Kernel.memo_bytes` and the schedule grants it; then it does so for
    all passes over all grains.

    ``side`` are the tensors beside the inputs, each whole, in its own shape and as it is stored;
    ``tables`` are those that are read a block at a time.
    ``whole`` is the shape of the whole first input, of which this is one grain. ``parts`` has
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
    whole: tuple[int, ...] = ()
    parts: Sequence[Any] = ()
    tables: Sequence[Table] = ()

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class Statistic(Generic[A, R]):
    """A streaming, mergeable accumulator over the grains of one merge.

    The result must not depend on how grains are grouped into accumulators nor on the order of
    merging: integers may be added freely, floating-point sums go through `GrainSums`.
    """

    @property
    def uses(self) -> tuple[Use, ...]:
        """What `update` uses of ``grain.ops``; see `Kernel.uses`."""
        return ()

    @property
    def scratch(self) -> int:
        """Scratch arrays that one call of `update` takes at most."""
        return 0

    def accumulator_bytes(self, grains: Grains) -> int:
        """Upper bound of one accumulator's size in bytes.

        What `combine` and `finalize` allocate for a moment counts too.
        """
        return 0

    def workspace_bytes(self, grains: Grains) -> int:
        """Memory in bytes that one call of `update` allocates by itself, beyond scratch and `uses`.

        The larger of this and the kernel's is reserved.
        """
        return 0

    @property
    def double(self) -> bool:
        """Whether `update` computes in float64, which some devices cannot."""
        return True

    def init(self) -> A:
        """An empty accumulator."""
        raise NotImplementedError

    def update(self, into: A, grain: GrainView, earlier: Sequence[Any]) -> None:
        """Add one grain; ``earlier`` holds the results of the kernel's earlier passes."""
        raise NotImplementedError

    def fetch(self, into: A) -> None:
        """Bring what `update` left on a device to main memory, where the other calls need it."""

    def combine(self, into: A, other: A) -> None:
        """Add ``other``, which holds other grains, to ``into``; ``other`` is not used again."""
        raise NotImplementedError

    def finalize(self, total: A, earlier: Sequence[Any]) -> R:
        """The statistic's result, handed to later passes and to `Kernel.apply`."""
        raise NotImplementedError


class GrainSum(Statistic[GrainSums, R]):
    """A statistic that is made of a sum over the grains."""

    def init(self) -> GrainSums:
        return GrainSums()

    def fetch(self, into: GrainSums) -> None:
        into.fetch()

    def combine(self, into: GrainSums, other: GrainSums) -> None:
        into.combine(other)


class Kernel:
    """The arithmetic of one merge with its resolved parameters; subclass as a frozen dataclass.

    Fields must be hashable and have a faithful ``repr``: equal kernels over equal inputs are
    computed once, and the representation (with ``version``) enters the plan's fingerprint.
    The properties may be overridden by class variables where they are constants.
    """

    version: ClassVar[int] = 1
    """Raised whenever the bytes of the result change."""

    integers: ClassVar[bool] = False
    """Whether inputs may hold integers: codes that stand for values."""

    aligned: ClassVar[bool] = True
    """Whether element i of the result comes of elements i of the inputs, wherever else they lie."""

    lossy: ClassVar[bool] = False
    """Whether its result is written as codes, and `loss` tells how far these are from it."""

    @property
    def uses(self) -> tuple[Use, ...]:
        """The words of ``grain.ops`` that `apply`, `scan_value` and `loss` use.

        Memory, machine code and time follow from them. Without any, the kernel works on torch's
        tensors.
        """
        return ()

    @property
    def kind(self) -> Hashable:
        """What memory, words, passes and time follow from: equal for kernels that differ in nothing
        that these depend on, such as the keys of random choices. By default the kernel itself."""
        return self

    @property
    def access(self) -> Access:
        """What of the inputs every pass must see at once."""
        return Access.ELEMENTWISE

    @property
    def band(self) -> int:
        """Rows that a rowwise kernel sees at once: grains are of as many, or of a multiple."""
        return 1

    @property
    def parts(self) -> tuple[DType, ...]:
        """What else it makes beside its result, a few numbers for each block of that: their types
        (`DType.for_blocks`). It is float32 in `GrainView.parts`, and written like the result."""
        return ()

    @property
    def scratch(self) -> int:
        """Scratch arrays that one call of `apply` or `scan_value` takes at most; `loss` has one."""
        return 0

    @property
    def cost(self) -> float:
        """Nanoseconds for one element of one input, all passes, on one core of 2024, roughly.

        Of what is not told by ``uses``.
        """
        return 0.0 if self.uses else 1.0

    @property
    def passes(self) -> tuple[Statistic[Any, Any], ...]:
        """The statistics, one pass over the inputs each, in order."""
        return ()

    @property
    def double(self) -> bool:
        """Whether any of its arithmetic on grains is float64, which some devices cannot."""
        return any(statistic.double for statistic in self.passes)

    def workspace_bytes(self, grains: Grains) -> int:
        """Bytes that one call of `apply`, `scan_value` or a statistic's `update` allocates
        by itself, beyond scratch, output, accumulator and `uses`."""
        return 0

    def table_reads(self, grains: Grains, evaluations: int) -> tuple[int, ...]:
        """How many times each of `Gather.tables` is read from its first row to its last.

        By all passes, where `apply` sees all ``grains`` as often as ``evaluations`` says.
        """
        return ()

    def memo_bytes(self, grains: Grains) -> int:
        """Bytes of one grain's memo: what passes find out that later ones would find out again.

        It is granted on the CPU where memory is there; no result may depend on that.
        """
        return 0

    def output_shape(
        self, inputs: Sequence[tuple[int, ...]], side: Sequence[tuple[int, ...]]
    ) -> tuple[int, ...]:
        """The shape of the result, from those of the inputs and of what lies beside them.

        It has as many elements as each input.

        Raises:
            ValueError: they do not go together.
        """
        if not inputs:
            raise ValueError("it has no input")
        if inputs.count(inputs[0]) < len(inputs):
            raise ValueError(f"shapes differ: {', '.join(map(str, inputs))}")
        if side:
            raise ValueError(f"it has no use for {len(side)} tensors beside its inputs")
        return inputs[0]

    def needs_scan(self, statistics: Sequence[Any]) -> bool:
        """Whether `apply` must know the sum of `scan_value` over all earlier grains.

        Asked once a merge, when all statistics are there; it costs arithmetic, never input.
        """
        return False

    def scan_value(self, grain: GrainView, statistics: Sequence[Any]) -> tuple[int | Tensor, ...]:
        """Whole numbers of this grain that the grains after it must know the sums of.

        They may be 0-d tensors.
        """
        raise NotImplementedError

    def apply(
        self,
        grain: GrainView,
        out: Array,
        statistics: Sequence[Any],
        before: tuple[int, ...],
    ) -> None:
        """Write the result of one grain to ``out``: float32, of the shape of the inputs.

        ``statistics`` are the results of `passes` in order; ``before`` is the elementwise sum of
        `scan_value` over all earlier grains, or ``()`` where `needs_scan` was false.
        """
        raise NotImplementedError

    def loss(self, grain: GrainView, codes: Array) -> Sums:
        """How far what is written of one grain is from what was computed.

        ``codes`` (float32) are those of the result, as they are written; they may be written over.
        Returns two sums in float64: Σ (written - computed)² and Σ computed².
        """
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Copy(Kernel):
    """The one input as it is; byte for byte where the output has the input's dtype."""

    uses = (Use("copy"),)

    def apply(
        self,
        grain: GrainView,
        out: Array,
        statistics: Sequence[Any],
        before: tuple[int, ...],
    ) -> None:
        grain.ops.copy(grain.inputs[0], out)


def all_uses(kernel: Kernel) -> tuple[Use, ...]:
    """What a kernel and its statistics use."""
    return kernel.uses + tuple(use for statistic in kernel.passes for use in statistic.uses)
