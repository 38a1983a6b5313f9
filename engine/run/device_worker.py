"""Computes tiles on a device. Only the worker of a device imports this module.

    block ──upload──► slot or store ──compute──► slot ──download──► block ──► writers
                                       (bench)

A tile passes through the device in chunks of a few grains, each in one of the slots of its memory
in turn, so that one chunk arrives while another is computed and a third leaves. Bytes travel as
they are stored; they are widened and rounded on the device. The thread only gives orders: it looks
at a tile's results when it has given those for the next ones.

What several passes of a merge need is uploaded once, where there is room, and stays in the store.

Memory that does not suffice is nothing special. A tile whose orders could not all be given is
given up and begun again: first with a smaller store, so that more is uploaded for each pass, then
in smaller chunks, and when one grain is too much, its merge goes to the CPU. That a tile can be
begun again is easy to see: its inputs stay in their blocks until it is done, what it adds to a
statistic is kept apart until then, and its place in the prefix scan is taken once and remembered
in the tile.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mergeloom.engine.base.dtypes import DType
from mergeloom.engine.base.errors import RunError, is_memory_short
from mergeloom.engine.base.grains import Grains
from mergeloom.engine.graph.graph import Load, Merge, Write
from mergeloom.engine.graph.kernel import Array, DeviceOps
from mergeloom.engine.memory.ledger import Block, Closed
from mergeloom.engine.plan.device_memory import (
    SLOTS,
    bench_bytes,
    outside_bytes,
    slot_bytes,
    stay_bytes,
    stride,
)
from mergeloom.engine.run.device import Device, Mark, Memory, is_incapable, is_out_of_memory
from mergeloom.engine.run.device_cache import DeviceCache, Entry
from mergeloom.engine.run.evaluate import Span, TreeEvaluator, check_finite
from mergeloom.engine.run.state import MergeRun, TileQueue, TileRun, elements

_FLYING = 2
"""Tiles for which all orders are given after a tile before its results are looked at."""


_SHRINKS = 4
"""Parts of a store that was too large, of which the next one is one."""
_LEAST_STORE = 1 << 20


@dataclass(frozen=True, slots=True)
class DeviceSpan:
    """Grains of a tensor on a device: grain ``first`` at byte ``at`` of ``memory``, each at a
    distance of `stride` from the one before."""

    memory: Memory
    at: int
    first: int
    grains: Grains

    def view(self, ops: Any, dtype: DType, start: int, count: int) -> Array:
        """Elements ``[start, start + count)`` of one grain as a flat array."""
        return ops.at(self._bytes(dtype.size, start, count), dtype, count)

    def pieces(self, indices: range, size: int, host: Memory) -> Iterator[tuple[Memory, Memory]]:
        """Bytes of grains ``indices`` here, and their places in ``host``, which holds nothing
        else; elements have ``size`` bytes."""
        grains = self.grains
        dense = stride(grains, size) == grains.size * size
        begin, _ = _elements(grains, indices)
        for run in _chunks(indices, len(indices) if dense else 1, 0):
            start, count = _elements(grains, run)
            at = (start - begin) * size
            yield self._bytes(size, start, count), host[at : at + count * size]

    def _bytes(self, size: int, start: int, count: int) -> Memory:
        index, inside = divmod(start, self.grains.size)
        at = self.at + (index - self.first) * stride(self.grains, size) + inside * size
        return self.memory[at : at + count * size]


class _Sizes(NamedTuple):
    """Bytes on a device: left to torch, of the bench, of one slot."""

    outside: int
    bench: int
    slot: int

    @property
    def total(self) -> int:
        return self.outside + self.bench + SLOTS * self.slot


_NOTHING = _Sizes(0, 0, 0)


@dataclass(slots=True)
class _Slot:
    """Memory of one chunk; ``free`` is when what lies there has left."""

    memory: Memory
    free: Mark | None = None


@dataclass(frozen=True, slots=True)
class _Timed:
    """When ``nbytes`` of one chunk began and ended to arrive, and when its arithmetic did."""

    nbytes: int
    arriving: tuple[Mark, Mark]
    computing: tuple[Mark, Mark]


@dataclass(slots=True)
class _Flight:
    """A tile for which all orders are given, and what is to be looked at when it has arrived."""

    task: TileRun
    chunk: int
    arrived: Mark | None = None
    doubtful: list[Any] = field(default_factory=list)
    accumulator: Any = None
    timed: list[_Timed] = field(default_factory=list)


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
        self._arithmetic = arithmetic
        self._device = device
        self._number = number
        self._memory = memory
        self._host = host
        self._upload, self._compute, self._download, self._fetch = (
            device.queue() for _ in range(4)
        )
        self._slots: list[_Slot] = []
        self._turn = 0
        self._ops: DeviceOps | None = None
        self._store = DeviceCache()
        self._sizes = _NOTHING
        self._storable = memory
        self._most: int | None = None
        self._flying: deque[_Flight] = deque()
        self._again: deque[TileRun] = deque()
        self._shrunk = 0
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
            (self._shrunk, "room for inputs that stay there was made smaller"),
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
        if self._stays(task) and self._store.crowded(placement, self._others(task)):
            # Those who take its room are under way, and often about to leave.
            self._land_all()
            self._host.put_back(task)
            return
        chunk = min(placement.chunk, task.tile.grains, self._most or placement.chunk)
        try:
            self._reserve(task, chunk)
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

    def _arrived(self, flight: _Flight, doubtful: Sequence[float]) -> None:
        task = flight.task
        self._store.done(task)
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

    def _launch(self, task: TileRun, chunk: int) -> _Flight:
        """Give all orders for a tile, ``chunk`` grains at a time."""
        run, tile = task.merge, task.tile
        flight = _Flight(task, chunk)
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

    def _prefixes(self, flight: _Flight, merge: Merge) -> list[tuple[int, ...]]:
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
        flight: _Flight,
        each: Callable[[TreeEvaluator, int, Sequence[tuple[Write, DeviceSpan]]], None],
    ) -> Mark:
        """Send a tile through the device and call ``each`` for its grains.

        At the mark that is returned everything has happened.
        """
        task = flight.task
        run, work = task.merge, task.merge.placement.work
        ops, last = self._ops, Mark()
        assert ops is not None
        stay = self._store.admit(run) if self._stays(task) else self._store.stays.get(run)
        for indices in _chunks(_grains(task), flight.chunk, 0 if stay is None else stay.grains):
            self._host.check()
            slot = self._slots[self._turn]
            self._turn = (self._turn + 1) % SLOTS
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
            flight.timed.append(_Timed(nbytes, (leaving, there), (begun, computed)))
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
        first, count = _elements(grains, indices)
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
                span = DeviceSpan(self._store.memory, staying.places[load], 0, grains)
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
            and task.merge not in self._store.stays
        )

    def _reserve(self, task: TileRun, chunk: int) -> None:
        """See that bench, slots and store are as large as this tile needs them.

        They grow; the store as far as the others and the kernels leave room, to which it gives way.
        """
        placement = task.merge.placement
        profile = placement.work.profile
        needed = _Sizes(outside_bytes(profile), bench_bytes(profile), slot_bytes(profile, chunk))
        sizes = _Sizes(*map(max, zip(self._sizes, needed, strict=True)))
        if sizes.total > self._memory:
            sizes = needed  # what others needed gives way
        store = self._store.size
        if self._stays(task) and (own := stay_bytes(profile, placement.staying)) > store:
            store = SLOTS * own  # while one merge ends, others begin
        store = max(min(store, self._memory - sizes.total, self._storable), 0)
        if sizes == self._sizes and store == self._store.size:
            return
        self._land_all()
        if sizes == self._sizes and self._store.stays:
            return  # a larger store is not worth uploading again what is there
        self._drop()
        scratch = self._device.allocate(sizes.bench)
        with self._compute:
            self._ops = self._arithmetic(scratch, self._device)
        del scratch
        memory = self._device.allocate(SLOTS * sizes.slot)
        self._slots = [_Slot(memory[i * sizes.slot :][: sizes.slot]) for i in range(SLOTS)]
        self._sizes = sizes
        self._allocate_store(store)

    def _allocate_store(self, nbytes: int) -> None:
        """Make a cache of ``nbytes``, or of as many bytes as there are."""
        while nbytes := min(nbytes, self._storable):
            try:
                self._store = DeviceCache(self._device.allocate(nbytes))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._shrink(nbytes)
            else:
                return

    def _shrink(self, nbytes: int) -> None:
        """Have no store any more that is nearly as large as ``nbytes``, for that was too much."""
        self._shrunk += 1
        smaller = nbytes // _SHRINKS
        self._storable = smaller if smaller >= _LEAST_STORE else 0

    def _drop(self) -> None:
        self._device.settle()
        self._sizes = _NOTHING
        self._ops = None
        self._slots = []
        self._store = DeviceCache()
        self._device.reclaim()

    def _retry(self, task: TileRun, chunk: int) -> None:
        """Begin ``task`` again with ``chunk`` grains at a time; with 0 the CPU takes it."""
        self._land_all()
        self._drop()
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
        if self._store.size:
            self._shrink(self._store.size)
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


def _elements(grains: Grains, indices: range) -> tuple[int, int]:
    """First element of a run of grains, and number of elements."""
    first, _ = grains.bounds(indices.start)
    return first, min(len(indices) * grains.size, grains.total - first)


def _chunks(grains: range, length: int, edge: int) -> Iterator[range]:
    """Runs of at most ``length``; none of them has ``edge`` inside."""
    first = grains.start
    while first < grains.stop:
        last = grains.stop if first >= edge else min(edge, grains.stop)
        following = min(first + length, last)
        yield range(first, following)
        first = following
