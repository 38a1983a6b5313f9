"""Run one job: open or resume the output, schedule, run, finish."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mergeloom.engine.base.errors import OutputError, is_memory_short, memory_short
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.arithmetic import Arithmetic
from mergeloom.engine.graph.graph import Graph, Spill, Write
from mergeloom.engine.hardware import process as machine
from mergeloom.engine.hardware.accelerators import Accelerator
from mergeloom.engine.hardware.spec import Machine
from mergeloom.engine.output.directory import OutputDirectory
from mergeloom.engine.output.journal import FinishedTensor, Totals
from mergeloom.engine.output.manifest import Manifest
from mergeloom.engine.output.side_files import SideFile
from mergeloom.engine.output.sink import COMMIT_SECONDS, ShardSink
from mergeloom.engine.output.state import (
    describe_differences,
    differences,
    missing_files,
    only_times_differ,
)
from mergeloom.engine.output.verify_output import recorded_faults
from mergeloom.engine.plan.duration import estimated_seconds
from mergeloom.engine.plan.schedule import Schedule, schedule
from mergeloom.engine.run.building import build_missing
from mergeloom.engine.run.clone import (
    Clone,
    CloneBytes,
    make_clone,
    possible_clones,
    supported_clones,
    writes_of,
)
from mergeloom.engine.run.compare import ComparingSink
from mergeloom.engine.run.executor import Executor
from mergeloom.engine.run.loading import source_readers
from mergeloom.engine.run.outcome import Outcome, measured, outcome_of, predicted
from mergeloom.engine.run.progress import Progress
from mergeloom.engine.run.spilling import spill_files
from mergeloom.engine.storage.file_system import FILES, Files
from mergeloom.engine.storage.files import FileReader
from mergeloom.engine.storage.source import IOMode, Reader, ReadOptions, Source

if TYPE_CHECKING:
    from mergeloom.engine.run.device import Device


S = TypeVar("S", ShardSink, ComparingSink)


@dataclass(frozen=True)
class Job:
    """The tasks and side files to produce, and everything that the result depends on.

    ``identity`` lists the contents of the fingerprint by name, so that messages can say how the
    output of another job differs. ``about`` is written to the manifest. ``arithmetic`` computes on
    the CPU; ``torch`` computes on other devices, and for kernels that list no operations.
    """

    graph: Graph
    fingerprint: str
    identity: Mapping[str, str]
    arithmetic: Arithmetic
    torch: Arithmetic
    side_files: Sequence[SideFile] = ()
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Options:
    """How to run a job. No option changes the output.

    ``ram`` is the memory budget in bytes. ``machine`` is the machine to schedule for, by default
    the current one; a dry run passes its own, so that both have the same schedule. Finished tensors
    are made durable after at most ``commit_seconds``. ``verify_resumed`` checks the digests of
    tensors left by an interrupted run, ``verify_finished`` those of a finished run. ``files`` is
    the file system; ``opener`` replaces the function that opens devices. ``planned`` is the
    schedule of the whole graph for ``ram`` and ``machine``, if it exists already.
    """

    ram: int | None = None
    machine: Machine | None = None
    io: IOMode = IOMode.AUTO
    restart: bool = False
    verify_resumed: bool = True
    verify_finished: bool = False
    commit_seconds: float = COMMIT_SECONDS
    files: Files = FILES
    opener: Callable[[Accelerator], Device] | None = None
    planned: Schedule | None = None

    @property
    def read_options(self) -> ReadOptions:
        """How sources are read."""
        return ReadOptions(self.io, self.files)


@dataclass(frozen=True, slots=True)
class Begun:
    """Passed to the observer when the schedule is complete and the run begins."""

    schedule: Schedule
    resumed: int


def run(
    job: Job,
    output: Path,
    options: Options,
    begun: Callable[[Begun], None] | None = None,
    poll: Callable[[Progress], None] | None = None,
    building: Callable[[frozenset[str]], None] | None = None,
) -> Outcome:
    """Run ``job`` into the directory ``output``, or resume an interrupted run of the same job.

    ``building`` is called with the operations whose machine code is compiled first, which takes
    seconds.

    Raises:
        BudgetError: the memory budget is too small.
        OutputError: the directory was not written by this program, or belongs to another job.
        RunError: the directory is in use or its disk too small; or reading, arithmetic or writing
            failed: what was merged is kept.
        KeyboardInterrupt: interrupted; what was merged is kept.
    """
    began = time.perf_counter()
    counters = machine.storage_traffic()
    machine.bound_heap()
    target = options.machine or machine.this_machine(job.arithmetic, job.torch)
    planned = options.planned
    if planned is None or planned.graph is not job.graph:
        planned = schedule(job.graph, options.ram, target)  # checks the budget first
    with _memory_reported(), OutputDirectory(output, options.files) as directory:
        if options.restart:
            directory.clear()
        warnings: list[str] = []
        run = _Run(
            job, options, target, planned, poll, begun, building, warnings, [], began, counters
        )
        manifest = directory.finished()
        if manifest is not None and _is_complete(manifest, directory, run):
            outcome = run.outcome(None, None, resumed=len(job.graph.writes))
            return replace(outcome, errors=manifest.errors)
        done = _resumed(directory, run, repairs=manifest is not None)
        return _write_rest(run, directory, done)


def _write_rest(
    run: _Run, directory: OutputDirectory, done: Mapping[Write, FinishedTensor]
) -> Outcome:
    """Write everything that is not ``done``, and finish the output."""
    job, options = run.job, run.options
    rest = job.graph.without(done)
    clones = run.clones(rest, directory)
    computed = rest.without(writes_of(clones))
    clone_bytes = CloneBytes.of(clones, computed)
    needed = replace(job.graph, spills=computed.spills)
    directory.check_space(needed, job.side_files, clone_bytes.cloned)
    plan = run.schedule(computed, len(done))
    torch_alone = [arithmetic.uses_torch for arithmetic in plan.operations] == [True]
    importing = torch_alone and not machine.is_torch_loaded() and not plan.used_devices
    bytes_before = machine.resident_bytes() if importing else None

    def sink_of(check: Callable[[], None]) -> ShardSink:
        return ShardSink(
            directory,
            job.graph,
            done,
            job.fingerprint,
            job.identity,
            options.io,
            job.side_files,
            check,
            options.commit_seconds,
            {write: origin for clone in clones for write, origin in clone.origins.items()},
        )

    with run.executor(plan, sink_of, directory.records, clones) as (executor, sink):
        try:
            executor.run(_trimming(run.poll, plan.peak_bytes))
        except BaseException:
            with contextlib.suppress(Exception):
                sink.close()
            raise
        sink.close()
    if bytes_before is not None:
        machine.remember_runtime_bytes(machine.resident_bytes() - bytes_before)
    run.warnings.extend(executor.warnings)
    outcome = run.outcome(plan, executor.progress, len(done))
    outcome = replace(
        outcome,
        read_bytes=outcome.read_bytes + clone_bytes.read,
        write_bytes=outcome.write_bytes + clone_bytes.written,
        clones=clone_bytes,
        lanes=executor.lanes.recorded(),
    )
    if not done and not clones:
        machine.remember_ratio(outcome.wall_seconds, estimated_seconds(plan).total)
    record = {**job.about, "measured": measured(outcome), "predicted": predicted(outcome)}
    return replace(outcome, errors=sink.finish(record).errors)


@dataclass(frozen=True)
class _Run:
    """State shared by the parts of one run; ``planned`` is the schedule of the whole graph,
    ``peaks`` the predicted peak memory of each part in bytes.

    ``began`` and ``counters`` are the time and the kernel's I/O counters at its beginning.
    """

    job: Job
    options: Options
    machine: Machine
    planned: Schedule
    poll: Callable[[Progress], None] | None
    begun: Callable[[Begun], None] | None
    building: Callable[[frozenset[str]], None] | None
    warnings: list[str]
    peaks: list[int]
    began: float
    counters: tuple[int, int] | None

    def outcome(self, plan: Schedule | None, progress: Progress | None, resumed: int) -> Outcome:
        """The outcome so far; see `outcome_of`."""
        warnings = tuple(self.warnings)
        found = outcome_of(plan, progress, self.began, self.counters, resumed, warnings)
        return replace(found, predicted_peak_bytes=max(self.peaks, default=0))

    def schedule(self, graph: Graph, resumed: int) -> Schedule:
        """Schedule a graph, compile the missing machine code, and call ``begun``."""
        plan = self.planned
        if graph is not plan.graph:
            plan = schedule(graph, self.options.ram, self.machine)
        self.peaks.append(plan.peak_bytes)
        build_missing(plan, self.building)
        if self.begun is not None:
            self.begun(Begun(plan, resumed))
        return plan

    def clones(self, graph: Graph, directory: OutputDirectory) -> list[Clone]:
        """The clones to make; none if every byte must be read and written."""
        if self.options.io is not IOMode.AUTO:
            return []
        return supported_clones(possible_clones(graph), directory.records, self.options.files)

    @contextlib.contextmanager
    def executor(
        self,
        plan: Schedule,
        sink_of: Callable[[Callable[[], None]], S],
        records: Path,
        clones: Sequence[Clone] = (),
    ) -> Iterator[tuple[Executor, S]]:
        """The executor of a schedule, with open inputs, after making the ``clones``.

        ``sink_of`` creates the sink from a function that raises if inputs have changed since
        planning. Values are spilled to the directory ``records``.
        """
        options = self.options
        with contextlib.ExitStack() as opened:
            files = spill_files(records, plan.graph.spills, options.io, options.files)
            spills = opened.enter_context(files)

            def reader_of(source: Source) -> Reader:
                if isinstance(source, Spill):
                    return spills.reader(source)
                return opened.enter_context(contextlib.closing(source.open(options.read_options)))

            readers: dict[int, Reader] = source_readers(plan, reader_of)
            cloned: dict[str, FileReader] = {}
            for clone in clones:
                if clone.source.path not in cloned:
                    local = clone.source.open(self.options.read_options)
                    cloned[clone.source.path] = opened.enter_context(contextlib.closing(local))

            def check() -> None:
                for reader in (*readers.values(), *cloned.values()):
                    reader.check_unchanged()

            sink = sink_of(check)
            if clones:
                assert isinstance(sink, ShardSink)
                _make_clones(clones, cloned, sink)
            yield Executor(plan, readers, spills.redirecting(sink), options.opener), sink


def _make_clones(
    clones: Sequence[Clone], readers: Mapping[str, FileReader], sink: ShardSink
) -> None:
    """Clone the bytes of tensors into the output, and record these tensors as finished."""
    try:
        for clone in clones:
            make_clone(clone, readers[clone.source.path], sink.writer(clone.file))
            for write in clone.writes:
                sink.completed(write, "", write.nbytes)
    except BaseException:
        with contextlib.suppress(Exception):
            sink.close()
        raise


def _is_complete(manifest: Manifest, directory: OutputDirectory, run: _Run) -> bool:
    """Whether a finished output is complete; if not, turn it into an interrupted one.

    Raises:
        OutputError: the directory belongs to another merge.
    """
    recorded = [
        FinishedTensor(each.file, each.name, each.digest, each.block_bytes, each.nbytes, each.error)
        for each in manifest.tensors
    ]
    touched = _check_same(manifest.fingerprint, manifest.identity, recorded, run, directory)
    faults = list(missing_files(directory.path, manifest))
    if not faults and run.options.verify_finished:
        wrong = recorded_faults(directory.path, manifest)
        faults = [f"'{name}': {reason}" for name, reason in wrong]
    job = run.job
    if faults:
        more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
        run.warnings.append(
            f"'{directory.path}' was finished, but {faults[0]}{more}: missing and wrong parts are "
            "written again"
        )
        totals = Totals.of(job.graph)
        directory.begin_again(job.fingerprint, job.identity, manifest.all_files, recorded, totals)
    elif touched:
        directory.update_identity(manifest, job.fingerprint, job.identity)
    return not faults


def _resumed(directory: OutputDirectory, run: _Run, repairs: bool) -> dict[Write, FinishedTensor]:
    """The intact tensors of an interrupted run; ``repairs`` says that damage is known already.

    Raises:
        OutputError: the directory belongs to another merge.
    """
    journal = directory.interrupted()
    if journal is None:
        return {}
    job = run.job
    recorded = journal.finished
    if _check_same(journal.fingerprint, journal.identity, recorded, run, directory):
        totals = Totals.of(job.graph)
        directory.begin_again(job.fingerprint, job.identity, journal.files, recorded, totals)
    done = directory.resumable(job.graph, journal, run.options.verify_resumed)
    lost = len({entry for entry in recorded if entry.digest}) - len(done)
    if journal.damaged or (lost and not repairs):
        run.warnings.append(_lost(journal.damaged, lost))
    return done


def _lost(records: int, tensors: int) -> str:
    """A message about the damaged records and tensors of an interrupted merge."""
    parts = [f"{records} damaged record{'s' * (records != 1)} in the journal"] * bool(records)
    if tensors:
        parts.append(f"{tensors} tensor{'s' * (tensors != 1)} that differ from their digests")
    return f"{' and '.join(parts)}: merged again"


def _check_same(
    fingerprint: str,
    identity: Mapping[str, str],
    recorded: Sequence[FinishedTensor],
    run: _Run,
    directory: OutputDirectory,
) -> bool:
    """Check that the contents of a directory belong to this job.

    Returns whether inputs have new modification times; if so, the ``recorded`` tensors have been
    computed again, with equal results.

    Raises:
        OutputError: they belong to another job.
    """
    job = run.job
    if fingerprint == job.fingerprint:
        return False
    found = differences(identity, job.identity)
    where = f"'{directory.path}' holds another merge"
    ways_out = "start over with --restart, or choose another output"
    if not only_times_differ(found):
        raise OutputError(f"{where}: {describe_differences(found)}", remedy=ways_out)
    touched = ", ".join(each.what for each in found[:3])
    if _differing(recorded, run, directory.records):
        raise OutputError(
            f"{where}: {touched} has been modified since, and its tensors have other values",
            remedy=ways_out,
        )
    run.warnings.append(
        f"{touched} has a new modification time since '{directory.path}' was begun: "
        f"{len(recorded)} tensors were computed again, with equal results"
    )
    return True


def _differing(recorded: Sequence[FinishedTensor], run: _Run, records: Path) -> list[str]:
    """Names of recorded tensors whose values, computed again, differ; writes nothing."""
    graph = run.job.graph
    by_name = {(each.file, each.tensor): each for each in recorded}
    wanted = {
        w: by_name[w.file.name, w.name]
        for w in graph.writes
        if (w.file.name, w.name) in by_name and by_name[w.file.name, w.name].digest
    }
    plan = run.schedule(graph.without(w for w in graph.writes if w not in wanted), 0)
    with run.executor(plan, lambda check: ComparingSink(wanted), records) as (executor, sink):
        executor.run(_trimming(run.poll, plan.peak_bytes))
        return sink.differing


_TRIM_FROM = 0.9
"""Fraction of the predicted peak memory at which the heap is trimmed."""


def _trimming(
    poll: Callable[[Progress], None] | None, peak_bytes: int
) -> Callable[[Progress], None]:
    """A function that calls ``poll``, and trims the heap when memory use is near the peak."""

    def polled(progress: Progress) -> None:
        # Not always, because the kernel must clear memory that is freed and needed again.
        if machine.resident_bytes() > peak_bytes * _TRIM_FROM:
            machine.trim_heap()
        if poll is not None:
            poll(progress)

    return polled


@contextlib.contextmanager
def _memory_reported() -> Iterator[None]:
    """Turn errors of running out of memory into one-line `RunError`s."""
    try:
        yield
    except Exception as error:
        if is_memory_short(error):
            raise memory_short() from error
        raise
