"""Computes tiles on the CPU. Copies need no arithmetic, and so no torch."""

from __future__ import annotations

import ctypes
import time
from typing import TYPE_CHECKING, Any

from mergeloom.engine.run.state import Host, TileRun, elements

if TYPE_CHECKING:
    from mergeloom.engine.graph.graph import Load
    from mergeloom.engine.run.evaluate import Bench, Span, TreeEvaluator


class Worker:
    """One thread's work: it takes tiles and computes them, grain by grain.

    ``bench`` is its scratch memory, where any merge needs arithmetic; ``loops`` are handed to
    kernels.
    """

    def __init__(self, host: Host, bench: Bench | None, loops: Any) -> None:
        self._host = host
        self._bench = bench
        self._loops = loops

    def run(self) -> None:
        """Work until the executor has no tile any more.

        Raises:
            RunError: a result is not finite where the inputs are, or cannot be computed.
            Closed: the run was stopped.
        """
        while (task := self._host.take(None)) is not None:
            # The thread's own time: it may wait for other tiles, and other programs take turns.
            began = time.thread_time()
            if not task.merge.placement.work.profile.computes:
                _copy(task)
            elif task.merge.placement.work.passes[task.tile.number].statistic is None:
                self._combine(task)
            else:
                self._gather(task)
            self._host.computed(task, time.thread_time() - began)

    def _combine(self, task: TileRun) -> None:
        """Compute the outputs of a tile of the last pass, and digest them."""
        from mergeloom.engine.run.evaluate import Span, check_finite

        run, work = task.merge, task.merge.placement.work
        evaluator, spans = self._evaluator(task)
        spans |= {load: Span(held.block, held.at, 0) for load, held in run.side.items()}
        first, _ = elements(task.tile, run.placement)
        outputs = [(write, Span(block, at, first)) for write, block, at in task.outputs]
        for index in _indices(task):
            self._host.check()
            squares = float(evaluator.output(index, outputs))
            bounds = work.grains.bounds(index)
            check_finite(work.root, bounds, squares, spans, outputs)
            for write, span in outputs:
                run.digests[write].add(index, span.content(write.dtype, *bounds))

    def _gather(self, task: TileRun) -> None:
        """Add a tile to the statistic of its pass."""
        current = task.merge.placement.work.passes[task.tile.number]
        assert current.statistic is not None
        evaluator, _ = self._evaluator(task)
        statistic = current.merge.kernel.passes[current.statistic]
        accumulator = statistic.start()
        for index in _indices(task):
            self._host.check()
            evaluator.statistic(current.merge, statistic, accumulator, index)
        self._host.accumulate(task, accumulator)

    def _evaluator(self, task: TileRun) -> tuple[TreeEvaluator, dict[Load, Span]]:
        """What evaluates the tile, once it knows the tallies before it; and where inputs lie."""
        from mergeloom.engine.run.evaluate import Notes, Span, TreeEvaluator

        run, tile = task.merge, task.tile
        work = run.placement.work
        first, _ = elements(tile, run.placement)
        spans = {load: Span(block, at, first) for load, (block, at) in task.inputs.items()}
        notes = None
        if task.notes is not None:
            notes = Notes(task.notes, work.profile.notes_bytes, tile.first)
        assert self._bench is not None
        evaluator = TreeEvaluator(
            *(work.root, work.grains, spans, self._bench, run.statistics, task.tallies),
            loops=self._loops,
            notes=notes,
            side={load: Span(held.block, held.at, 0) for load, held in run.side.items()},
        )
        for merge in run.passes[tile.number].tallied:
            if merge not in task.tallies:  # a device may have got as far as this
                own = [tuple(map(int, evaluator.tally(merge, index))) for index in _indices(task)]
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
