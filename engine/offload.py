"""Computes tiles on a device. Only the worker of a device imports this module.

    block ──upload──► slot ──compute──► slot ──download──► block ──► writers
                          (bench)

A tile passes through the device in chunks of a few grains, each in one of the slots of its memory
in turn, so that one chunk arrives while another is computed and a third leaves. Bytes travel as
they are stored; they are widened and rounded on the device. The thread only gives orders: it looks
at a tile's results when it has given those for the next ones.

Memory that does not suffice is nothing special. A tile whose orders could not all be given is
given up and begun again in smaller chunks, and when one grain is too much, its merge goes to the
CPU. That a tile can be begun again is easy to see: its inputs stay in their blocks until it is
done, what it adds to a statistic is kept apart until then, and its place in the chain of tallies
is taken once and noted in the tile.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.arithmetic import Bench, Span, TreeEvaluator, check_finite
from engine.device import Device, Mark, is_incapable, is_out_of_memory
from engine.dtypes import DType
from engine.errors import RunError, is_memory_short
from engine.graph import Load, Merge, Write
from engine.ledger import Block, Closed
from engine.placement import SLOTS, bench_bytes, slot_bytes
from engine.running import TileRun, elements

_ALIGNED = 256
_FLYING = 2
"""Tiles for which all orders are given before the results of the first are looked at."""


class Host(Protocol):
    """What the worker of a device asks of the executor; see `engine.executor.Executor`."""

    def check(self) -> None: ...

    def take(self, device: int | None, wait: bool) -> TileRun | None: ...

    def exchange(self, task: TileRun, merge: Merge, own: Sequence[tuple[int, ...]]) -> None: ...

    def accumulate(self, task: TileRun, accumulator: Any) -> None: ...

    def computed(self, task: TileRun, seconds: float) -> None: ...

    def give_up(self, task: TileRun) -> None: ...


@dataclass(frozen=True, slots=True)
class DeviceSpan:
    """Elements of a tensor on a device: element ``first`` at byte ``at`` of ``memory``."""

    memory: Tensor
    at: int
    first: int

    def view(self, dtype: DType, start: int, count: int) -> Tensor:
        """Elements ``[start, start + count)`` as a flat tensor."""
        offset = self.at + (start - self.first) * dtype.size
        return self.memory[offset : offset + count * dtype.size].view(dtype.torch)


@dataclass(slots=True)
class _Slot:
    """Memory of one chunk; ``free`` is when what lies there has left."""

    memory: Tensor
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
    squares: list[Tensor] = field(default_factory=list)
    accumulator: Any = None
    timed: list[_Timed] = field(default_factory=list)


class Offload:
    """The worker of one device, which is number ``number`` of the schedule.

    Of finished tiles, ``uploaded_bytes`` took ``uploading_seconds`` (NaN: it does not tell).
    """

    def __init__(self, device: Device, number: int, host: Host) -> None:
        self._device = device
        self._number = number
        self._host = host
        self._upload, self._compute, self._download, self._fetch = (
            device.queue() for _ in range(4)
        )
        self._slots: list[_Slot] = []
        self._turn = 0
        self._bench: Bench | None = None
        self._reserved = (0, 0)
        self._most: int | None = None
        self._flying: deque[_Flight] = deque()
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
            with torch.inference_mode():
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
            # Nobody may release a block that a copy still reaches into. A broken device says so
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
        if self._halved:
            smaller = f"{self._halved} time{'s' if self._halved > 1 else ''}"
            lines.append(
                f"'{self._device.name}' ran out of memory: tiles were made smaller {smaller}"
            )
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
        chunk = min(placement.chunk, task.tile.grains, self._most or placement.chunk)
        try:
            self._reserve(task, chunk)
            self._flying.append(self._launch(task, chunk))
        except Exception as error:
            chunk = _smaller(chunk, error)
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
                squares = torch.stack(flight.squares).tolist() if flight.squares else []
        except Exception as error:
            chunk = _smaller(flight.chunk, error)
        else:
            self._arrived(flight, squares)
            return
        del flight
        self._retry(task, chunk)

    def _arrived(self, flight: _Flight, squares: Sequence[float]) -> None:
        task = flight.task
        if squares:
            self._finish(task, squares)
        if flight.accumulator is not None:
            self._host.accumulate(task, flight.accumulator)
        computing = 0.0
        for chunk in flight.timed:
            self.uploaded_bytes += chunk.nbytes
            self.uploading_seconds += _seconds(chunk.arriving)
            computing += _seconds(chunk.computing)
        self._host.computed(task, computing)

    def _finish(self, task: TileRun, squares: Sequence[float]) -> None:
        """Check and digest what has arrived in the output blocks."""
        run, work = task.merge, task.merge.placement.work
        first, _ = elements(task.tile, run.placement)
        inputs = {load: Span(block, at, first) for load, (block, at) in task.inputs.items()}
        outputs = [(write, Span(block, at, first)) for write, block, at in task.outputs]
        for index, square in zip(_grains(task), squares, strict=True):
            bounds = work.grains.bounds(index)
            check_finite(work.root, bounds, square, inputs, outputs)
            for write, span in outputs:
                run.digests[write].add(index, span.content(write.dtype, *bounds))

    def _launch(self, task: TileRun, chunk: int) -> _Flight:
        """Give all orders for a tile, ``chunk`` grains at a time."""
        run, tile = task.merge, task.tile
        flight = _Flight(task, chunk)
        for merge in run.passes[tile.number].tallied:
            if merge not in task.tallies:
                self._host.exchange(task, merge, self._tallies(flight, merge))
        current = run.placement.work.passes[tile.number]
        if current.statistic is None:
            flight.arrived = self._walk(
                flight,
                lambda evaluator, index, outputs: flight.squares.append(
                    evaluator.output(index, outputs)
                ),
            )
        else:
            number, into = current.statistic, _statistic(task).start()
            flight.accumulator = into
            flight.arrived = self._walk(
                flight,
                lambda evaluator, index, _: evaluator.statistic(current.merge, number, into, index),
            )
        return flight

    def _tallies(self, flight: _Flight, merge: Merge) -> list[tuple[int, ...]]:
        """The tallies of a tile's grains: their sums are needed before anything is written."""
        found: list[tuple[int | Tensor, ...]] = []
        self._walk(
            flight, lambda evaluator, index, _: found.append(evaluator.tally(merge, index))
        ).wait()
        with self._fetch:
            numbers = [number for own in found for number in own if isinstance(number, Tensor)]
            fetched = iter(torch.stack(numbers).tolist() if numbers else [])
        return [
            tuple(int(next(fetched)) if isinstance(n, Tensor) else n for n in own) for own in found
        ]

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
        bench, last = self._bench, Mark()
        assert bench is not None
        for indices in _chunks(_grains(task), flight.chunk):
            self._host.check()
            slot = self._slots[self._turn]
            self._turn = (self._turn + 1) % SLOTS
            inputs, outputs, written = self._arrange(task, indices, slot.memory)
            if slot.free is not None:
                self._upload.after(slot.free)
            leaving = self._upload.mark()
            for span, host in inputs.values():
                self._upload.copy(_bytes(span, host.numel()), host)
            there = self._upload.mark()
            self._compute.after(there)
            with self._compute:
                begun = self._compute.mark()
                evaluator = TreeEvaluator(
                    work.root,
                    work.grains,
                    {load: span for load, (span, _) in inputs.items()},
                    bench,
                    run.statistics,
                    task.tallies,
                )
                for index in indices:
                    each(evaluator, index, written)
            computed = self._compute.mark()
            nbytes = sum(host.numel() for _, host in inputs.values())
            flight.timed.append(_Timed(nbytes, (leaving, there), (begun, computed)))
            self._download.after(computed)
            for span, host in outputs:
                self._download.copy(host, _bytes(span, host.numel()))
            slot.free = last = self._download.mark()
        return last

    def _arrange(
        self, task: TileRun, indices: range, memory: Tensor
    ) -> tuple[
        dict[Load, tuple[DeviceSpan, Tensor]],
        list[tuple[DeviceSpan, Tensor]],
        list[tuple[Write, DeviceSpan]],
    ]:
        """Where the inputs and outputs of some grains go in a slot, beside their bytes here."""
        grains = task.merge.placement.work.grains
        tile_first, _ = elements(task.tile, task.merge.placement)
        first = indices.start * grains.size
        count = min(len(indices) * grains.size, grains.total - first)
        at = 0

        def place(dtype: DType, block: Block, start: int) -> tuple[DeviceSpan, Tensor]:
            nonlocal at
            self._device.pin(block)
            span, nbytes = DeviceSpan(memory, at, first), count * dtype.size
            at += -(-nbytes // _ALIGNED) * _ALIGNED
            offset = start + (first - tile_first) * dtype.size
            return span, torch.frombuffer(
                block.memory, dtype=torch.uint8, count=nbytes, offset=offset
            )

        inputs = {
            load: place(load.dtype, block, start) for load, (block, start) in task.inputs.items()
        }
        outputs = [place(write.dtype, block, start) for write, block, start in task.outputs]
        writes = [write for write, _, _ in task.outputs]
        there = [(write, span) for write, (span, _) in zip(writes, outputs, strict=True)]
        return inputs, outputs, there

    # --- memory ---------------------------------------------------------------------------

    def _reserve(self, task: TileRun, chunk: int) -> None:
        """See that bench and slots are as large as this tile needs them; they only grow."""
        profile = task.merge.placement.work.profile
        needed = (bench_bytes(profile), slot_bytes(profile, chunk))
        if all(there >= wanted for there, wanted in zip(self._reserved, needed, strict=True)):
            return
        while self._flying:
            self._land()
        bench, slot = map(max, zip(self._reserved, needed, strict=True))
        self._drop()
        self._bench = Bench(self._device.allocate(bench).view(torch.float32), on_device=True)
        memory = self._device.allocate(SLOTS * slot)
        self._slots = [_Slot(memory[i * slot : (i + 1) * slot]) for i in range(SLOTS)]
        self._reserved = (bench, slot)

    def _drop(self) -> None:
        self._device.settle()
        self._reserved = (0, 0)
        self._bench = None
        self._slots = []
        self._device.reclaim()

    def _retry(self, task: TileRun, chunk: int) -> None:
        """Begin ``task`` again with so many grains at a time; with none, let the CPU have it."""
        while self._flying:
            self._land()
        self._drop()
        if chunk == 0:
            self._given_up[task.merge.placement.work.root] = None
            self._host.give_up(task)
            return
        self._halved += 1
        self._most = min(self._most or chunk, chunk)
        self._again.append(task)


def _smaller(chunk: int, error: Exception) -> int:
    """How many grains to try at a time where ``chunk`` ended in ``error``; 0 for none.

    Raises:
        Exception: ``error``, where fewer grains would not help.
    """
    if is_incapable(error):
        return 0
    if is_out_of_memory(error):
        return chunk // 2
    raise error


def _statistic(task: TileRun) -> Any:
    current = task.merge.placement.work.passes[task.tile.number]
    assert current.statistic is not None
    return current.merge.kernel.passes[current.statistic]


def _seconds(marks: tuple[Mark, Mark]) -> float:
    return marks[1].seconds_since(marks[0])


def _grains(task: TileRun) -> range:
    return range(task.tile.first, task.tile.first + task.tile.grains)


def _chunks(grains: range, length: int) -> Iterator[range]:
    for first in range(grains.start, grains.stop, length):
        yield range(first, min(first + length, grains.stop))


def _bytes(span: DeviceSpan, nbytes: int) -> Tensor:
    return span.memory[span.at : span.at + nbytes]
