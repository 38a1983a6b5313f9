"""Computes tiles on a device. Only the worker of a device imports this module.

    block ──upload──► slot or cache ──compute──► slot ──download──► block ──► writers
                                      (scratch)

A tile passes through the device in chunks of a few grains, each in one of the slots of its memory
in turn, so that one chunk arrives while another is computed and a third leaves. Bytes travel as
they are stored; they are widened and rounded on the device. The thread only gives orders: it looks
at a tile's results when it has given those for the next ones.

What several passes of a merge need is uploaded once, where there is room, and stays in the cache.

Memory that does not suffice is nothing special. A tile whose orders could not all be given is
given up and begun again: first with a smaller cache, so that more is uploaded for each pass, then
in smaller chunks, and when one grain is too much, its merge goes to the CPU. That a tile can be
begun again is easy to see: its inputs stay in their blocks until it is done, what it adds to a
statistic is kept apart until then, and its place in the prefix scan is taken once and remembered
in the tile.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mergeloom.engine.base.dtypes import DType
from mergeloom.engine.base.errors import RunError, is_memory_short
from mergeloom.engine.graph.graph import Load, Merge, Write
from mergeloom.engine.memory.ledger import Block, Closed
from mergeloom.engine.plan.device_memory import stride
from mergeloom.engine.run.device import Device, Mark, Memory, is_incapable, is_out_of_memory
from mergeloom.engine.run.device_cache import Entry
from mergeloom.engine.run.device_span import DeviceSpan, chunks, elements_of
from mergeloom.engine.run.device_workspace import DeviceWorkspace
from mergeloom.engine.run.evaluate import Span, TreeEvaluator, check_finite
from mergeloom.engine.run.flight import Flight, TimedChunk
from mergeloom.engine.run.state import MergeRun, TileQueue, TileRun, elements

_FLYING = 2
"""Tiles for which all orders are given after a tile before its results are looked at."""


class Offload:
    """The worker of one device, which is number ``number`` of the schedule and may be given
    ``memory`` bytes. ``arithmetic`` makes its operations, with scratch there.

    Of finished tiles, ``uploaded_bytes`` took ``uploading_seconds`` (NaN: it does not tell).
    """

    def __init__(
        self,
        device: Device,
        number: int,
        memory: int,
        host: TileQueue,
        arithmetic: Callable[..., Any],
    ) -> None:
        self._device = device
        self._number = number
        self._host = host
        self._upload, self._compute, self._download, self._fetch = (
            device.queue() for _ in range(4)
        )
        self._space = DeviceWorkspace(device, memory, arithmetic, self._compute)
        self._most: int | None = None
        self._flying: deque[Flight] = deque()
        self._again: deque[TileRun] = deque()
        self._halved = 0
        self._given_up: dict[Merge, None] = {}
        self.uploaded_bytes = 0
        self.uploading_seconds = 0.0

    def run(self) -> None:
        """Compute tiles to the end of the run.

        Raises:
            Closed: the run was stopped.
            RunError: the device failed otherwise than for want of memory.
        """
        try:
            with self._device.working():
                self._run()
        except (Closed, RunError):
            raise
        except Exception as error:
            if is_memory_short(error):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise RunError(
                f"'{self._device.name}' failed: {reason}; what is merged is kept, the same command "
                "continues, with --device cpu without it"
            ) from error
        finally:
            # No block may be released that a copy still reaches into. A broken device says so
            # again, and copies nothing any more.
            with contextlib.suppress(RuntimeError):
                self._device.settle()

    def _run(self) -> None:
        while True:
            if self._again:
                task: TileRun | None = self._again.popleft()
            else:
                task = self._host.take(self._number, wait=not self._flying)
            if task is not None:
                self._attempt(task)
            elif not self._flying:
                return
            if self._flying and (task is None or len(self._flying) > _FLYING):
                self._land()

    def warnings(self) -> list[str]:
        """What went otherwise than planned, a line each."""
        lines = []
        for count, what in (
            (self._space.shrunk, "room for inputs that stay there was made smaller"),
            (self._halved, "tiles were made smaller"),
        ):
            if count:
                times = f"{count} time{'s' if count > 1 else ''}"
                lines.append(f"'{self._device.name}' ran out of memory: {what} {times}")
        if self._given_up:
            count = len(self._given_up)
            merges = "1 merge" if count == 1 else f"{count} merges"
            name = next(iter(self._given_up)).name
            lines.append(
                f"'{self._device.name}' could not do {merges}, which the CPU did: '{name}'"
                + (" and others" if count > 1 else "")
            )
        return lines

    # --- one tile -------------------------------------------------------------------------

    def _attempt(self, task: TileRun) -> None:
        placement = task.merge.placement
        if self._stays(task) and self._space.cache.crowded(placement, self._others(task)):
            # Those who take its room are under way, and often about to leave.
            self._land_all()
            self._host.put_back(task)
            return
        chunk = min(placement.chunk, task.tile.grains, self._most or placement.chunk)
        try:
            staying = placement.staying if self._stays(task) else 0
            self._space.reserve(placement.work.profile, chunk, staying, self._land_all)
            self._flying.append(self._launch(task, chunk))
        except Exception as error:
            chunk = self._smaller(chunk, error)
        else:
            return
        # Only here: as long as an error is handled, it keeps the memory from being given back.
        self._retry(task, chunk)

    def _land(self) -> None:
        """Look at the results of the tile that was given first."""
        flight = self._flying.popleft()
        task = flight.task
        try:
            assert flight.arrived is not None
            flight.arrived.wait()
            with self._fetch:
                if flight.accumulator is not None:
                    _statistic(task).fetch(flight.accumulator)
                doubtful = self._device.numbers(flight.doubtful)
        except Exception as error:
            chunk = self._smaller(flight.chunk, error)
        else:
            self._arrived(flight, doubtful)
            return
        del flight
        self._retry(task, chunk)

    def _arrived(self, flight: Flight, doubtful: Sequence[float]) -> None:
        task = flight.task
        self._space.cache.done(task)
        computing = 0.0
        for chunk in flight.timed:
            self.uploaded_bytes += chunk.nbytes
            self.uploading_seconds += _seconds(chunk.arriving)
            computing += _seconds(chunk.computing)

        if flight.accumulator is not None:
            # At once: what the next pass needs of this merge may be all that its inputs wait for.
            self._host.accumulate(task, flight.accumulator)
            self._host.computed(task, computing)
            return

        def finish() -> None:
            _finish(task, doubtful)
            self._host.computed(task, computing)

        self._host.defer(finish)  # to digest takes as long as to give the orders for all this

    def _land_all(self) -> None:
        while self._flying:
            self._land()

    def _others(self, task: TileRun) -> set[MergeRun]:
        """Merges under way but the one of ``task``."""
        return {flight.task.merge for flight in self._flying} - {task.merge}

    def _launch(self, task: TileRun, chunk: int) -> Flight:
        """Give all orders for a tile, ``chunk`` grains at a time."""
        run, tile = task.merge, task.tile
        flight = Flight(task, chunk)
        for merge in run.passes[tile.number].scanned:
            if merge not in task.prefixes:
                self._host.exchange(task, merge, self._prefixes(flight, merge))
        current = run.placement.work.passes[tile.number]
        if current.statistic is None:
            flight.arrived = self._walk(
                flight,
                lambda evaluator, index, outputs: flight.doubtful.append(
                    evaluator.output(index, outputs)
                ),
            )
        else:
            merge, statistic = run.placement.work.merge_of(current), _statistic(task)
            flight.accumulator = into = statistic.init()
            flight.arrived = self._walk(
                flight,
                lambda evaluator, index, _: evaluator.statistic(merge, statistic, into, index),
            )
        return flight

    def _prefixes(self, flight: Flight, merge: Merge) -> list[tuple[int, ...]]:
        """The scan values of a tile's grains: their sums are needed before anything is written."""
        found: list[tuple[Any, ...]] = []
        self._walk(
            flight, lambda evaluator, index, _: found.append(evaluator.scan_value(merge, index))
        ).wait()
        with self._fetch:
            fetched = iter(self._device.numbers([number for own in found for number in own]))
        return [tuple(int(next(fetched)) for _ in own) for own in found]

    def _walk(
        self,
        flight: Flight,
        each: Callable[[TreeEvaluator, int, Sequence[tuple[Write, DeviceSpan]]], None],
    ) -> Mark:
        """Send a tile through the device and call ``each`` for its grains.

        At the mark that is returned everything has happened.
        """
        task = flight.task
        run, work = task.merge, task.merge.placement.work
        ops, last = self._space.ops, Mark()
        assert ops is not None
        cache = self._space.cache
        stay = cache.admit(run) if self._stays(task) else cache.stays.get(run)
        for indices in chunks(_grains(task), flight.chunk, 0 if stay is None else stay.grains):
            self._host.check()
            slot = self._space.next_slot()
            inputs, uploads, outputs, downloads = self._arrange(task, indices, slot.memory, stay)
            if slot.free is not None:
                self._upload.after(slot.free)
            leaving = self._upload.mark()
            for target, source in uploads:
                self._upload.copy(target, source)
            there = self._upload.mark()
            self._compute.after(there)
            with self._compute:
                begun = self._compute.mark()
                evaluator = TreeEvaluator(
                    work.root, work.grains, inputs, ops, run.statistics, task.prefixes
                )
                for index in indices:
                    each(evaluator, index, outputs)
                if indices.stop == task.tile.first + task.tile.grains:
                    ops.bring()
            computed = self._compute.mark()
            nbytes = sum(source.numel() for _, source in uploads)
            flight.timed.append(TimedChunk(nbytes, (leaving, there), (begun, computed)))
            self._download.after(computed)
            for source, target in downloads:
                self._download.copy(target, source)
            slot.free = last = self._download.mark()
        return last

    def _arrange(
        self, task: TileRun, indices: range, memory: Memory, stay: Entry | None
    ) -> tuple[
        dict[Load, DeviceSpan],
        list[tuple[Memory, Memory]],
        list[tuple[Write, DeviceSpan]],
        list[tuple[Memory, Memory]],
    ]:
        """Where the inputs of some grains are, what of them is to be uploaded; where the outputs
        go, what of them is to be downloaded: pairs of bytes on the device and here.

        Grains are all among those that stay, or none of them is.
        """
        grains = task.merge.placement.work.grains
        tile_first, _ = elements(task.tile, task.merge.placement)
        first, count = elements_of(grains, indices)
        staying = stay if stay is not None and indices.stop <= stay.grains else None
        at = 0

        def in_slot(dtype: DType) -> DeviceSpan:
            nonlocal at
            span = DeviceSpan(memory, at, indices.start, grains)
            at += len(indices) * stride(grains, dtype.size)
            return span

        def pieces(
            span: DeviceSpan, dtype: DType, block: Block, start: int
        ) -> Iterator[tuple[Memory, Memory]]:
            self._device.pin(block)
            offset = start + (first - tile_first) * dtype.size
            nbytes = count * dtype.size
            return span.pieces(indices, dtype.size, self._device.here(block, offset, nbytes))

        inputs: dict[Load, DeviceSpan] = {}
        uploads: list[tuple[Memory, Memory]] = []
        for load, (block, start) in task.inputs.items():
            if staying is not None and load in staying.places:
                span = DeviceSpan(self._space.cache.memory, staying.places[load], 0, grains)
                missing = staying.arrives(load, indices)
            else:
                span, missing = in_slot(load.dtype), True
            inputs[load] = span
            if missing:
                uploads += pieces(span, load.dtype, block, start)
        outputs: list[tuple[Write, DeviceSpan]] = []
        downloads: list[tuple[Memory, Memory]] = []
        for write, block, start in task.outputs:
            span = in_slot(write.dtype)
            outputs.append((write, span))
            downloads += pieces(span, write.dtype, block, start)
        return inputs, uploads, outputs, downloads

    # --- memory ---------------------------------------------------------------------------

    def _stays(self, task: TileRun) -> bool:
        """Whether this tile's inputs should be there for later passes too."""
        return (
            task.merge.placement.staying > 0
            and not task.tile.writes  # nothing comes after the last pass
            and task.merge.device == self._number  # nor where the CPU goes on
            and task.merge not in self._space.cache.stays
        )

    def _retry(self, task: TileRun, chunk: int) -> None:
        """Begin ``task`` again with ``chunk`` grains at a time; with 0 the CPU takes it."""
        self._land_all()
        self._space.drop()
        if chunk == 0:
            self._given_up[task.merge.placement.work.root] = None
            self._host.give_up(task)
            return
        self._again.append(task)

    def _smaller(self, chunk: int, error: Exception) -> int:
        """How many grains to try at a time where ``chunk`` ended in ``error``; 0 for none.

        Raises:
            Exception: ``error``, where fewer grains would not help.
        """
        if is_incapable(error):
            return 0
        if not is_out_of_memory(error):
            raise error
        if self._space.shrink():
            return chunk
        if chunk > 1:
            self._halved += 1
            self._most = min(self._most or chunk, chunk // 2)
        return chunk // 2


def _finish(task: TileRun, doubtful: Sequence[float]) -> None:
    """Check and digest what has arrived in the output blocks."""
    run, work = task.merge, task.merge.placement.work
    first, _ = elements(task.tile, run.placement)
    inputs = {load: Span(block, at, first) for load, (block, at) in task.inputs.items()}
    outputs = [(write, Span(block, at, first)) for write, block, at in task.outputs]
    task.faulty.clear()
    for index, doubt in zip(_grains(task), doubtful, strict=True):
        bounds = work.grains.bounds(index)
        if doubt:
            task.faulty.update(check_finite(work.root, bounds, inputs, outputs))
        for write, span in outputs:
            run.digests[write].add(index, span.content(write.dtype, *bounds))


def _statistic(task: TileRun) -> Any:
    work = task.merge.placement.work
    current = work.passes[task.tile.number]
    assert current.statistic is not None
    return work.merge_of(current).kernel.passes[current.statistic]


def _seconds(marks: tuple[Mark, Mark]) -> float:
    return marks[1].seconds_since(marks[0])


def _grains(task: TileRun) -> range:
    return range(task.tile.first, task.tile.first + task.tile.grains)
