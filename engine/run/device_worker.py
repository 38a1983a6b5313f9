"""Computes tiles on a device. Only device workers import this.

    block ──upload──► slot or cache ──compute──► slot ──download──► block ──► writers
                                      (scratch)

A tile is processed in chunks of a few grains. Chunks use the slots of device memory in turn, so
that one chunk is uploaded while another is computed and a third is downloaded. Elements are
transferred in their stored dtype, and widened and rounded on the device. The thread only queues
work: it checks the results of a tile after queueing the next ones.

Inputs needed by several passes of a merge are uploaded once, if they fit, and stay in the cache.

Running out of memory is handled. A tile that could not be queued completely is restarted: first
with a smaller cache, so that more is uploaded for each pass, then with smaller chunks; if one
grain does not fit, its merge goes to the CPU. Restarting is safe: the inputs of a tile stay in
their blocks until it is done, its contribution to a statistic is separate until then, and its
position in the prefix scan is stored in the tile.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mergeloom.engine.base.dtypes import DType
from mergeloom.engine.base.errors import RunError, is_memory_short
from mergeloom.engine.graph.graph import Load, Merge, Write
from mergeloom.engine.memory.ledger import Block, LedgerClosed
from mergeloom.engine.plan.device_memory import stride
from mergeloom.engine.run.device import Device, Mark, Memory, is_incapable, is_out_of_memory
from mergeloom.engine.run.device_cache import Entry
from mergeloom.engine.run.device_span import DeviceSpan, chunks, elements_of
from mergeloom.engine.run.device_workspace import DeviceWorkspace
from mergeloom.engine.run.evaluate import Span, TreeEvaluator, check_finite
from mergeloom.engine.run.state import MergeRun, TileQueue, TileRun, elements
from mergeloom.engine.run.tile_in_flight import TileInFlight

_TILES_AHEAD = 2
"""Number of later tiles that are queued before the results of a tile are checked."""


class DeviceWorker:
    """The worker of device ``number`` of the schedule, which may use ``memory`` bytes of it.
    ``arithmetic`` creates the operations from scratch memory.
    """

    def __init__(
        self,
        device: Device,
        number: int,
        memory: int,
        tiles: TileQueue,
        arithmetic: Callable[..., Any],
    ) -> None:
        self._device = device
        self._number = number
        self._tiles = tiles
        self._upload, self._compute, self._download, self._fetch = (
            device.queue() for _ in range(4)
        )
        self._workspace = DeviceWorkspace(device, memory, arithmetic, self._compute)
        self._max_chunk: int | None = None
        self._in_flight: deque[TileInFlight] = deque()
        self._to_retry: deque[TileRun] = deque()
        self._halved = 0
        self._given_to_cpu: dict[Merge, None] = {}

    def run(self) -> None:
        """Compute tiles until the end of the run.

        Raises:
            LedgerClosed: the run was stopped.
            RunError: the device failed for a reason other than lack of memory.
        """
        try:
            with self._device.thread_context():
                self._run()
        except (LedgerClosed, RunError):
            raise
        except Exception as error:
            if is_memory_short(error):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise RunError(
                f"'{self._device.name}' failed: {reason}; finished tensors are kept",
                remedy="the same command continues, with --device cpu without this device",
            ) from error
        finally:
            # Blocks must not be released while a copy uses them. A failed device raises again,
            # and no longer copies.
            with contextlib.suppress(RuntimeError):
                self._device.synchronize()

    def _run(self) -> None:
        while True:
            if self._to_retry:
                task: TileRun | None = self._to_retry.popleft()
            else:
                task = self._tiles.take(self._number, wait=not self._in_flight)
            if task is not None:
                self._attempt(task)
            elif not self._in_flight:
                return
            if self._in_flight and (task is None or len(self._in_flight) > _TILES_AHEAD):
                self._finish_oldest()

    def warnings(self) -> list[str]:
        """Deviations from the plan, one line each."""
        lines = []
        for count, what in (
            (self._workspace.times_shrunk, "its cache of inputs was reduced"),
            (self._halved, "tiles were reduced"),
        ):
            if count:
                times = f"{count} time{'s' if count > 1 else ''}"
                lines.append(f"'{self._device.name}' ran out of memory: {what} {times}")
        if self._given_to_cpu:
            count = len(self._given_to_cpu)
            merges = "1 merge" if count == 1 else f"{count} merges"
            name = next(iter(self._given_to_cpu)).name
            lines.append(
                f"'{self._device.name}' could not run {merges}, which the CPU ran: '{name}'"
                + (" and others" if count > 1 else "")
            )
        return lines

    # --- one tile -------------------------------------------------------------------------

    def _attempt(self, task: TileRun) -> None:
        scheduled = task.merge.scheduled
        if self._should_cache(task) and self._workspace.cache.is_crowded(
            scheduled, self._other_merges(task)
        ):
            # The merges that use the space are in flight, and may be almost done.
            self._finish_all()
            self._tiles.put_back(task)
            return
        chunk = min(scheduled.chunk, task.tile.grains, self._max_chunk or scheduled.chunk)
        try:
            cached = scheduled.cached_grains if self._should_cache(task) else 0
            self._workspace.reserve(scheduled.work.merge_shape, chunk, cached, self._finish_all)
            self._in_flight.append(self._launch(task, chunk))
        except Exception as error:
            chunk = self._smaller(chunk, error)
        else:
            return
        # Only here: while an exception is handled, its traceback keeps the memory alive.
        self._retry(task, chunk)

    def _finish_oldest(self) -> None:
        """Check the results of the oldest tile in flight."""
        flight = self._in_flight.popleft()
        task = flight.task
        try:
            assert flight.arrived is not None
            flight.arrived.wait()
            with self._fetch:
                if flight.accumulator is not None:
                    _statistic(task).fetch(flight.accumulator)
                nonfinite_flags = self._device.numbers(flight.nonfinite_flags)
        except Exception as error:
            chunk = self._smaller(flight.chunk, error)
        else:
            self._results_arrived(flight, nonfinite_flags)
            return
        del flight
        self._retry(task, chunk)

    def _results_arrived(self, flight: TileInFlight, nonfinite_flags: Sequence[float]) -> None:
        task = flight.task
        self._workspace.cache.tile_done(task)
        if flight.accumulator is not None:
            # At once: the next pass of this merge may wait for nothing else.
            self._tiles.accumulate(task, flight.accumulator)
            self._tiles.computed(task)
            return

        def finish() -> None:
            _finish(task, nonfinite_flags)
            self._tiles.computed(task)

        self._tiles.defer(finish)  # digesting takes as long as queueing all work of the tile

    def _finish_all(self) -> None:
        while self._in_flight:
            self._finish_oldest()

    def _other_merges(self, task: TileRun) -> set[MergeRun]:
        """Merges in flight other than that of ``task``."""
        return {flight.task.merge for flight in self._in_flight} - {task.merge}

    def _launch(self, task: TileRun, chunk: int) -> TileInFlight:
        """Queue all work of a tile, ``chunk`` grains at a time."""
        run, tile = task.merge, task.tile
        flight = TileInFlight(task, chunk)
        for merge in run.passes[tile.number].scanning:
            if merge not in task.prefixes:
                self._tiles.exchange(task, merge, self._prefixes(flight, merge))
        current = run.scheduled.work.passes[tile.number]
        if current.statistic is None:
            flight.arrived = self._process(
                flight,
                lambda evaluator, index, outputs: flight.nonfinite_flags.append(
                    evaluator.compute_output(index, outputs)
                ),
            )
        else:
            merge, statistic = run.scheduled.work.merge_of(current), _statistic(task)
            flight.accumulator = into = statistic.init()
            flight.arrived = self._process(
                flight,
                lambda evaluator, index, _: evaluator.update_statistic(
                    merge, statistic, into, index
                ),
            )
        return flight

    def _prefixes(self, flight: TileInFlight, merge: Merge) -> list[tuple[int, ...]]:
        """The scan values of a tile's grains; their sums are needed before the output pass."""
        found: list[tuple[Any, ...]] = []
        self._process(
            flight, lambda evaluator, index, _: found.append(evaluator.scan_value(merge, index))
        ).wait()
        with self._fetch:
            fetched = iter(self._device.numbers([number for own in found for number in own]))
        return [tuple(int(next(fetched)) for _ in own) for own in found]

    def _process(
        self,
        flight: TileInFlight,
        each: Callable[[TreeEvaluator, int, Sequence[tuple[Write, DeviceSpan]]], None],
    ) -> Mark:
        """Upload, process and download a tile, calling ``each`` for its grains.

        The returned mark is reached when everything is done.
        """
        task = flight.task
        run, work = task.merge, task.merge.scheduled.work
        ops, last = self._workspace.ops, Mark()
        assert ops is not None
        cache = self._workspace.cache
        entry = cache.admit(run) if self._should_cache(task) else cache.entries.get(run)
        for indices in chunks(
            task.tile.indices, flight.chunk, 0 if entry is None else entry.grains
        ):
            self._tiles.check()
            slot = self._workspace.next_slot()
            inputs, uploads, outputs, downloads = self._arrange(task, indices, slot.memory, entry)
            if slot.free is not None:
                self._upload.wait_for(slot.free)
            for target, source in uploads:
                self._upload.copy(target, source)
            self._compute.wait_for(self._upload.mark())
            with self._compute:
                evaluator = TreeEvaluator(
                    work.root, work.grains, inputs, ops, run.statistics, task.prefixes
                )
                for index in indices:
                    each(evaluator, index, outputs)
                ops.flush()
                if indices.stop == task.tile.indices.stop:
                    ops.bring()
            self._download.wait_for(self._compute.mark())
            for source, target in downloads:
                self._download.copy(target, source)
            slot.free = last = self._download.mark()
        return last

    def _arrange(
        self, task: TileRun, indices: range, memory: Memory, entry: Entry | None
    ) -> tuple[
        dict[Load, DeviceSpan],
        list[tuple[Memory, Memory]],
        list[tuple[Write, DeviceSpan]],
        list[tuple[Memory, Memory]],
    ]:
        """The positions of the inputs of some grains and their uploads, and the positions of the
        outputs and their downloads. Transfers are pairs of bytes: on the device, in main memory.

        Either all of these grains are cached, or none.
        """
        grains = task.merge.scheduled.work.grains
        tile_first, _ = elements(task.tile, task.merge.scheduled)
        first, count = elements_of(grains, indices)
        cached = entry if entry is not None and indices.stop <= entry.grains else None
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
            return span.pieces(indices, dtype.size, self._device.main_memory(block, offset, nbytes))

        inputs: dict[Load, DeviceSpan] = {}
        uploads: list[tuple[Memory, Memory]] = []
        for load, (block, start) in task.inputs.items():
            if cached is not None and load in cached.offsets:
                span = DeviceSpan(self._workspace.cache.memory, cached.offsets[load], 0, grains)
                missing = cached.add_grains(load, indices)
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

    def _should_cache(self, task: TileRun) -> bool:
        """Whether to cache the inputs of this tile for later passes."""
        return (
            task.merge.scheduled.cached_grains > 0
            and not task.tile.writes  # no pass follows the last one
            and task.merge.device == self._number  # the CPU has not taken over
            and task.merge not in self._workspace.cache.entries
        )

    def _retry(self, task: TileRun, chunk: int) -> None:
        """Restart ``task`` with ``chunk`` grains at a time; 0 gives it to the CPU."""
        self._finish_all()
        self._workspace.drop()
        if chunk == 0:
            self._given_to_cpu[task.merge.scheduled.work.root] = None
            self._tiles.give_up(task)
            return
        self._to_retry.append(task)

    def _smaller(self, chunk: int, error: Exception) -> int:
        """The number of grains to try next after ``error`` with ``chunk`` grains; 0 for none.

        Raises:
            Exception: ``error``, if fewer grains would not help.
        """
        if is_incapable(error):
            return 0
        if not is_out_of_memory(error):
            raise error
        if self._workspace.shrink():
            return chunk
        if chunk > 1:
            self._halved += 1
            self._max_chunk = min(self._max_chunk or chunk, chunk // 2)
        return chunk // 2


def _finish(task: TileRun, nonfinite_flags: Sequence[float]) -> None:
    """Check and digest the downloaded output blocks."""
    run, work = task.merge, task.merge.scheduled.work
    first, _ = elements(task.tile, run.scheduled)
    inputs = {load: Span(block, at, first) for load, (block, at) in task.inputs.items()}
    outputs = [(write, Span(block, at, first)) for write, block, at in task.outputs]
    task.nonfinite.clear()
    for index, flag in zip(task.tile.indices, nonfinite_flags, strict=True):
        bounds = work.grains.bounds(index)
        if flag:
            task.nonfinite.update(check_finite(work.root, bounds, inputs, outputs))
        for write, span in outputs:
            run.digests[write].add(index, span.content(write.dtype, *bounds))


def _statistic(task: TileRun) -> Any:
    work = task.merge.scheduled.work
    current = work.passes[task.tile.number]
    assert current.statistic is not None
    return work.merge_of(current).kernel.passes[current.statistic]


def _grains(task: TileRun) -> range:
    return range(task.tile.first, task.tile.first + task.tile.grains)
