"""Kill merges at random moments, resume them, and compare with an undisturbed run.

    scripts/run crash                       one round for each kind of kernel
    scripts/run crash --kills 500           until 500 processes have been killed
    scripts/run crash --seed 7 --kinds copy,rank

Each round merges into a new directory. The process is killed (SIGKILL) at a random moment, or just
before or after one of its file-system calls (most often a rename, a sync or a write to the
journal), once or several times in a row. Every resumption uses another budget, thread count and I/O
mode. At the end, each file must have the SHA-256 of the undisturbed run, no tensor that the journal
records may have been read again, and only work in progress may have been repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mergeloom.engine.graph.graph import Write
from mergeloom.engine.hardware.spec import Machine
from mergeloom.engine.output.journal import JournalContent, read_journal
from mergeloom.engine.output.manifest import DIRECTORY
from mergeloom.engine.plan.schedule import Schedule, schedule
from scripts.fixtures.shapes import Shape
from scripts.robustness.counting_files import (
    READ,
    READ_AT_COMMIT,
    READS,
    CountingFiles,
    SharedCounters,
)
from scripts.robustness.small_merges import MACHINE, digests

MIB = 1 << 20

KINDS: dict[str, dict[str, Any]] = {
    "copy": {"merge_method": "passthrough", "models": ["one"]},
    "elementwise": {
        "merge_method": "linear",
        "models": ["base", "one", "two"],
        "parameters": {"weight": 0.4},
    },
    "gram": {
        "merge_method": "slerp",
        "base_model": "base",
        "models": ["one"],
        "parameters": {"t": 0.3},
    },
    "rank": {
        "merge_method": "ties",
        "base_model": "base",
        "models": ["one", "two"],
        "parameters": {"weight": 0.5, "density": 0.3},
    },
    "random": {
        "merge_method": "dare_ties",
        "base_model": "base",
        "models": ["one", "two"],
        "parameters": {"weight": 0.5, "density": 0.4},
    },
    "rowwise": {
        "merge_method": "nuslerp",
        "models": ["one", "two"],
        "parameters": {"weight": 0.5, "nuslerp_row_wise": True},
    },
}
"""One merge configuration per kind of kernel."""

SHAPE = Shape("llama", 3, 512, 1536, 8, 4, 64, 6000, shard_bytes=4 * MIB)
_SHARD_BYTES = 3 * MIB
_OCCUPIED = 300 * MIB
_PREFERRED_CALLS = (
    "rename",
    "sync",
    "journal",
    "sync_directory",
    "remove",
    "make_directory",
    "truncate",
)


@dataclass(frozen=True, slots=True)
class Setting:
    """How one process of a round runs, and when it is killed."""

    ram: int
    threads: int
    io: str
    commit_seconds: float
    restart: bool = False
    seconds: float | None = None
    call: str | None = None
    number: int = 0
    after: bool = False

    @property
    def machine(self) -> Machine:
        return replace(MACHINE, threads=self.threads, process_bytes=_OCCUPIED)


@dataclass
class Tally:
    """Counts of rounds, runs and kills, and the amount of repeated work."""

    kills: Counter[str]
    runs: int = 0
    rounds: int = 0
    undisturbed_bytes: int = 0
    repeated_bytes: int = 0
    largest_repeated: int = 0


class CrashTest:
    """Runs the merges of one kind in its own directory; the inputs are in ``models``.

    Merges run in forked processes, so that hundreds of them need not import torch again.
    """

    def __init__(self, kind: str, models: Path, directory: Path, seed: int) -> None:
        from mergeloom import api

        self.kind = kind
        self._directory = directory
        self._chance = random.Random(f"{kind} {seed}")
        self._shared = SharedCounters()
        config = {"dtype": "bfloat16", **KINDS[kind]}
        self._planned = api.plan(
            config,
            ram="8GiB",
            search=[models],
            max_shard_size=_SHARD_BYTES,
            threads=2,
            observer=api.Observer(warned=lambda finding: None),  # shards are small on purpose
        )
        self._graph = self._planned.plan.graph
        self._writes = {(write.file.name, write.name): write for write in self._graph.writes}
        self._output = directory / "reference"
        began = time.monotonic()
        self._calls = Counter(self._run(Setting(8 << 30, 2, "direct", 0.05))["calls"])
        self._seconds = time.monotonic() - began
        self._expected = digests(self._output)
        self._output = directory / "out"

    def round(self, tally: Tally) -> None:
        """Merge into a new directory, kill the process one or more times, and finish.

        Raises:
            AssertionError: work was lost, or recorded work was repeated.
        """
        shutil.rmtree(self._output, ignore_errors=True)
        finished_before = self._chance.random() < 0.1
        if finished_before:  # the output of another merge exists: use --restart
            shutil.copytree(self._directory / "reference", self._output)
            tally.runs += 1
        kills = 1
        while self._chance.random() < 0.5:
            kills += 1
        for number in range(kills):
            restart = (finished_before and number == 0) or self._chance.random() < 0.05
            self._run_until_killed(self._random_setting(restart), tally)
        manifest = self._output / DIRECTORY / "manifest.json"
        if finished_before and manifest.exists():  # killed before it began
            shutil.rmtree(self._output)
        self._run_to_end(replace(self._random_setting(False), seconds=None, call=None), tally)
        tally.rounds += 1

    def _random_setting(self, restart: bool) -> Setting:
        chance = self._chance
        threads = chance.choice((1, 2, 4))
        here = replace(MACHINE, threads=threads, process_bytes=_OCCUPIED)
        least = schedule(self._graph, None, here).minimum_bytes
        ram = chance.choice((least, least + chance.randrange(64) * MIB, 8 << 30))
        io = chance.choice(("direct", "buffered", "auto"))
        commit = chance.choice((0.01, 0.03, 0.1))
        if chance.random() < 0.5:
            seconds = self._seconds * chance.uniform(0, 1)
            return Setting(ram, threads, io, commit, restart, seconds=seconds)
        kinds = [kind for kind in _PREFERRED_CALLS if self._calls[kind]] + ["write"]
        call = chance.choice(kinds)
        # Low numbers are more likely, because a resumed run makes fewer calls.
        number = 1 + int(self._calls[call] * chance.random() ** 2)
        after = chance.random() < 0.5
        return Setting(ram, threads, io, commit, restart, call=call, number=number, after=after)

    def _run_until_killed(self, setting: Setting, tally: Tally) -> None:
        """Run until the kill; check that the records on disk cover the bytes read, except those in
        flight.
        """
        before = set() if setting.restart else self._recorded()
        self._shared.clear()
        pid = self._fork(setting)
        if setting.seconds is not None:
            time.sleep(setting.seconds)
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        tally.runs += 1
        if not os.WIFSIGNALED(status):  # it finished before the kill
            self._outcome()
            return
        tally.kills[setting.call or "a random moment"] += 1
        recorded = self._recorded()
        if setting.restart and before <= recorded and not self._shared[READ]:
            return  # killed before the old records were moved aside
        if not (self._output / DIRECTORY / "journal").exists():
            return  # nothing has begun, or everything is finished
        assert before <= recorded, "the journal forgot tensors"
        run = schedule(self._graph.without(before), setting.ram, setting.machine)
        useful, largest = _reads(run, recorded - before)
        read, slack = self._shared[READ], 8192 * self._shared[READS]
        repeated = max(read - useful - slack, 0)
        since = read - self._shared[READ_AT_COMMIT]
        bound = since + run.ledger_bytes + 2 * largest
        assert repeated <= bound, (
            f"{repeated} of {read} bytes read will be read again, {bound} were in flight"
        )
        tally.repeated_bytes += repeated
        tally.largest_repeated = max(tally.largest_repeated, repeated)

    def _run_to_end(self, setting: Setting, tally: Tally) -> None:
        """Run to the end; check the result, and that no recorded tensor was read again."""
        before = self._recorded()
        done = (self._output / DIRECTORY / "manifest.json").exists()
        self._shared.clear()
        outcome = self._run(setting)
        tally.runs += 1
        tally.undisturbed_bytes += self._planned.schedule.read_bytes
        assert digests(self._output) == self._expected, "the result differs"
        assert not outcome["warnings"], outcome["warnings"]
        if done:
            assert outcome["read_bytes"] == 0
            return
        rest = schedule(self._graph.without(before), setting.ram, setting.machine)
        assert outcome["resumed"] == len(before), "recorded tensors were merged again"
        assert outcome["read_bytes"] == rest.read_bytes

    def _recorded(self) -> set[Write]:
        """The writes that the journal records as finished."""
        path = self._output / DIRECTORY / "journal"
        found: JournalContent | None = read_journal(path) if path.exists() else None
        if found is None:
            return set()
        assert found.damaged == 0, "the journal is damaged"
        return {self._writes[entry.file, entry.tensor] for entry in found.finished}

    def _run(self, setting: Setting) -> dict[str, Any]:
        pid = self._fork(setting)
        _, status = os.waitpid(pid, 0)
        outcome = self._outcome()
        assert status == 0, f"ended with status {status}"
        return outcome

    def _outcome(self) -> dict[str, Any]:
        outcome: dict[str, Any] = json.loads((self._directory / "outcome").read_text())
        assert "error" not in outcome, outcome["error"]
        return outcome

    def _fork(self, setting: Setting) -> int:
        (self._directory / "outcome").unlink(missing_ok=True)
        pid = os.fork()
        if pid:
            return pid
        try:
            outcome = self._merge(setting)
        except BaseException:
            outcome = {"error": traceback.format_exc()}
        (self._directory / "outcome").write_text(json.dumps(outcome))
        os._exit(0)

    def _merge(self, setting: Setting) -> dict[str, Any]:
        from mergeloom.engine import job as jobs
        from mergeloom.engine.storage.source import IOMode

        files = CountingFiles(self._shared, setting.call, setting.number, setting.after)
        outcome = jobs.run(
            self._planned.plan.job({}),
            self._output,
            jobs.Options(
                ram=setting.ram,
                machine=setting.machine,
                io=IOMode(setting.io),
                restart=setting.restart,
                commit_seconds=setting.commit_seconds,
                files=files,
            ),
        )
        return {
            "calls": dict(files.calls),
            "read_bytes": outcome.read_bytes,
            "resumed": outcome.resumed,
            "warnings": outcome.warnings,
        }


def _reads(run: Schedule, done: set[Write]) -> tuple[int, int]:
    """Bytes that a run reads for the merges in ``done``, and the maximum for a single merge."""
    totals = [0] * len(run.merges)
    for tile in run.steps():
        work = run.merges[tile.merge].work
        grains = work.grains
        first = tile.first * grains.size
        count = min(tile.grains * grains.size, grains.total - first)
        totals[tile.merge] += sum(work.leaves[at].dtype.nbytes(count) for at in tile.reads)
    useful = sum(
        total
        for total, scheduled in zip(totals, run.merges, strict=True)
        if done.issuperset(scheduled.work.writes)
    )
    return useful, max(totals, default=0)


def make_models(directory: Path) -> None:
    """Generate a base and two fine-tunes in another process, because generating them starts
    threads.
    """
    pid = os.fork()
    if not pid:
        from scripts.fixtures.checkpoints import make

        make(directory / "base", SHAPE)
        make(directory / "one", SHAPE, finetune_of=0, seed=1)
        make(directory / "two", SHAPE, finetune_of=0, seed=2)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if status:
        raise OSError("the models could not be made")


def rounds(
    kinds: Sequence[str], kills: int, seed: int, directory: Path
) -> Iterator[tuple[str, Tally]]:
    """Run rounds of each kind in turn until ``kills`` processes were killed; yield after each
    round.
    """
    models = directory / "models"
    make_models(models)
    tests, tallies = {}, {}
    for kind in kinds:
        (directory / kind).mkdir()
        tests[kind] = CrashTest(kind, models, directory / kind, seed)
        tallies[kind] = Tally(Counter())
    while True:
        for kind in kinds:
            tests[kind].round(tallies[kind])
            yield kind, tallies[kind]
        if sum(tally.kills.total() for tally in tallies.values()) >= kills:
            return


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; the result is its exit status."""
    parser = argparse.ArgumentParser(prog="run crash", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--kills",
        type=int,
        default=1,
        metavar="N",
        help="run until at least N processes were killed [default: 1]",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of random choices [default: 0]")
    parser.add_argument(
        "--kinds",
        default=",".join(KINDS),
        metavar="NAMES",
        help=f"kinds of kernels, separated by commas [default: {','.join(KINDS)}]",
    )
    parser.add_argument(
        "--directory", type=Path, metavar="DIR", help="work directory [default: a temporary one]"
    )
    options = parser.parse_args(arguments)
    kinds = options.kinds.split(",")
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"no kind '{min(unknown)}': choose from {', '.join(KINDS)}")
    os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
    import mergeloom.api
    import mergeloom.engine.run.evaluate  # noqa: F401  # imported once, before processes are forked

    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads cannot be forked"
    last: dict[str, Tally] = {}
    with tempfile.TemporaryDirectory(prefix="crash-", dir=options.directory) as folder:
        try:
            for kind, tally in rounds(kinds, options.kills, options.seed, Path(folder)):
                last[kind] = tally
        except AssertionError as error:
            print(f"crash: {kind if last else ''}: {error}", file=sys.stderr)
            raise
    print(
        f"{'kind':<13}{'rounds':>7}{'runs':>6}{'kills':>6}{'reread':>11}{'at most':>10}  killed at"
    )
    for kind, tally in last.items():
        share = tally.repeated_bytes / max(tally.undisturbed_bytes, 1)
        moments = ", ".join(f"{number} {place}" for place, number in tally.kills.most_common())
        print(
            f"{kind:<13}{tally.rounds:>7}{tally.runs:>6}{tally.kills.total():>6}{share:>11.1%}"
            f"{tally.largest_repeated / 1e6:>7.1f} MB  {moments}"
        )
    total = sum(tally.kills.total() for tally in last.values())
    print(f"processes killed: {total}; every result has the digests of the undisturbed run")
    return 0
