"""Computes tiles on the CPU."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mergeloom.engine.graph.graph import Load, Merge, Write
from mergeloom.engine.graph.kernel import Arithmetic, Ops
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
    scanned_in,
    sums_before,
)
from mergeloom.engine.run.tables import LoadedTable
from mergeloom.engine.storage.digest import TensorDigest

Outputs = Sequence[tuple[Write, Span]]
"""Writes and their positions in memory."""


class Worker:
    """One compute thread: takes tiles and computes them grain by grain.

    ``ops`` gives the thread's own arithmetic of a kind.
    """

    def __init__(self, host: TileQueue, ops: Callable[[Arithmetic], Ops]) -> None:
        self._host = host
        self._ops = ops
        self._small: dict[WorkKind, SmallMerges | None] = {}
        """How the merges of a kind are computed whole, if that can be done quickly."""

    def run(self) -> None:
        """Compute tiles until there are no more.

        Raises:
            RunError: a result is not finite where the inputs are, or cannot be computed.
            Closed: the run was stopped.
        """
        while (task := self._host.take_any()) is not None:
            if isinstance(task, Bundle):
                self._compute_all(task)
                self._host.computed_all(task)
                continue
            self._compute(task)
            self._host.computed(task)

    def _compute_all(self, bundle: Bundle) -> None:
        """Run all passes of each merge of a bundle."""
        block, layout = bundle.block, bundle.layout
        for run in bundle.runs:
            self._host.check()
            work = run.scheduled.work
            small = self._small_merges(work)
            if small is not None:
                self._merge_small(run, small, block, layout)
                continue
            outputs = [(write, Span(block, layout.outputs[write], 0)) for write in work.writes]
            inputs = {load: Span(block, layout.inputs[load], 0) for load in work.leaves}
            if work.merge_shape.computes:
                at = layout.memos.get(work.root)
                memo = None if at is None else Memo(block, work.merge_shape.memo_bytes, 0, at)
                self._merge(run, inputs, outputs, memo)
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

    def _merge_small(
        self, run: SmallRun, small: SmallMerges, block: Block, layout: BundleLayout
    ) -> None:
        """Compute and digest a merge, and look for elements that are not finite."""
        work = run.scheduled.work
        places = [layout.outputs[write] for write in work.writes]
        sources = [layout.inputs[load] for load in work.leaves]
        memo = layout.memos.get(work.root) if layout.memos else None
        if small.compute(work.root, block, sources, places, memo):
            inputs = {load: Span(block, layout.inputs[load], 0) for load in work.leaves}
            outputs = [(write, Span(block, layout.outputs[write], 0)) for write in work.writes]
            run.nonfinite.update(check_finite(work.root, work.grains.bounds(0), inputs, outputs))
        memory = block.memory
        for write, at in zip(work.writes, places, strict=True):
            run.digests[write].add(0, memory[at : at + write.nbytes])

    def _merge(
        self, run: SmallRun, inputs: Mapping[Load, Span], outputs: Outputs, memo: Memo | None
    ) -> None:
        """Compute all of a merge whose inputs are in memory."""
        work, every = run.scheduled.work, range(run.scheduled.work.grains.count)
        before: dict[Merge, dict[int, tuple[int, ...]]] = {}
        ops = self._ops(work.arithmetic)
        results: dict[Merge, list[Any]] = {merge: [] for merge in work.merges}
        evaluator = TreeEvaluator(work.root, work.grains, inputs, ops, results, before, memo)
        for number, current in enumerate(work.passes):
            for merge in scanned_in(work, number, results):
                own = [tuple(map(int, evaluator.scan_value(merge, index))) for index in every]
                nothing = (0,) * len(own[0])
                before[merge] = dict(enumerate(sums_before(own, nothing)))
            if current.statistic is None:
                self._output(evaluator, work, every, inputs, outputs, run.digests, run)
                continue
            merge = work.merge_of(current)
            statistic, found = merge.kernel.passes[current.statistic], results[merge]
            accumulator = statistic.init()
            for index in every:
                evaluator.statistic(merge, statistic, accumulator, index)
            statistic.fetch(accumulator)
            found.append(statistic.finalize(accumulator, found))
            before.clear()

    def _compute(self, task: TileRun) -> None:
        work = task.merge.scheduled.work
        if not work.merge_shape.computes:
            first, _ = elements(task.tile, task.merge.scheduled)
            (source, at) = next(iter(task.inputs.values()))
            outputs = [(write, Span(block, at, first)) for write, block, at in task.outputs]
            copied = Span(source, at, first)
            task.nonfinite.clear()
            _copy(work, _indices(task), copied, outputs, task.merge.digests, task.nonfinite)
        elif work.passes[task.tile.number].statistic is None:
            self._combine(task)
        else:
            self._gather(task)

    def _combine(self, task: TileRun) -> None:
        """Compute the outputs of a tile of the last pass, and digest them."""
        run, work = task.merge, task.merge.scheduled.work
        evaluator, spans = self._evaluator(task)
        spans |= {load: Span(held.block, held.at, 0) for load, held in run.side.items()}
        first, _ = elements(task.tile, run.scheduled)
        outputs = [(write, Span(block, at, first)) for write, block, at in task.outputs]
        self._output(evaluator, work, _indices(task), spans, outputs, run.digests, task)

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
        """Compute grains of the output, and digest them. What is found out beside goes to
        ``into``."""
        into.nonfinite.clear()
        into.losses = GrainSums() if work.root.kernel.lossy else None
        for index in indices:
            self._host.check()
            doubtful = evaluator.output(index, outputs, into.losses)
            bounds = work.grains.bounds(index)
            if doubtful:
                tables = evaluator.tables
                into.nonfinite.update(check_finite(work.root, bounds, inputs, outputs, tables))
            for write, span in outputs:
                digests[write].add(index, span.content(write.dtype, *bounds))

    def _gather(self, task: TileRun) -> None:
        """Add a tile to the statistic of its pass."""
        current = task.merge.scheduled.work.passes[task.tile.number]
        assert current.statistic is not None
        evaluator, _ = self._evaluator(task)
        merge = task.merge.scheduled.work.merge_of(current)
        statistic = merge.kernel.passes[current.statistic]
        accumulator = statistic.init()
        for index in _indices(task):
            self._host.check()
            evaluator.statistic(merge, statistic, accumulator, index)
        statistic.fetch(accumulator)
        self._host.accumulate(task, accumulator)

    def _evaluator(self, task: TileRun) -> tuple[TreeEvaluator, dict[Load, Span]]:
        """The evaluator of the tile, once the prefixes of its grains are known, and its inputs."""
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
        for merge in run.passes[tile.number].scanned:
            if merge not in task.prefixes:  # a device may have done this already
                own = [
                    tuple(map(int, evaluator.scan_value(merge, index))) for index in _indices(task)
                ]
                self._host.exchange(task, merge, own)
        return evaluator, spans

    def _table(self, ops: Ops, load: Load, held: HeldLoad | None) -> LoadedTable:
        where = None if held is None else (held.block, held.at)
        return LoadedTable(ops, load, self._host.read, where)


def _indices(task: TileRun) -> range:
    return range(task.tile.first, task.tile.first + task.tile.grains)


def _copy(
    work: Work,
    indices: range,
    source: Span,
    outputs: Outputs,
    digests: Mapping[Write, TensorDigest],
    nonfinite: Counter[Load],
) -> None:
    """Move the bytes of grains from an input to outputs, digest them, and count in ``nonfinite``
    those of the input's elements that are not finite."""
    grains, load = work.grains, work.leaves[0]
    first, _ = grains.bounds(indices.start)
    count = min(len(indices) * grains.size, grains.total - first)
    for number, (write, span) in enumerate(outputs):
        start, nbytes = write.dtype.nbytes(first - span.first), write.dtype.nbytes(count)
        place = source.block.address + source.at + write.dtype.nbytes(first - source.first)
        ctypes.memmove(span.block.address + span.at + start, place, nbytes)
        inspected = number == 0 and work.kind.inspected
        for index in indices:
            bounds = grains.bounds(index)
            content = span.content(write.dtype, *bounds)
            digests[write].add(index, content)
            if inspected and not all_finite(content, load.dtype):
                nonfinite[load] += int(not_finite(content, load.dtype, bounds[1]).sum())
