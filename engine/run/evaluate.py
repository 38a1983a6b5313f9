"""Evaluating one merge tree on one tile, grain by grain. Only workers import this module.

Everything here works on memory that exists already: inputs are views of ledger blocks, casts and
intermediate results go to the worker's bench, outputs to views of ledger blocks; or the same in
the memory of a device (`engine.run.device_worker`). The operations of one grain are the same
whatever the tile, so their results are too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, overload

import torch
from torch import Tensor

from mergeloom.engine.base.dtypes import BF16, F16, F32, U8, DType
from mergeloom.engine.base.errors import RunError
from mergeloom.engine.base.grains import Access, Grains
from mergeloom.engine.graph.graph import Load, Merge, Write, tree
from mergeloom.engine.graph.kernel import AS_STORED, GrainView, Kernel, Statistic
from mergeloom.engine.memory.ledger import Block
from mergeloom.engine.memory.pages import PAGE


def use_one_thread() -> None:
    """Keep torch, for the thread that calls, from starting others: parallel are tiles in flight.

    Each thread that computes has to call it: the library that torch takes logarithms from counts
    the threads that it may use for each thread by itself.
    """
    torch.set_num_threads(1)


use_one_thread()  # what a thread begins with that does not

_SAFE_SQUARES = {F16: 65504.0**2, BF16: 3e38}
"""Bounds of a sum of squares below which no element becomes infinite by rounding to a type."""


class Bench:
    """A worker's scratch memory, handed out like a stack.

    ``memory`` is flat and float32, at a multiple of `PAGE` bytes. ``on_device`` is that of
    `GrainView`.
    """

    def __init__(self, memory: Tensor, on_device: bool = False) -> None:
        self.on_device = on_device
        self._memory = memory
        self._used = 0

    @staticmethod
    def in_block(block: Block) -> Bench:
        return Bench(torch.frombuffer(block.memory, dtype=torch.float32, count=block.size // 4))

    def take(self, elements: int) -> Tensor:
        """Uninitialised float32 elements, valid until the `mark` taken before is released."""
        start = self._used
        self._used = start + -(-elements * 4 // PAGE) * PAGE // 4
        taken = self._memory[start : start + elements]
        if taken.numel() != elements:
            raise AssertionError("a kernel took more scratch than it declares")
        return taken

    def mark(self) -> int:
        return self._used

    def release(self, mark: int) -> None:
        self._used = mark


class Stretch(Protocol):
    """Elements of a tensor that lie in memory, of this machine or of a device."""

    def view(self, dtype: DType, start: int, count: int) -> Tensor:
        """Elements ``[start, start + count)`` as a flat tensor."""


@dataclass(frozen=True, slots=True)
class Span:
    """Where elements of a tensor lie in memory: element ``first`` at byte ``at`` of ``block``."""

    block: Block
    at: int
    first: int

    def view(self, dtype: DType, start: int, count: int) -> Tensor:
        """Elements ``[start, start + count)`` as a flat tensor; those of less than a byte as the
        bytes that they share."""
        offset = self.at + dtype.nbytes(start - self.first)
        kind, count = (U8, dtype.nbytes(count)) if dtype.bits < 8 else (dtype, count)
        return torch.frombuffer(self.block.memory, dtype=kind.torch, count=count, offset=offset)

    def content(self, dtype: DType, start: int, count: int) -> memoryview:
        """The bytes of elements ``[start, start + count)``."""
        offset = self.at + dtype.nbytes(start - self.first)
        return self.block.memory[offset : offset + dtype.nbytes(count)]


@dataclass(frozen=True, slots=True)
class Notes:
    """Where notes on a run of grains lie in memory: ``nbytes`` each, from grain ``first`` on."""

    block: Block
    nbytes: int
    first: int

    def of(self, index: int) -> Tensor:
        """Those on grain ``index``."""
        offset = (index - self.first) * self.nbytes
        memory = self.block.memory
        return torch.frombuffer(memory, dtype=torch.uint8, count=self.nbytes, offset=offset)


class TreeEvaluator:
    """Evaluates a merge tree on the grains of one tile.

    ``statistics`` maps each merge of the tree to the results of its finished passes; ``tallies``
    to what its kernel must know of earlier grains, by grain. ``loops`` are handed to kernels that
    name any, ``notes`` to that of the root, ``side`` to those that have loads beside their inputs.
    """

    def __init__(
        self,
        root: Merge,
        grains: Grains,
        inputs: Mapping[Load, Stretch],
        bench: Bench,
        statistics: Mapping[Merge, Sequence[Any]],
        tallies: Mapping[Merge, Mapping[int, tuple[int, ...]]],
        loops: Any = None,
        notes: Notes | None = None,
        side: Mapping[Load, Span] | None = None,
    ) -> None:
        self._root = root
        self._grains = grains
        self._inputs = inputs
        self._bench = bench
        self._statistics = statistics
        self._tallies = tallies
        self._loops = {merge: loops if merge.kernel.loops else None for merge in tree(root)}
        self._notes = notes
        self._side = {load: _beside(load, span) for load, span in (side or {}).items()}
        self._values: dict[Load | Merge, Tensor] = {}
        self._narrow: dict[Load, Tensor] = {}
        """Loads as they are stored, whose widened values nobody has asked for yet."""

    def statistic(
        self, merge: Merge, statistic: Statistic[Any, Any], into: Any, index: int
    ) -> None:
        """Add grain ``index`` to the accumulator of one statistic of ``merge``."""
        start = self._begin()
        statistic.update(into, self._view(merge, statistic, index), self._statistics[merge])
        self._bench.release(start)

    def tally(self, merge: Merge, index: int) -> tuple[int | Tensor, ...]:
        """What grain ``index`` of ``merge`` passes on to later grains; see `Kernel.tally`."""
        start = self._begin()
        result = merge.kernel.tally(self._view(merge, merge.kernel, index), self._statistics[merge])
        self._bench.release(start)
        return result

    def output(self, index: int, writes: Sequence[tuple[Write, Stretch]]) -> Tensor:
        """Compute grain ``index`` of the root and round it into its outputs.

        Returns the sum of the squares of its elements (0-d), for `check_finite`.
        """
        mark = self._begin()
        start, count = self._grains.bounds(index)
        direct = next((span for write, span in writes if write.dtype == F32), None)
        result = self._bench.take(count) if direct is None else direct.view(F32, start, count)
        self._combine(self._root, index, result)
        squares = torch.dot(result, result)
        for write, span in writes:
            if span is not direct:
                span.view(write.dtype, start, count).copy_(result)
        self._bench.release(mark)
        return squares

    def _begin(self) -> int:
        self._values.clear()
        self._narrow.clear()
        return self._bench.mark()

    def _view(self, merge: Merge, part: Kernel | Statistic[Any, Any], index: int) -> GrainView:
        start, count = self._grains.bounds(index)
        nodes = merge.gather.inputs
        whole = nodes[0].shape
        shape = _shape(whole, merge.kernel.access, count)
        loops = self._loops[merge]
        widens = loops is None or part.looped_scratch is None
        values = [
            self._value(node, index, start, count).view(shape)
            if widens or isinstance(node, Merge) or node.dtype not in AS_STORED
            else None
            for node in nodes
        ]
        inputs = _Inputs(nodes, values, self._narrow)
        stored = partial(self._stored, nodes, start, count)
        take: Callable[[], Tensor] = lambda: self._bench.take(count).view(shape)  # noqa: E731
        on_device, notes = self._bench.on_device, None
        if self._notes is not None and merge is self._root:
            notes = self._notes.of(index)
        side = [self._side[load] for load in merge.gather.side]
        return GrainView(
            *(inputs, index, start, shape, take, loops, on_device, stored, notes, side, whole)
        )

    def _value(self, node: Load | Merge, index: int, start: int, count: int) -> Tensor:
        value = self._values.get(node)
        if value is None:
            if isinstance(node, Merge):
                value = self._bench.take(count)
                self._combine(node, index, value)
            else:
                value = self._inputs[node].view(node.dtype, start, count)
                if node.dtype != F32:
                    self._narrow[node] = value
                    value = self._bench.take(count)
            self._values[node] = value
        return value

    def _stored(
        self, nodes: Sequence[Load | Merge], start: int, count: int, place: int
    ) -> Tensor | None:
        node = nodes[place]
        if isinstance(node, Merge) or node.dtype not in AS_STORED:
            return None
        return self._inputs[node].view(node.dtype, start, count)

    def _combine(self, merge: Merge, index: int, out: Tensor) -> None:
        view = self._view(merge, merge.kernel, index)
        mark = self._bench.mark()
        before = self._tallies[merge][index] if merge in self._tallies else ()
        shape = _shape(merge.shape, merge.kernel.access, out.numel())
        merge.kernel.combine(view, out.view(shape), self._statistics[merge], before)
        self._bench.release(mark)


class _Inputs(Sequence[Tensor]):
    """The inputs of one grain; those that are ``narrow`` are widened when they are asked for.

    There is no memory for those that are ``None``.
    """

    def __init__(
        self,
        nodes: Sequence[Load | Merge],
        values: list[Tensor | None],
        narrow: dict[Load, Tensor],
    ) -> None:
        self._nodes = nodes
        self._values = values
        self._narrow = narrow

    def __len__(self) -> int:
        return len(self._values)

    @overload
    def __getitem__(self, place: int) -> Tensor: ...
    @overload
    def __getitem__(self, place: slice) -> list[Tensor]: ...
    def __getitem__(self, place: int | slice) -> Tensor | list[Tensor]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        node, value = self._nodes[place], self._values[place]
        if value is None:
            raise AssertionError("a kernel looks at an input that it says it does not need")
        if isinstance(node, Load) and node in self._narrow:
            widen(node.dtype, self._narrow.pop(node), value.view(-1))
        return value


def _beside(load: Load, span: Span) -> Tensor:
    """A tensor beside the inputs as kernels get it: as it is stored, or widened if elements share
    bytes."""
    stored = span.view(load.dtype, 0, load.elements)
    if load.dtype.bits < 8:
        widened = torch.empty(load.elements)
        widen(load.dtype, stored, widened)
        stored = widened
    return stored.view(load.shape)


def _shape(whole: tuple[int, ...], access: Access, count: int) -> tuple[int, ...]:
    """The shape in which a kernel sees ``count`` elements of a tensor."""
    if access is Access.ROWWISE:
        row = whole[-1] if whole else 1
        return (count // row, row)
    if access is Access.MATRIXWISE:
        matrix = whole[-2:]
        return (count // math.prod(matrix), *matrix)
    return whole if access is Access.WHOLE else (count,)


_FOUR_BIT = {
    "F4": [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0],
    "I4": [*range(8), *range(-8, 0)],
    "U4": list(range(16)),
}
_UNPACKED = 1 << 16
"""Bytes that are unpacked at once."""


def widen(dtype: DType, stored: Tensor, out: Tensor) -> None:
    """Write elements as float32 to ``out`` (flat); of less than a byte as in `Span.view`."""
    if dtype.bits >= 8:
        out.copy_(stored)
        return
    values = torch.tensor(_FOUR_BIT[dtype.code], dtype=torch.float32, device=stored.device)
    pairs = torch.stack([values.repeat(16), values.repeat_interleave(16)], 1)
    couples = out.view(-1, 2)
    for start in range(0, len(couples), _UNPACKED):
        part = slice(start, start + _UNPACKED)
        torch.index_select(pairs, 0, stored[part].int(), out=couples[part])


def check_finite(
    root: Merge,
    bounds: tuple[int, int],
    squares: float,
    inputs: Mapping[Load, Span],
    writes: Sequence[tuple[Write, Span]],
) -> None:
    """Check one grain of ``root`` that was computed, given the sum of the squares of its elements.

    ``bounds`` are its first element and their number; ``inputs`` are where the loads of the tree
    lie, those beside its inputs too.

    Raises:
        RunError: a value is not finite although the inputs there are.
    """
    merges = list(tree(root))
    aligned = all(merge.kernel.aligned for merge in merges)
    for write, span in writes:
        # A sum of squares costs a tenth of looking at each element, and bounds them all.
        if squares < _SAFE_SQUARES.get(write.dtype, math.inf):
            continue
        broken = ~_finite(span, write.dtype, bounds)
        for merge in merges:
            for node in merge.gather.inputs:
                if isinstance(node, Load) and bool(broken.any()):
                    finite = _finite(inputs[node], node.dtype, bounds)
                    broken &= finite if aligned else finite.all()
            for load in merge.gather.side:
                if bool(broken.any()):
                    broken &= _finite(inputs[load], load.dtype, (0, load.elements)).all()
        if bool(broken.any()):
            raise RunError(
                f"'{write.name}' gets {int(broken.sum())} or more values that are not finite as "
                f"{write.dtype}, where its inputs are: try a wider out_dtype, or look at the "
                "parameters and for infinities in the inputs"
            )


def _finite(span: Span, dtype: DType, bounds: tuple[int, int]) -> Tensor:
    if dtype.bits < 8:
        return torch.ones(bounds[1], dtype=torch.bool)
    return torch.isfinite(span.view(dtype, *bounds).float())
