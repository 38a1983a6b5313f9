"""The protocol between the engine and the arithmetic of merging.

A kernel is an immutable record: its access pattern, the statistics it needs and how much scratch
it takes are known without torch, so that planning can place it; its arithmetic imports torch when
it runs. The engine walks a merge in up to ``len(kernel.passes) + 1`` passes over its inputs: one
for each statistic, then one that writes the output. Within a pass it hands over one grain at a
time, in any order and from several threads; nothing may be carried from grain to grain except
through a `Statistic` or a tally.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from mergeloom.engine.base.dtypes import BF16, F32
from mergeloom.engine.base.grains import Access, Grains
from mergeloom.engine.graph.sums import GrainSums

if TYPE_CHECKING:
    from torch import Tensor

AS_STORED = (BF16, F32)
"""Types that compiled loops read as they are stored."""

A = TypeVar("A")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class GrainView:
    """What a kernel sees of one grain.

    ``inputs`` are float32 tensors of ``shape``, one for each input of the gather in order: that is
    ``(elements,)`` for an elementwise kernel, ``(rows, row)`` for a rowwise one, the tensor's own
    shape for a whole one. They are read-only: several kernels may share them.

    ``index`` is the grain's position in its tensor and ``start`` its first flat element.
    ``take()`` returns an uninitialised float32 scratch tensor of that shape, valid until the kernel
    returns; at most ``kernel.scratch`` may be taken for one call, or ``looped_scratch`` where there
    are ``loops``: compiled ones that the kernel names, if the schedule grants them.

    The inputs may lie on any device, and what a kernel allocates must lie there too. ``on_device``
    says that it is one that runs behind this thread: every number that is asked of it (``int``,
    ``float``, ``nonzero``) makes both wait, so results stay there as tensors.

    ``notes`` (uint8, flat) is what earlier passes have left of this grain, or room for that, where
    the kernel asks for it by `Kernel.notes_bytes` and the schedule grants it; then it does so for
    all passes over all grains.

    An input is widened to float32 when it is first looked at. ``stored(i)`` is input ``i`` as it
    is stored, flat and read-only, if it is of a type in `AS_STORED`; ``None`` if not, or computed.

    ``side`` are the tensors beside the inputs, each whole, in its own shape and as it is stored;
    ``whole`` is the shape of the whole first input, of which this is one grain.
    """

    inputs: Sequence[Tensor]
    index: int
    start: int
    shape: tuple[int, ...]
    take: Callable[[], Tensor]
    loops: Any = None
    on_device: bool = False
    stored: Callable[[int], Tensor | None] = lambda place: None
    notes: Tensor | None = None
    side: Sequence[Tensor] = ()
    whole: tuple[int, ...] = ()


class Statistic(Generic[A, R]):
    """A streaming, mergeable accumulator over the grains of one merge.

    The result must not depend on how grains are grouped into accumulators nor on the order of
    merging: integers may be added freely, floating-point sums go through `GrainSums`.
    """

    @property
    def scratch(self) -> int:
        """Scratch tensors that one call of `update` takes at most."""
        return 0

    @property
    def loops(self) -> frozenset[str]:
        """Names of the compiled loops that `update` can use; see `Kernel.loops`."""
        return frozenset()

    @property
    def looped_scratch(self) -> int | None:
        """See `Kernel.looped_scratch`."""
        return None

    def accumulator_bytes(self, grains: Grains, looped: bool) -> int:
        """Upper bound of one accumulator's size in bytes, where loops work if ``looped``.

        What `merge` and `finish` allocate for a moment counts too.
        """
        return 0

    def workspace_bytes(self, grains: Grains, looped: bool) -> int:
        """Memory in bytes that one call of `update` allocates for a moment, beyond scratch.

        Where the kernel's is larger, that is there.
        """
        return 0

    @property
    def double(self) -> bool:
        """Whether `update` computes in float64, which some devices cannot."""
        return True

    def start(self) -> A:
        """An empty accumulator."""
        raise NotImplementedError

    def update(self, into: A, grain: GrainView, earlier: Sequence[Any]) -> None:
        """Add one grain; ``earlier`` holds the results of the kernel's earlier passes."""
        raise NotImplementedError

    def fetch(self, into: A) -> None:
        """Bring what `update` left on a device to main memory, where the other calls need it."""

    def merge(self, into: A, other: A) -> None:
        """Add ``other``, which holds other grains, to ``into``; ``other`` is not used again."""
        raise NotImplementedError

    def finish(self, total: A, earlier: Sequence[Any]) -> R:
        """The statistic's result, handed to later passes and to `Kernel.combine`."""
        raise NotImplementedError


class GrainSum(Statistic[GrainSums, R]):
    """A statistic that is made of a sum over the grains."""

    def start(self) -> GrainSums:
        return GrainSums()

    def fetch(self, into: GrainSums) -> None:
        into.fetch()

    def merge(self, into: GrainSums, other: GrainSums) -> None:
        into.merge(other)


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

    @property
    def access(self) -> Access:
        """What of the inputs every pass must see at once."""
        return Access.ELEMENTWISE

    @property
    def scratch(self) -> int:
        """Scratch tensors that one call of `combine` or `tally` takes at most."""
        return 0

    @property
    def cost(self) -> float:
        """Nanoseconds for one element of one input, all passes, on one core of 2024, roughly."""
        return 1.0

    @property
    def compiled_cost(self) -> float:
        """The same with compiled loops, where it has any."""
        return self.cost

    @property
    def loops(self) -> frozenset[str]:
        """Names of the compiled loops that make it faster; they change no bit of the result.

        Those of its statistics are meant too. See `engine.hardware.machine_code`.
        """
        return frozenset[str]().union(*(statistic.loops for statistic in self.passes))

    @property
    def looped_scratch(self) -> int | None:
        """Scratch tensors that one call takes at most where loops do the work.

        Inputs of the types `AS_STORED` are then there as they are stored only. ``None`` where that
        does not suffice: it needs what it needs without loops.
        """
        return None

    @property
    def passes(self) -> tuple[Statistic[Any, Any], ...]:
        """The statistics, one pass over the inputs each, in order."""
        return ()

    @property
    def double(self) -> bool:
        """Whether any of its arithmetic on grains is float64, which some devices cannot."""
        return any(statistic.double for statistic in self.passes)

    def workspace_bytes(self, grains: Grains, looped: bool) -> int:
        """Memory in bytes that one call of `combine`, `tally` or a statistic's `update` allocates
        by itself, beyond scratch, output and accumulator; where loops work if ``looped``."""
        return 0

    def notes_bytes(self, grains: Grains) -> int:
        """Bytes of one grain's notes: what passes find out that later ones would find out again.

        They are granted where loops work and memory is there; no result may hang on that.
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
        if any(shape != inputs[0] for shape in inputs):
            raise ValueError(f"shapes differ: {', '.join(map(str, inputs))}")
        if side:
            raise ValueError(f"it has no use for {len(side)} tensors beside its inputs")
        return inputs[0]

    def needs_tally(self, statistics: Sequence[Any]) -> bool:
        """Whether `combine` must know the sum of `tally` over all earlier grains.

        Asked once a merge, when all statistics are there; it costs arithmetic, never input.
        """
        return False

    def tally(self, grain: GrainView, statistics: Sequence[Any]) -> tuple[int | Tensor, ...]:
        """Whole numbers of this grain that the grains after it must know the sums of.

        They may be 0-d tensors.
        """
        raise NotImplementedError

    def combine(
        self,
        grain: GrainView,
        out: Tensor,
        statistics: Sequence[Any],
        before: tuple[int, ...],
    ) -> None:
        """Write the result of one grain to ``out``: float32, of the shape of the inputs.

        ``statistics`` are the results of `passes` in order; ``before`` is the elementwise sum of
        `tally` over all earlier grains, or ``()`` where `needs_tally` was false.
        """
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Copy(Kernel):
    """The one input as it is; byte for byte where the output has the input's dtype."""

    def combine(
        self,
        grain: GrainView,
        out: Tensor,
        statistics: Sequence[Any],
        before: tuple[int, ...],
    ) -> None:
        out.copy_(grain.inputs[0])
