"""Runs a schedule: readers, compute workers and writers, coordinated by the ledger.

    dispatcher ─grants blocks─► readers ─► ready tiles ─► workers ─► writers ─► sink
        ▲                                                    │          │
        └──────────────── ledger ◄──── released blocks ──────┴──────────┘

The dispatcher (`engine.run.dispatch`) walks the schedule in order and waits only for memory and
spilled values. Everything else waits for data, which `engine.run.loading` reads. Tiles finish in
any order; `engine.run.state` and `engine.run.ready` impose order where it is needed. CPU workers
are in `engine.run.cpu_worker`; each device has a worker of its own (`engine.run.device_worker`).
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from mergeloom.engine.base.gc_pause import collection_paused
from mergeloom.engine.graph.arithmetic import Arithmetic, Ops
from mergeloom.engine.graph.graph import Load, Merge, OutputFile, Spill, Write
from mergeloom.engine.hardware.accelerators import Accelerator
from mergeloom.engine.memory.ledger import Block, Ledger, LedgerClosed
from mergeloom.engine.plan.schedule import Schedule
from mergeloom.engine.run.cpu_worker import CpuWorker
from mergeloom.engine.run.dispatch import Dispatcher
from mergeloom.engine.run.lanes import Lanes
from mergeloom.engine.run.loading import Loader
from mergeloom.engine.run.progress import Progress
from mergeloom.engine.run.ready import ReadyTiles
from mergeloom.engine.run.state import Bundle, MergeRun, SmallRun, TileRun, elements, sums_before
from mergeloom.engine.storage.source import Reader

if TYPE_CHECKING:
    from mergeloom.engine.run.device import Device

R = TypeVar("R")

_MAX_NAMED = 5
"""Maximum number of inputs named in warnings about non-finite values."""
MIN_READERS = 6
MAX_READERS = 16
WRITERS = 3
FINISHERS = 2
"""Number of threads that digest the results of devices."""


class Writer(Protocol):
    """Writes one output file by position; see `engine.storage.files.FileWriter`."""

    def write(self, start: int, stop: int, block: Block, at: int) -> None: ...


class Sink(Protocol):
    """Receives results; see `engine.output.sink.ShardSink`."""

    def writer(self, file: OutputFile) -> Writer: ...

    def completed(
        self, write: Write, digest: str, block_bytes: int, error: float | None = None
    ) -> None: ...


class _Once(Generic[R]):
    """Calls a function once, in the first thread that needs its result."""

    def __init__(self, function: Callable[[], R]) -> None:
        self._function = function
        self._lock = threading.Lock()
        self._results: list[R] = []

    def __call__(self) -> R:
        with self._lock:
            if not self._results:
                self._results.append(self._function())
            return self._results[0]


class Executor:
    """One run of one schedule.

    ``readers`` maps the `id` of each source to its reader; ``opener`` opens a device. `run` returns
    when everything was passed to the sink, or raises the first failure of any thread after all of
    them have stopped. Then ``warnings`` has deviations from the plan, and ``lanes`` the activity of
    threads.
    """

    def __init__(
        self,
        schedule: Schedule,
        readers: Mapping[int, Reader],
        sink: Sink,
        opener: Callable[[Accelerator], Device] | None = None,
    ) -> None:
        self.progress = Progress()
        self.warnings: list[str] = []
        self.measured: dict[Merge, tuple[Any, ...]] = {}
        """The statistics of merges without writes."""
        self.lanes = Lanes()
        self._opener = opener
        self._arithmetics = {
            arithmetic: _Once(partial(arithmetic.open, operations))
            for arithmetic, operations in schedule.operations.items()
        }
        self._schedule = schedule
        wanted = max((reader.connections for reader in readers.values()), default=MIN_READERS)
        self._requests = min(max(wanted, MIN_READERS), MAX_READERS)
        self._sink = sink
        self._ledger = Ledger(max(schedule.ledger_bytes, 1))
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._ready = ReadyTiles(self._lock, schedule.used_devices)
        self._opened: list[Device] = []
        self._to_write: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._to_finish: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._finishers = FINISHERS if schedule.used_devices else 0
        self._unfinished = len(schedule.merges)
        self._running: set[MergeRun] = set()
        self._spilled = threading.Condition(self._lock)
        self._unspilled = {spill.write for spill in schedule.graph.spills}
        self._loader = Loader(readers, self._ready, self._lock, self.progress)
        self._nonfinite: dict[Load, int] = {}
        """Number of non-finite elements of each input that has some."""
        self._failure: BaseException | None = None
        self._stopping = False

    def run(self, poll: Callable[[Progress], None] | None = None, every: float = 0.1) -> None:
        """Run to the end; ``poll`` is called in this thread every ``every`` seconds.

        Raises:
            RunError: reading, arithmetic or writing failed.
            KeyboardInterrupt: as raised by ``poll`` or a signal; all threads have stopped.
        """
        dispatcher = Dispatcher(
            *(self._schedule, self._ledger, self._loader, self._lock, self._running),
            self._finish_empty,
            self._await_spilled,
        )
        bodies = [dispatcher.run]
        bodies += [lambda: self._serve(self._loader.requests, "reader")] * self._requests
        bodies += [self._compute] * self._schedule.workers
        bodies += [partial(self._run_device, number) for number in self._schedule.used_devices]
        bodies += [lambda: self._serve(self._to_finish, "finisher")] * self._finishers
        bodies += [lambda: self._serve(self._to_write, "writer")] * WRITERS
        threads = [
            threading.Thread(target=self._guarded, args=(body,), daemon=True) for body in bodies
        ]
        for thread in threads:
            thread.start()
        try:
            while not self._finished(every):
                self._measure()
                if poll is not None:
                    poll(self.progress)
        except BaseException as error:
            self._fail(error)
        finally:
            self._stop()
            for thread in threads:
                thread.join()
            for device in self._opened:
                device.close()
            self._ledger.close()
        self._measure()
        if self._failure is not None:
            raise self._failure
        self.warnings += _nonfinite_warnings(self._nonfinite)
        if poll is not None:
            poll(self.progress)

    # --- the run as a whole ---------------------------------------------------------------

    def _finished(self, timeout: float) -> bool:
        with self._lock:
            return self._ended.wait_for(
                lambda: self._unfinished == 0 or self._failure is not None, timeout
            )

    def _measure(self) -> None:
        self.progress.ledger_bytes = self._ledger.granted

    def _guarded(self, body: Callable[[], None]) -> None:
        try:
            body()
        except LedgerClosed:
            pass
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            if self._failure is None:
                self._failure = error
        self._stop()

    def _stop(self) -> None:
        with self._lock:
            if self._stopping:
                return
            self._stopping = True
            scans = [scan for run in self._running for scan in run.scans.values()]
            self._ready.stop()
            self._ended.notify_all()
            self._spilled.notify_all()
        self._ledger.close()
        for scan in scans:
            scan.stop()
        for _ in range(self._requests):
            self._loader.requests.put(None)
        for _ in range(self._finishers):
            self._to_finish.put(None)
        for _ in range(WRITERS):
            self._to_write.put(None)

    def _serve(self, requests: queue.SimpleQueue[Callable[[], None] | None], kind: str) -> None:
        with self.lanes.lane(kind):
            while (request := requests.get()) is not None:
                if self._failure is None:
                    self.lanes.begin()
                    request()
                    self.lanes.rest()

    def _await_spilled(self, spills: Sequence[Spill]) -> None:
        """Wait until spilled values are written.

        Raises:
            LedgerClosed: the run was stopped.
        """
        wanted = {spill.write for spill in spills}
        with self._lock:
            self._spilled.wait_for(lambda: self._stopping or self._unspilled.isdisjoint(wanted))
        self.check()

    # --- workers --------------------------------------------------------------------------

    def _compute(self) -> None:
        block = Block(max(self._schedule.scratch_bytes, 1)) if self._schedule.computes else None
        with contextlib.ExitStack() as stack:
            opened: dict[Arithmetic, Ops] = {}
            for arithmetic, open_once in self._arithmetics.items():
                with collection_paused():  # importing torch takes 1.8 s instead of 2.0 s
                    make = open_once()
                if arithmetic.uses_torch:
                    import torch

                    from mergeloom.engine.run.torch_arrays import use_one_thread

                    use_one_thread()
                    stack.enter_context(torch.inference_mode())
                opened[arithmetic] = make(block)
            stack.enter_context(self.lanes.lane("worker"))
            CpuWorker(self, opened.__getitem__).run()

    def _run_device(self, number: int) -> None:
        from mergeloom.engine.run.device_worker import DeviceWorker
        from mergeloom.engine.run.devices import open_device

        accelerator = self._schedule.devices[number]
        try:
            device = (self._opener or open_device)(accelerator)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            self.warnings.append(f"'{accelerator.name}' cannot be used: {reason}")
            while (task := self.take(number)) is not None:
                self.give_up(task)
            return
        self._opened.append(device)
        make = self._schedule.device_arithmetic.open(frozenset())
        worker = DeviceWorker(device, number, accelerator.memory_bytes, self, make)
        try:
            with self.lanes.lane(accelerator.name):
                worker.run()
        finally:
            self.warnings += worker.warnings()

    def check(self) -> None:
        """Raise `LedgerClosed` if the run was stopped."""
        if self._stopping:
            raise LedgerClosed

    def read(self, load: Load, start: int, stop: int, block: Block, at: int) -> None:
        """Read bytes of a load in the calling thread; see `Loader.read`."""
        self.check()
        self._loader.read(load, start, stop, block, at)

    def take(self, device: int | None, wait: bool = True) -> TileRun | None:
        """The next tile for a device; ``None`` at the end of the run, or if none is ready and
        ``wait`` is false."""
        task = self._take(device, wait)
        assert not isinstance(task, Bundle)  # devices have none
        return task

    def take_any(self) -> TileRun | Bundle | None:
        """The next tile or bundle for the CPU; ``None`` at the end."""
        return self._take(None, True)

    def _take(self, device: int | None, wait: bool) -> TileRun | Bundle | None:
        self.lanes.rest()
        task = self._ready.take(device, wait)
        if task is not None:
            run = task.runs[0] if isinstance(task, Bundle) else task.merge
            with self._lock:
                self.progress.current = run.scheduled.work.name
            self.lanes.begin(run.scheduled.work.name)
        return task

    def put_back(self, task: TileRun) -> None:
        self._ready.put_back(task)

    def give_up(self, task: TileRun) -> None:
        self._ready.give_up(task)

    def computed(self, task: TileRun) -> None:
        """Report that the outputs of a tile are in their blocks, or its statistic in its pass."""
        for block in task.transient:
            self._ledger.release(block)
        if task.nonfinite or task.losses is not None:
            with self._lock:
                task.merge.add(task)
        for write, block, at in task.outputs:
            self._to_write.put(partial(self._write, task, write, block, at))
        self._tile_done(task)

    def defer(self, request: Callable[[], None]) -> None:
        """Run ``request`` in another thread; an exception there ends the run."""
        self._to_finish.put(request)

    def computed_all(self, bundle: Bundle) -> None:
        """Report that all outputs of a bundle are in its block."""
        self._to_write.put(partial(self._write_bundle, bundle))

    def exchange(self, task: TileRun, merge: Merge, own: Sequence[tuple[int, ...]]) -> None:
        """Add the scan values of a tile and store the prefix of each grain in it."""
        run, tile = task.merge, task.tile
        with self._lock:
            scan = run.scan(tile.number, merge)
        total = tuple(map(sum, zip(*own, strict=True)))
        before = scan.exchange(run.scheduled.flow.index(tile.first), total)
        task.prefixes[merge] = dict(enumerate(sums_before(own, before), start=tile.first))

    def accumulate(self, task: TileRun, accumulator: Any) -> None:
        """Add the accumulator of a tile to its pass."""
        current = task.merge.scheduled.work.passes[task.tile.number]
        assert current.statistic is not None
        state = task.merge.passes[task.tile.number]
        with state.combining:  # adding large tables takes time, so not under the main lock
            if state.total is None:
                state.total = accumulator
            else:
                merge = task.merge.scheduled.work.merge_of(current)
                merge.kernel.passes[current.statistic].combine(state.total, accumulator)

    def _tile_done(self, task: TileRun) -> None:
        run, number = task.merge, task.tile.number
        state = run.passes[number]
        with self._lock:
            state.done += 1
            if state.done < state.tiles:
                return
        run.finish_pass(number)
        with self._lock:
            if number + 1 < len(run.passes):
                run.open_pass(number + 1)
                following = run.passes[number + 1]
                waiting, following.waiting = following.waiting, []
                for freed in waiting:
                    self._ready.offer(freed)
                return
        self._release_held(run)
        work = run.scheduled.work
        if not work.writes:
            self.measured[work.root] = tuple(run.statistics[work.root])
            self._merges_done([run])

    def _release_held(self, run: MergeRun) -> None:
        for held in (*run.held.values(), *run.side.values()):
            with self._lock:
                held.users -= 1
                unused = held.users == 0
            if unused:
                self._ledger.release(held.block)

    # --- writers --------------------------------------------------------------------------

    def _write(self, task: TileRun, write: Write, block: Block, at: int) -> None:
        run = task.merge
        first, count = elements(task.tile, run.scheduled)
        start = write.offset + write.dtype.nbytes(first)
        nbytes = write.dtype.nbytes(count)
        self._sink.writer(write.file).write(start, start + nbytes, block, at)
        self._ledger.release(block)
        with self._lock:
            self.progress.write_bytes += nbytes
            run.unwritten[write] -= 1
            complete = run.unwritten[write] == 0
            finished = not any(run.unwritten.values())
        if complete:
            grain = write.dtype.nbytes(run.scheduled.work.grains.size)
            self._sink.completed(write, run.digests[write].hexdigest(), grain, run.error(write))
        if finished:
            self._merges_done([run])

    def _write_bundle(self, bundle: Bundle) -> None:
        for each in bundle.layout.writes:
            self._sink.writer(each.file).write(each.start, each.stop, bundle.block, each.at)
        self._ledger.release(bundle.block)
        for run in bundle.runs:
            work = run.scheduled.work
            for write in work.writes:
                grain = write.dtype.nbytes(work.grains.size)
                digest = run.digests[write].hexdigest()
                self._sink.completed(write, digest, grain, run.error(write))
        with self._lock:
            self.progress.write_bytes += sum(w.stop - w.start for w in bundle.layout.writes)
        self._merges_done(bundle.runs)

    def _finish_empty(self, run: MergeRun) -> None:
        for write in run.scheduled.work.writes:
            self._sink.completed(write, run.digests[write].hexdigest(), 0)
        self._release_held(run)
        self._merges_done([run])

    def _merges_done(self, runs: Sequence[MergeRun | SmallRun]) -> None:
        with self._lock:
            self._running.difference_update(runs)
            for run in runs:
                for load, count in run.nonfinite.items():
                    self._nonfinite[load] = max(count, self._nonfinite.get(load, 0))
            self.progress.merges_done += len(runs)
            self._unfinished -= len(runs)
            if self._unspilled:
                for run in runs:
                    self._unspilled.difference_update(run.scheduled.work.writes)
                self._spilled.notify_all()
            if not self._unfinished:
                self._ended.notify_all()


def _nonfinite_warnings(found: Mapping[Load, int]) -> Iterator[str]:
    """Warnings about inputs with NaN or infinity."""
    for load, count in list(found.items())[:_MAX_NAMED]:
        file = next((part.source.name for part in load.bytes.ranges()), "memory")
        values = "1 value that is" if count == 1 else f"{count:,} values that are"
        yield (
            f"'{load.name}' of '{file}' has {values} NaN or infinite: "
            "the tensors merged from it have them too"
        )
    if len(found) > _MAX_NAMED:
        yield f"and {len(found) - _MAX_NAMED} more inputs have values that are NaN or infinite"
