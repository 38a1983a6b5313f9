"""Computes tiles on the CPU."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mergeloom.engine.graph.arithmetic import Arithmetic, Ops
from mergeloom.engine.graph.graph import Load, Merge, Write
from mergeloom.engine.graph.sums import GrainSums
from mergeloom.engine.memory.ledger import Block
from mergeloom.engine.plan.work import Work, WorkKind
from mergeloom.engine.run.bundle_layout import BundleLayout
from mergeloom.engine.run.evaluate import Memo, Span, TreeEvaluator, check_finite
from mergeloom.engine.run.finite import all_finite, not_finite
from mergeloom.engine.run.small_merge import SmallMerges, is_small
from mergeloom.engine.run.state import (
    Bundle,
    HeldLoad,
    SmallRun,
    TileQueue,
    TileRun,
    elements,
    scanning_merges,
    sums_before,
)
from mergeloom.engine.run.tables import LoadedTable
from mergeloom.engine.storage.digest import TensorDigest

Outputs = Sequence[tuple[Write, Span]]
"""Writes and their positions in memory."""


class CpuWorker:
    """One compute thread: takes tiles and computes them grain by grain.

    ``ops`` returns the operations of an arithmetic, which belong to this thread.
    """

    def __init__(self, tiles: TileQueue, ops: Callable[[Arithmetic], Ops]) -> None:
        self._tiles = tiles
        self._ops = ops
        self._small: dict[WorkKind, SmallMerges | None] = {}
        """The quick way to compute merges of a kind, or ``None`` if there is none."""

    def run(self) -> None:
        """Compute tiles until there are no more.

        Raises:
            RunError: a result is not finite where the inputs are, or cannot be computed.
            LedgerClosed: the run was stopped.
        """
        while (task := self._tiles.take_any()) is not None:
            if isinstance(task, Bundle):
                self._compute_bundle(task)
                self._tiles.computed_all(task)
                continue
            self._compute(task)
            self._tiles.computed(task)

    def _compute_bundle(self, bundle: Bundle) -> None:
        """Run all passes of each merge of a bundle."""
        block, layout = bundle.block, bundle.layout
        for run in bundle.runs:
            self._tiles.check()
            work = run.scheduled.work
            small = self._small_merges(work)
            if small is not None:
                self._compute_small_merge(run, small, block, layout)
                continue
            outputs = [(write, Span(block, layout.outputs[write], 0)) for write in work.writes]
            inputs = {load: Span(block, layout.inputs[load], 0) for load in work.leaves}
            if work.merge_shape.computes:
                at = layout.memos.get(work.root)
                memo = None if at is None else Memo(block, work.merge_shape.memo_bytes, 0, at)
                self._compute_merge(run, inputs, outputs, memo)
            else:
                copied = inputs[work.leaves[0]]
                every = range(work.grains.count)
                _copy(work, every, copied, outputs, run.digests, run.nonfinite)

    def _small_merges(self, work: Work) -> SmallMerges | None:
        if work.kind not in self._small:
            small = work.merge_shape.computes and is_small(work)
            ops = self._ops(work.arithmetic) if small else None
            self._small[work.kind] = None if ops is None else SmallMerges(work, ops)
        return self._small[work.kind]

    def _compute_small_merge(
        self, run: SmallRun, small: SmallMerges, block: Block, layout: BundleLayout
    ) -> None:
        """Compute and digest a merge, and count the elements that are not finite."""
        work = run.scheduled.work
        offsets = [layout.outputs[write] for write in work.writes]
        sources = [layout.inputs[load] for load in work.leaves]
        memo = layout.memos.get(work.root) if layout.memos else None
        if small.compute(work.root, block, sources, offsets, memo):
            inputs = {load: Span(block, layout.inputs[load], 0) for load in work.leaves}
            outputs = [(write, Span(block, layout.outputs[write], 0)) for write in work.writes]
            run.nonfinite.update(check_finite(work.root, work.grains.bounds(0), inputs, outputs))
        memory = block.memory
        for write, at in zip(work.writes, offsets, strict=True):
            run.digests[write].add(0, memory[at : at + write.nbytes])

    def _compute_merge(
        self, run: SmallRun, inputs: Mapping[Load, Span], outputs: Outputs, memo: Memo | None
    ) -> None:
        """Compute all passes of a merge whose inputs are in memory."""
        work, every = run.scheduled.work, range(run.scheduled.work.grains.count)
        prefixes: dict[Merge, dict[int, tuple[int, ...]]] = {}
        ops = self._ops(work.arithmetic)
        results: dict[Merge, list[Any]] = {merge: [] for merge in work.merges}
        evaluator = TreeEvaluator(work.root, work.grains, inputs, ops, results, prefixes, memo)
        for number, current in enumerate(work.passes):
            for merge in scanning_merges(work, number, results):
                own = [tuple(map(int, evaluator.scan_value(merge, index))) for index in every]
                zeros = (0,) * len(own[0])
                prefixes[merge] = dict(enumerate(sums_before(own, zeros)))
            if current.statistic is None:
                self._output(evaluator, work, every, inputs, outputs, run.digests, run)
                continue
            merge = work.merge_of(current)
            statistic, found = merge.kernel.passes[current.statistic], results[merge]
            accumulator = statistic.init()
            for index in every:
                evaluator.update_statistic(merge, statistic, accumulator, index)
            statistic.fetch(accumulator)
            found.append(statistic.finalize(accumulator, found))
            prefixes.clear()

    def _compute(self, task: TileRun) -> None:
        work = task.merge.scheduled.work
        if not work.merge_shape.computes:
            first, _ = elements(task.tile, task.merge.scheduled)
            (source, at) = next(iter(task.inputs.values()))
            outputs = [(write, Span(block, at, first)) for write, block, at in task.outputs]
            copied = Span(source, at, first)
            task.nonfinite.clear()
            _copy(work, task.tile.indices, copied, outputs, task.merge.digests, task.nonfinite)
        elif work.passes[task.tile.number].statistic is None:
            self._compute_outputs(task)
        else:
            self._update_statistic(task)

    def _compute_outputs(self, task: TileRun) -> None:
        """Compute the outputs of a tile of the last pass, and digest them."""
        run, work = task.merge, task.merge.scheduled.work
        evaluator, spans = self._evaluator(task)
        spans |= {load: Span(held.block, held.at, 0) for load, held in run.side.items()}
        first, _ = elements(task.tile, run.scheduled)
        outputs = [(write, Span(block, at, first)) for write, block, at in task.outputs]
        self._output(evaluator, work, task.tile.indices, spans, outputs, run.digests, task)

    def _output(
        self,
        evaluator: TreeEvaluator,
        work: Work,
        indices: range,
        inputs: Mapping[Load, Span],
        outputs: Outputs,
        digests: Mapping[Write, TensorDigest],
        into: TileRun | SmallRun,
    ) -> None:
        """Compute and digest grains of the output. ``into`` receives the counts of elements that
        are not finite, and the quantisation error."""
        into.nonfinite.clear()
        into.losses = GrainSums() if work.root.kernel.lossy else None
        for index in indices:
            self._tiles.check()
            may_be_nonfinite = evaluator.compute_output(index, outputs, into.losses)
            bounds = work.grains.bounds(index)
            if may_be_nonfinite:
                tables = evaluator.tables
                into.nonfinite.update(check_finite(work.root, bounds, inputs, outputs, tables))
            for write, span in outputs:
                digests[write].add(index, span.content(write.dtype, *bounds))

    def _update_statistic(self, task: TileRun) -> None:
        """Add a tile to the statistic of its pass."""
        current = task.merge.scheduled.work.passes[task.tile.number]
        assert current.statistic is not None
        evaluator, _ = self._evaluator(task)
        merge = task.merge.scheduled.work.merge_of(current)
        statistic = merge.kernel.passes[current.statistic]
        accumulator = statistic.init()
        for index in task.tile.indices:
            self._tiles.check()
            evaluator.update_statistic(merge, statistic, accumulator, index)
        statistic.fetch(accumulator)
        self._tiles.accumulate(task, accumulator)

    def _evaluator(self, task: TileRun) -> tuple[TreeEvaluator, dict[Load, Span]]:
        """The evaluator of a tile, and the positions of its inputs in memory.

        If kernels scan, this waits until the prefixes of the grains of the tile are known.
        """
        run, tile = task.merge, task.tile
        work = run.scheduled.work
        first, _ = elements(tile, run.scheduled)
        spans = {load: Span(block, at, first) for load, (block, at) in task.inputs.items()}
        memo = None
        if task.memo is not None:
            memo = Memo(task.memo, work.merge_shape.memo_bytes, tile.first)
        ops = self._ops(work.arithmetic)
        evaluator = TreeEvaluator(
            *(work.root, work.grains, spans, ops, run.statistics, task.prefixes, memo),
            side={load: Span(held.block, held.at, 0) for load, held in run.side.items()},
            tables={load: self._table(ops, load, run.side.get(load)) for load in work.tables},
        )
        for merge in run.passes[tile.number].scanning:
            if merge not in task.prefixes:  # a device may have done this already
                own = [
                    tuple(map(int, evaluator.scan_value(merge, index)))
                    for index in task.tile.indices
                ]
                self._tiles.exchange(task, merge, own)
        return evaluator, spans

    def _table(self, ops: Ops, load: Load, held: HeldLoad | None) -> LoadedTable:
        where = None if held is None else (held.block, held.at)
        return LoadedTable(ops, load, self._tiles.read, where)


def _copy(
    work: Work,
    indices: range,
    source: Span,
    outputs: Outputs,
    digests: Mapping[Write, TensorDigest],
    nonfinite: Counter[Load],
) -> None:
    """Copy the bytes of grains from an input to outputs and digest them. Elements of the input that
    are not finite are counted in ``nonfinite``."""
    grains, load = work.grains, work.leaves[0]
    first, _ = grains.bounds(indices.start)
    count = min(len(indices) * grains.size, grains.total - first)
    for number, (write, span) in enumerate(outputs):
        start, nbytes = write.dtype.nbytes(first - span.first), write.dtype.nbytes(count)
        place = source.block.address + source.at + write.dtype.nbytes(first - source.first)
        ctypes.memmove(span.block.address + span.at + start, place, nbytes)
        checked = number == 0 and work.kind.checks_finite
        for index in indices:
            bounds = grains.bounds(index)
            content = span.content(write.dtype, *bounds)
            digests[write].add(index, content)
            if checked and not all_finite(content, load.dtype):
                nonfinite[load] += int(not_finite(content, load.dtype, bounds[1]).sum())
