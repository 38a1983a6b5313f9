"""Evaluate a merge tree on a tile, grain by grain; needs no library itself.

No memory is allocated here: inputs and outputs are views of ledger blocks, and widened inputs and
intermediate results are in the worker's scratch memory, or all of these are in the memory of a
device (`engine.run.device_worker`). The operations on a grain do not depend on the tile, so its
results do not either.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, overload

from mergeloom.engine.base.dtypes import F32, U8, DType
from mergeloom.engine.base.errors import RunError
from mergeloom.engine.base.grains import Access, Grains
from mergeloom.engine.base.records import dataclass, record
from mergeloom.engine.graph.arithmetic import Ops
from mergeloom.engine.graph.graph import Load, Merge, Write, tree
from mergeloom.engine.graph.kernel import Array, GrainView, Statistic
from mergeloom.engine.graph.sums import GrainSums
from mergeloom.engine.memory.ledger import Block
from mergeloom.engine.run.finite import not_finite
from mergeloom.engine.run.tables import LoadedTable


class ElementsView(Protocol):
    """The place of contiguous elements of a tensor, in main memory or on a device."""

    def view(self, ops: Ops, dtype: DType, start: int, count: int) -> Array:
        """Elements ``[start, start + count)`` as a flat array."""


@record(frozen=True, slots=True)
class Span:
    """Elements of a tensor in main memory: element ``first`` is at byte ``at`` of ``block``."""

    block: Block
    at: int
    first: int

    def view(self, ops: Ops, dtype: DType, start: int, count: int) -> Array:
        """Elements ``[start, start + count)`` as a flat array; packed elements as their bytes."""
        if dtype.stored is not None:
            kind, number = dtype.stored, dtype.numbers(count)
        elif dtype.block > 1:
            kind, number = U8, dtype.nbytes(count)
        else:
            kind, number = dtype, count
        return ops.view(self.block, self.at + dtype.nbytes(start - self.first), kind, number)

    def content(self, dtype: DType, start: int, count: int) -> memoryview:
        """The bytes of elements ``[start, start + count)``."""
        offset = self.at + dtype.nbytes(start - self.first)
        return self.block.memory[offset : offset + dtype.nbytes(count)]


@dataclass(frozen=True, slots=True)
class Memo:
    """The memos of consecutive grains, ``nbytes`` each: that of grain ``first`` is at byte ``at``
    of ``block``."""

    block: Block
    nbytes: int
    first: int
    at: int = 0

    def of(self, ops: Ops, index: int) -> Array:
        """The memo of grain ``index``."""
        return ops.view(self.block, self.at + (index - self.first) * self.nbytes, U8, self.nbytes)


class TreeEvaluator:
    """Evaluates a merge tree on the grains of one tile.

    ``statistics`` maps each merge of the tree to the results of its finished passes; ``prefixes``
    maps merges with a scan to the sum of the scan values of all earlier grains, by grain. ``ops``
    are the operations, ``memo`` the memos for the kernel of the root, ``side`` and ``tables`` the
    loads other than inputs.
    """

    def __init__(
        self,
        root: Merge,
        grains: Grains,
        inputs: Mapping[Load, ElementsView],
        ops: Ops,
        statistics: Mapping[Merge, Sequence[Any]],
        prefixes: Mapping[Merge, Mapping[int, tuple[int, ...]]],
        memo: Memo | None = None,
        side: Mapping[Load, Span] | None = None,
        tables: Mapping[Load, LoadedTable] | None = None,
    ) -> None:
        self._root = root
        self._grains = grains
        self._inputs = inputs
        self._ops = ops
        self._statistics = statistics
        self._prefixes = prefixes
        self._memo = memo
        self.tables = tables or {}
        beside = (item for item in (side or {}).items() if item[0] not in self.tables)
        self._side = {load: _side_array(ops, load, span) for load, span in beside}
        self._values: dict[Load | Merge, Array] = {}
        self._parts: list[Array] = []
        """The arrays for the `Kernel.parts` of the current grain."""
        self._not_widened: dict[Load, Array] = {}
        """Stored arrays of the loads that no kernel has read yet; they are widened on demand."""
        plain = root.is_flat and memo is None and not root.kernel.parts and not ops.on_device
        self._reuses_view = plain and all(ops.reads(load.dtype) for load in inputs)
        """Whether a view can be reused: none of its arrays is in scratch memory."""
        self._latest_view: GrainView | None = None
        """The latest view, which all passes over a tensor of one grain can use."""

    def update_statistic(
        self, merge: Merge, statistic: Statistic[Any, Any], into: Any, index: int
    ) -> None:
        """Add grain ``index`` to the accumulator of one statistic of ``merge``."""
        start = self._begin()
        statistic.update(into, self._view(merge, index), self._statistics[merge])
        self._ops.release(start)

    def scan_value(self, merge: Merge, index: int) -> tuple[Any, ...]:
        """The scan value of grain ``index`` of ``merge``; see `Kernel.scan_value`."""
        start = self._begin()
        result = merge.kernel.scan_value(self._view(merge, index), self._statistics[merge])
        self._ops.release(start)
        return result

    def compute_output(
        self,
        index: int,
        writes: Sequence[tuple[Write, ElementsView]],
        losses: GrainSums | None = None,
    ) -> Any:
        """Compute grain ``index`` of the root and round it into its outputs.

        The quantisation error is added to ``losses``, if given. Returns nonzero if any output
        element may not be finite; see `check_finite`.
        """
        ops, top = self._ops, self._begin()
        start, count = self._grains.bounds(index)
        places = [(write, span.view(ops, write.dtype, start, count)) for write, span in writes]
        direct = next((p for write, p in places if write.dtype == F32 and not write.part), None)
        result = ops.take(count) if direct is None else direct
        self._parts = [ops.take(dtype.numbers(count)) for dtype in self._root.kernel.parts]
        self._apply(self._root, index, result, count)
        values, found = [result, *self._parts], 0
        for write, place in places:
            value, dtype = values[write.part], write.dtype
            stored = ops.pack(dtype, value, place) if dtype.codec else ops.store(value, place)
            found = found + stored
        if losses is not None:
            self._add_loss(index, count, places, losses)
        ops.release(top)
        return found

    def _add_loss(
        self, index: int, count: int, places: Sequence[tuple[Write, Array]], losses: GrainSums
    ) -> None:
        for write, place in places:
            if not write.part:
                quantised = self._ops.take(count)
                self._ops.widen(write.dtype.stored or write.dtype, place, quantised)
                losses.add(index, self._root.kernel.loss(self._view(self._root, index), quantised))

    def _begin(self) -> int:
        if not self._reuses_view:
            self._values.clear()
            self._not_widened.clear()
        return self._ops.top()

    def _view(self, merge: Merge, index: int) -> GrainView:
        if not self._reuses_view:
            return self._new_view(merge, index)
        seen = self._latest_view
        if seen is None or seen.index != index:
            self._values.clear()
            seen = self._latest_view = self._new_view(merge, index)
        return seen

    def _new_view(self, merge: Merge, index: int) -> GrainView:
        ops = self._ops
        start, count = self._grains.bounds(index)
        nodes = merge.gather.inputs
        whole = nodes[0].shape
        shape = shape_of(whole, merge.kernel.access, count)
        values = [ops.shaped(self._value(node, index, start, count), shape) for node in nodes]
        inputs: Sequence[Array] = values
        if self._not_widened:
            inputs = _LazyInputs(nodes, values, self._not_widened, ops)

        def take() -> Array:
            return ops.shaped(ops.take(count), shape)

        memo = None
        if self._memo is not None and merge is self._root:
            memo = self._memo.of(ops, index)
        side = [self._side[load] for load in merge.gather.side]
        return GrainView(
            *(inputs, index, start, shape, take, ops, ops.on_device, memo, side, whole),
            parts=self._parts if merge is self._root else (),
            tables=[self.tables[load] for load in merge.gather.tables],
        )

    def _value(self, node: Load | Merge, index: int, start: int, count: int) -> Array:
        value = self._values.get(node)
        if value is None:
            if isinstance(node, Merge):
                value = self._ops.take(count)
                self._apply(node, index, value, count)
            else:
                value = self._inputs[node].view(self._ops, node.dtype, start, count)
                if not self._ops.reads(node.dtype):
                    self._not_widened[node] = value
                    value = self._ops.take(count)
            self._values[node] = value
        return value

    def _apply(self, merge: Merge, index: int, out: Array, count: int) -> None:
        view = self._view(merge, index)
        top = self._ops.top()
        prefix = self._prefixes[merge][index] if merge in self._prefixes else ()
        shaped = self._ops.shaped(out, shape_of(merge.shape, merge.kernel.access, count))
        merge.kernel.apply(view, shaped, self._statistics[merge], prefix)
        self._ops.release(top)


class _LazyInputs(Sequence[Array]):
    """The inputs of one grain; those in ``narrow`` are widened when they are first read."""

    def __init__(
        self,
        nodes: Sequence[Load | Merge],
        values: list[Array],
        narrow: dict[Load, Array],
        ops: Ops,
    ) -> None:
        self._nodes = nodes
        self._values = values
        self._not_widened = narrow
        self._ops = ops

    def __len__(self) -> int:
        return len(self._values)

    @overload
    def __getitem__(self, place: int) -> Array: ...
    @overload
    def __getitem__(self, place: slice) -> list[Array]: ...
    def __getitem__(self, place: int | slice) -> Array:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        node, value = self._nodes[place], self._values[place]
        if isinstance(node, Load) and node in self._not_widened:
            self._ops.widen(node.dtype, self._not_widened.pop(node), value)
        return value


def _side_array(ops: Ops, load: Load, span: Span) -> Array:
    """A side input for kernels, complete: in its stored dtype, or float32 if that is packed."""
    stored = span.view(ops, load.dtype, 0, load.elements)
    return ops.shaped(ops.whole_bytes(load.dtype, stored, load.elements), load.shape)


def shape_of(whole: tuple[int, ...], access: Access, count: int) -> tuple[int, ...]:
    """The shape in which a kernel sees ``count`` elements of a tensor."""
    if access is Access.ROWWISE:
        row = whole[-1] if whole else 1
        return (count // row, row)
    if access is Access.MATRIXWISE:
        matrix = whole[-2:]
        return (count // math.prod(matrix), *matrix)
    return whole if access is Access.WHOLE else (count,)


def check_finite(
    root: Merge,
    bounds: tuple[int, int],
    inputs: Mapping[Load, Span],
    writes: Sequence[tuple[Write, Span]],
    tables: Mapping[Load, LoadedTable] | None = None,
) -> dict[Load, int]:
    """Check a grain of ``root`` whose results may not be finite.

    ``bounds`` are the first element of the grain and the number of elements; ``inputs`` are the
    positions of all loads of the tree in memory, with side inputs. Returns, for each input, the
    number of its elements in this grain that are not finite.

    Raises:
        RunError: a result is not finite although the inputs it is computed from are.
    """
    merges, known = list(tree(root)), tables or {}
    nodes = dict.fromkeys(node for merge in merges for node in merge.gather.inputs)
    nonfinite = {
        node: _not_finite(inputs[node], node.dtype, bounds)
        for node in nodes
        if isinstance(node, Load)
    }
    aligned = all(merge.kernel.is_aligned for merge in merges)
    for write, span in writes:
        wrong = _not_finite(span, write.dtype, bounds)
        for merge in merges:
            for node in merge.gather.inputs:
                if isinstance(node, Load):
                    wrong &= ~nonfinite[node] if aligned else not nonfinite[node].any()
            for load in merge.gather.side:
                if wrong.any():
                    wrong &= ~_not_finite(inputs[load], load.dtype, (0, load.elements)).any()
            for load in merge.gather.tables:
                if wrong.any():
                    size = load.dtype.nbytes(1)
                    content = known[load].content()
                    found = (not_finite(each, load.dtype, len(each) // size) for each in content)
                    wrong &= not any(each.any() for each in found)
        if wrong.any():
            raise RunError(
                f"'{write.name}': {int(wrong.sum())} or more values are not finite as "
                f"{write.dtype}, although all inputs are",
                remedy="choose a wider dtype or out_dtype, or smaller weights",
            )
    return {load: int(found.sum()) for load, found in nonfinite.items() if found.any()}


def _not_finite(span: Span, dtype: DType, bounds: tuple[int, int]) -> Any:
    """A numpy mask of the elements that are not finite."""
    return not_finite(span.content(dtype, *bounds), dtype, bounds[1])
