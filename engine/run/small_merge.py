"""Computes merges of one grain whose inputs are in memory.

The operations are those of `engine.run.evaluate`, in the same order. The common properties of the
merges of a kind (shapes, dtypes, which inputs to widen) are determined once, because for a few
kilobytes that takes longer than the arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mergeloom.engine.base.dtypes import F32, U8, DType
from mergeloom.engine.graph.arithmetic import Ops
from mergeloom.engine.graph.graph import Merge
from mergeloom.engine.graph.kernel import Array, GrainView, Kernel
from mergeloom.engine.memory.ledger import Block
from mergeloom.engine.plan.work import Work
from mergeloom.engine.run.evaluate import shape_of

_BRIEF = 1 << 14
"""Maximum number of elements that every operation computes in some ten microseconds."""


class SmallMerges:
    """The merges of the kind of ``work``, which `is_small`; ``ops`` belongs to the thread."""

    def __init__(self, work: Work, ops: Ops) -> None:
        root, count = work.root, work.grains.total
        access = root.kernel.access
        self._ops = ops = ops.brief if count <= _BRIEF else ops
        self._count = count
        self._whole = work.leaves[0].shape
        self._shape = shape_of(self._whole, access, count)
        self._result_shape = shape_of(root.shape, access, count)
        self._inputs = [(load.dtype, ops.reads(load.dtype)) for load in work.leaves]
        self._outputs = [write.dtype for write in work.writes]
        self._direct = self._outputs.index(F32) if F32 in self._outputs else None
        self._latest = root.kernel, root.kernel.for_one_grain(ops, count)
        self._memo_bytes = work.merge_shape.memo_bytes

    def compute(
        self,
        merge: Merge,
        block: Block,
        inputs: Sequence[int],
        outputs: Sequence[int],
        memo: int | None,
    ) -> Any:
        """Compute ``merge``. ``inputs``, ``outputs`` and ``memo`` are offsets in ``block``.

        Returns nonzero if any output element may not be finite; see `check_finite`.
        """
        ops, count, kernel = self._ops, self._count, self._for_one_grain(merge.kernel)
        top = ops.top()
        grain = self._view(block, inputs, memo)
        found: list[Any] = []
        for statistic in kernel.passes:
            total, begin = statistic.init(), ops.top()
            statistic.update(total, grain, found)
            ops.release(begin)
            statistic.fetch(total)
            found.append(statistic.finalize(total, found))
        prefix: tuple[int, ...] = ()
        if kernel.needs_scan(found):
            begin = ops.top()
            prefix = (0,) * len(kernel.scan_value(grain, found))  # there are no earlier grains
            ops.release(begin)
        places = [
            ops.view(block, at, dtype, count)
            for at, dtype in zip(outputs, self._outputs, strict=True)
        ]
        result = ops.take(count) if self._direct is None else places[self._direct]
        kernel.apply(grain, ops.shaped(result, self._result_shape), found, prefix)
        may_be_nonfinite = 0
        for place in places:
            may_be_nonfinite = may_be_nonfinite + ops.store(result, place)
        ops.release(top)
        return may_be_nonfinite

    def _for_one_grain(self, kernel: Kernel) -> Kernel:
        """See `Kernel.for_one_grain`; consecutive merges usually have the same kernel."""
        if kernel is not self._latest[0]:
            self._latest = kernel, kernel.for_one_grain(self._ops, self._count)
        return self._latest[1]

    def _view(self, block: Block, inputs: Sequence[int], memo: int | None) -> GrainView:
        ops, count, shape = self._ops, self._count, self._shape
        arrays = []
        for at, (dtype, readable) in zip(inputs, self._inputs, strict=True):
            array = ops.view(block, at, dtype, count)
            if not readable:
                stored, array = array, ops.take(count)
                ops.widen(dtype, stored, array)
            arrays.append(ops.shaped(array, shape))
        memory = None if memo is None else ops.view(block, memo, U8, self._memo_bytes)
        return GrainView(
            *(arrays, 0, 0, shape, self._take, ops, ops.on_device, memory, (), self._whole)
        )

    def _take(self) -> Array:
        return self._ops.shaped(self._ops.take(self._count), self._shape)


def is_small(work: Work) -> bool:
    """Whether `SmallMerges` can compute a merge: it has one grain and one kernel, its inputs are
    distinct loads, it has no side inputs and no additional results, and its elements are whole
    bytes."""
    kernel = work.root.kernel
    if work.root.gather.inputs != work.leaves or work.grains.count != 1:
        return False
    dtypes = [*(load.dtype for load in work.leaves), *(write.dtype for write in work.writes)]
    no_extras = not (work.side_loads or kernel.parts or kernel.lossy)
    return no_extras and all(map(_is_stored_singly, dtypes))


def _is_stored_singly(dtype: DType) -> bool:
    return dtype.block == 1 and dtype.stored is None and not dtype.codec
