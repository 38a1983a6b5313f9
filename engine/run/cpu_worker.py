"""Computes tiles on the CPU."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

from mergeloom.engine.graph.graph import Load
from mergeloom.engine.graph.kernel import Arithmetic, Ops
from mergeloom.engine.graph.sums import GrainSums
from mergeloom.engine.run.evaluate import Memo, Span, TreeEvaluator, check_finite
from mergeloom.engine.run.state import Bundle, TileQueue, TileRun, elements


class Worker:
    """One thread's work: it takes tiles and computes them, grain by grain.

    ``ops`` gives the thread's own arithmetic of a kind.
    """

    def __init__(self, host: TileQueue, ops: Callable[[Arithmetic], Ops]) -> None:
        self._host = host
        self._ops = ops

    def run(self) -> None:
        """Work until the executor has no tile any more.

        Raises:
            RunError: a result is not finite where the inputs are, or cannot be computed.
            Closed: the run was stopped.
        """
        while (task := self._host.take_any()) is not None:
            if isinstance(task, Bundle):
                self._compute_all(task)
                self._host.computed_all(task)
                continue
            # The thread's own time: it may wait for other tiles, and other programs take turns.
            began = time.thread_time()
            self._compute(task)
            self._host.computed(task, time.thread_time() - began)

    def _compute_all(self, bundle: Bundle) -> None:
        """Take each merge of a bundle through all of its passes."""
        for run in bundle.runs:
            for task in bundle.tiles(run):
                number = task.tile.number
                if number:
                    run.open_pass(number)
                self._compute(task)
                run.add(task)
                run.finish_pass(number)

    def _compute(self, task: TileRun) -> None:
        work = task.merge.placement.work
        if not work.profile.computes:
            _copy(task)
        elif work.passes[task.tile.number].statistic is None:
            self._combine(task)
        else:
            self._gather(task)

    def _combine(self, task: TileRun) -> None:
        """Compute the outputs of a tile of the last pass, and digest them."""
        run, work = task.merge, task.merge.placement.work
        evaluator, spans = self._evaluator(task)
        spans |= {load: Span(held.block, held.at, 0) for load, held in run.side.items()}
        first, _ = elements(task.tile, run.placement)
        outputs = [(write, Span(block, at, first)) for write, block, at in task.outputs]
        task.faulty.clear()
        task.losses = GrainSums() if work.root.kernel.lossy else None
        for index in _indices(task):
            self._host.check()
            doubtful = evaluator.output(index, outputs, task.losses)
            bounds = work.grains.bounds(index)
            if doubtful:
                task.faulty.update(check_finite(work.root, bounds, spans, outputs))
            for write, span in outputs:
                run.digests[write].add(index, span.content(write.dtype, *bounds))

    def _gather(self, task: TileRun) -> None:
        """Add a tile to the statistic of its pass."""
        current = task.merge.placement.work.passes[task.tile.number]
        assert current.statistic is not None
        evaluator, _ = self._evaluator(task)
        merge = task.merge.placement.work.merge_of(current)
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
        work = run.placement.work
        first, _ = elements(tile, run.placement)
        spans = {load: Span(block, at, first) for load, (block, at) in task.inputs.items()}
        memo = None
        if task.memo is not None:
            memo = Memo(task.memo, work.profile.memo_bytes, tile.first)
        ops = self._ops(work.arithmetic)
        evaluator = TreeEvaluator(
            *(work.root, work.grains, spans, ops, run.statistics, task.prefixes, memo),
            side={load: Span(held.block, held.at, 0) for load, held in run.side.items()},
        )
        for merge in run.passes[tile.number].scanned:
            if merge not in task.prefixes:  # a device may have got as far as this
                own = [
                    tuple(map(int, evaluator.scan_value(merge, index))) for index in _indices(task)
                ]
                self._host.exchange(task, merge, own)
        return evaluator, spans


def _indices(task: TileRun) -> range:
    return range(task.tile.first, task.tile.first + task.tile.grains)


def _copy(task: TileRun) -> None:
    """Move the bytes of one tile from its input to its outputs, and digest them."""
    grains = task.merge.placement.work.grains
    (source, begin) = next(iter(task.inputs.values()))
    first, count = elements(task.tile, task.merge.placement)
    for write, block, at in task.outputs:
        nbytes = write.dtype.nbytes
        ctypes.memmove(block.address + at, source.address + begin, nbytes(count))
        for index in _indices(task):
            start, length = grains.bounds(index)
            offset = at + nbytes(start - first)
            task.merge.digests[write].add(index, block.memory[offset : offset + nbytes(length)])
