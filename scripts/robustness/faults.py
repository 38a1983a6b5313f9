"""Make every call of a merge fail in every way, and check the message and the recovery.

    scripts/run faults                  all faults; some need root and are skipped without it

File-system calls fail once or permanently, or are cut short; inputs change while they are read;
disks are too small or read-only; memory runs out; signals arrive. Each time the merge must succeed,
or print one line and exit with status 1 (130 after a signal). Once the cause is gone, the same
command must finish with the bytes of an undisturbed run. New kinds of faults are added to
``FAULTS``.
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mergeloom.engine.base.errors import LoomError, RunError
from mergeloom.engine.job import Job, Options, run
from mergeloom.engine.storage.file_system import FILES, Files
from mergeloom.engine.storage.source import IOMode
from scripts.robustness.faulty_files import ERRORS, FaultyFiles, MeddlingFiles, ShortFiles
from scripts.robustness.forked import Ended, command
from scripts.robustness.small_disks import fill, free_bytes, mounted, remount
from scripts.robustness.small_merges import (
    MACHINE,
    digests,
    make_job,
    make_models,
    memory_directory,
)

MIB = 1 << 20


@dataclass
class Trial:
    """A job to try faults on: its models, the expected digests, and a new output for each attempt.

    ``most`` is the number of cases to draw at random from a list of similar ones; ``None`` tries
    all.
    """

    job: Job
    models: Path
    expected: dict[str, str]
    folder: Path
    counts: Counter[tuple[str, str]]
    most: int | None = None

    def sample(self, cases: range) -> list[int]:
        """A random selection of ``cases``, or all of them."""
        if self.most is None or self.most >= len(cases):
            return [*cases]
        return sorted(random.Random(len(cases)).sample(cases, self.most))

    def try_files(self, what: str, files: Files, io_mode: IOMode = IOMode.AUTO) -> bool:
        """Merge with the faulty ``files``, then resume without; return whether the first merge
        succeeded.
        """
        output = self.new()
        try:
            run(self.job, output, _options(io_mode, files))
            succeeded = True
        except LoomError as error:
            check_error(error)
            succeeded = False
        self.resume(what, output, succeeded)
        return succeeded

    def resume(self, what: str, output: Path, succeeded: bool) -> None:
        """Run the same merge again, without the fault: it must finish with the right bytes."""
        outcome = run(self.job, output, _options(IOMode.AUTO))
        assert digests(output) == self.expected, "the result differs"
        assert not outcome.warnings, outcome.warnings
        shutil.rmtree(output)
        self.counts[what, "succeeded" if succeeded else "failed, then resumed"] += 1

    def new(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.folder)) / "out"


def _options(io_mode: IOMode, files: Files = FILES) -> Options:
    return Options(8 << 30, MACHINE, io_mode, commit_seconds=0.01, files=files)


def check_error(error: LoomError) -> None:
    """Check that a failure at run time is one line, and says how to continue."""
    assert isinstance(error, RunError), repr(error)
    assert error.exit_code == 1
    assert str(error).isprintable()
    assert "continue" in str(error), str(error)


def system_errors(trial: Trial) -> None:
    """Let every call fail with every error that it can return, once or from then on."""
    for what, (error, kinds) in ERRORS.items():
        for io_mode in (IOMode.DIRECT, IOMode.BUFFERED):
            counting = FaultyFiles(error, kinds, 0, False)
            run(trial.job, trial.new(), _options(io_mode, counting))
            for number in trial.sample(range(1, counting.calls + 1)):
                for lasting in (False, True):
                    files = FaultyFiles(error, kinds, number, lasting)
                    trial.try_files(what, files, io_mode)


def short_calls(trial: Trial) -> None:
    """Let reads and writes end early, at any byte."""
    for seed in trial.sample(range(30)):
        for io_mode in IOMode:
            assert trial.try_files("short reads and writes", ShortFiles(seed), io_mode)


def inputs_change(trial: Trial) -> None:
    """Truncate, overwrite, replace or remove an input while it is read."""
    path = trial.models / "one" / "model.safetensors"
    kept = path.with_suffix(".kept")
    shutil.copy2(path, kept)

    def cut() -> None:
        os.truncate(path, path.stat().st_size // 2)

    def overwrite() -> None:
        size = path.stat().st_size
        with open(path, "r+b") as file:
            file.seek(size // 3)
            file.write(os.urandom(size // 2))
        os.utime(path)

    def replace() -> None:
        other = path.with_suffix(".other")
        other.write_bytes(os.urandom(path.stat().st_size))
        os.replace(other, path)

    meddling: dict[str, Callable[[], None]] = {
        "file cut while read": cut,
        "file overwritten while read": overwrite,
        "file replaced while read": replace,
        "file removed while read": path.unlink,
    }
    for what, meddle in meddling.items():
        for number in trial.sample(range(1, 30)):
            output = trial.new()
            try:
                run(trial.job, output, _options(IOMode.AUTO, MeddlingFiles(number, meddle)))
                succeeded = True
            except LoomError as error:
                check_error(error)
                succeeded = False
            # What was read from the old file is right: an open file does not change by being
            # replaced or removed. What was read from a changed file must not have been recorded.
            shutil.copy2(kept, path)
            trial.resume(what, output, succeeded)
    path.unlink()
    try:
        run(trial.job, trial.new(), _options(IOMode.AUTO))
        raise AssertionError("a missing input was not noticed")
    except LoomError as error:
        check_error(error)
    shutil.copy2(kept, path)
    trial.counts["file missing at the start", "failed, then resumed"] += 1


def _merge(trial: Trial, output: Path, *more: str) -> list[str]:
    config = trial.models / "merge.yml"
    config.write_text(
        "merge_method: linear\nmodels: [base, one]\nparameters: {weight: 1}\ndtype: bfloat16\n"
    )
    return [
        "merge",
        str(config),
        str(output),
        "--quiet",
        "--max-shard-size",
        "300kB",
        "--search-dir",
        str(trial.models),
        *more,
    ]


def _check_command(ended: Ended, status: int = 1) -> None:
    assert ended.status == status, ended
    assert ended.complaints.count("\n") == 1, ended
    assert "continue" in ended.complaints, ended.complaints


def signals(trial: Trial) -> None:
    """Send SIGINT or SIGTERM at a random moment."""
    chance = random.Random(0)
    for number in (signal.SIGINT, signal.SIGTERM):
        what = signal.Signals(number).name
        for _ in trial.sample(range(30)):
            output = trial.new()

            def interrupt(pid: int, number: int = number) -> None:
                time.sleep(chance.uniform(0.02, 0.35))
                os.kill(pid, number)

            ended = command(_merge(trial, output), meanwhile=interrupt)
            if ended.status not in (0, -number):  # not begun yet, or already finished
                assert ended.status == 130, ended
                assert ended.complaints.count("\n") == 1, ended
                assert ended.complaints.startswith("interrupted"), ended
            again = command(_merge(trial, output))
            assert again.status == 0, again
            assert {**digests(output)} == _by_command(trial), "the result differs"
            shutil.rmtree(output)
            how = {0: "succeeded", 130: "failed, then resumed"}
            trial.counts[what, how.get(ended.status, "before it began")] += 1


def memory(trial: Trial) -> None:
    """Let the system refuse memory from a random point on."""
    expected = _by_command(trial)
    for extra in trial.sample(range(0, 120, 4)):
        output = trial.new()

        def limit(extra: int = extra) -> None:
            with open("/proc/self/statm") as file:
                now = int(file.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (now + extra * MIB, resource.RLIM_INFINITY))

        ended = command(_merge(trial, output), before=limit)
        if ended.status:
            _check_command(ended)
        assert command(_merge(trial, output)).status == 0
        assert digests(output) == expected, "the result differs"
        shutil.rmtree(output)
        succeeded = "failed, then resumed" if ended.status else "succeeded"
        trial.counts["memory limit (RLIMIT_AS)", succeeded] += 1


def small_disks(trial: Trial) -> None:
    """Merge to file systems that are too small from the start, or fill up during the merge."""
    needed = sum(file.size for file in trial.job.graph.files)
    for kind in ("tmpfs", "ext4"):
        with mounted(trial.folder, kind, 8 * MIB) as volume:
            output = volume / "out"
            filler = volume / "filler"
            fill(filler, free_bytes(volume) - needed // 2)
            ended = command(_merge(trial, output))
            _check_command(ended)
            assert "MB" in ended.complaints
            assert not list(output.glob("*.safetensors*")), "something was begun"
            trial.counts[f"{kind} too small at the start", "failed, then resumed"] += 1
            filler.unlink()
            shutil.rmtree(output)
            for io_mode in ("buffered", "direct"):
                for left in trial.sample(range(0, 2 * needed, needed // 10)):
                    options = _options(IOMode(io_mode))
                    try:
                        run(trial.job, output, options, begun=_filling(volume, left))
                        succeeded = True
                    except LoomError as error:
                        check_error(error)
                        succeeded = False
                    filler.unlink()
                    trial.resume(f"{kind} filled while it ran", output, succeeded)


def _filling(volume: Path, left: int) -> Callable[[object], None]:
    """A hook that fills the disk, except ``left`` bytes, after the merge has checked the free
    space.
    """
    return lambda _: fill(volume / "filler", free_bytes(volume) - left)


def read_only(trial: Trial) -> None:
    """Merge to a file system that is read-only from the start, or when the merge is resumed."""
    with mounted(trial.folder, "tmpfs", 16 * MIB) as volume:
        output = volume / "out"
        for begun in (False, True):
            if begun:
                files = FaultyFiles(errno.EIO, frozenset(("read",)), 10, True)
                with suppress(RunError):
                    run(trial.job, output, _options(IOMode.AUTO, files))
            remount(volume, "ro")
            try:
                run(trial.job, output, _options(IOMode.AUTO))
                raise AssertionError("a read-only file system was written")
            except LoomError as error:
                check_error(error)
            remount(volume, "rw")
            trial.resume("read-only output", output, False)


def locks(trial: Trial) -> None:
    """Start a second process on the same output: it is refused until the first one has ended or was
    killed.
    """
    for end in (signal.SIGTERM, signal.SIGKILL):
        output = trial.new()
        ready, done = os.pipe()
        pid = os.fork()
        if not pid:
            from mergeloom.engine.output.directory import OutputDirectory

            with OutputDirectory(output):
                os.write(done, b"x")
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                time.sleep(60)
            os._exit(0)
        os.read(ready, 1)
        ended = command(_merge(trial, output))
        assert (ended.status, ended.complaints.count("\n")) == (1, 1), ended
        assert "another process is writing" in ended.complaints
        os.kill(pid, end)
        os.waitpid(pid, 0)
        trial.resume("second process on one output", output, False)


FAULTS: dict[str, tuple[Callable[[Trial], None], bool]] = {
    "errors": (system_errors, False),
    "short": (short_calls, False),
    "inputs": (inputs_change, False),
    "signals": (signals, False),
    "memory": (memory, False),
    "locks": (locks, False),
    "small-disks": (small_disks, True),
    "read-only": (read_only, True),
}
"""Everything that is tried, and whether it mounts file systems, for which it needs root."""


def _by_command(trial: Trial) -> dict[str, str]:
    """The digests that the command line produces: its model card names the configuration file."""
    output = trial.models / "by-command"
    if not output.exists():
        ended = command(_merge(trial, output))
        assert ended.status == 0, ended
    return digests(output)


def make_trial(kind: str, folder: Path, most: int | None = None) -> Trial:
    """Prepare a trial for one of the small merges."""
    models = make_models(folder / "models")
    job = make_job(kind, models)
    run(job, folder / "reference", _options(IOMode.AUTO))
    return Trial(job, models, digests(folder / "reference"), folder, Counter(), most)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; the result is its exit status."""
    parser = argparse.ArgumentParser(prog="run faults", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--faults",
        default=",".join(FAULTS),
        metavar="NAMES",
        help=f"kinds of faults, separated by commas [default: {','.join(FAULTS)}]",
    )
    parser.add_argument(
        "--most", type=int, metavar="N", help="try at most N cases of each kind [default: all]"
    )
    options = parser.parse_args(arguments)
    chosen = options.faults.split(",")
    if unknown := set(chosen) - set(FAULTS):
        parser.error(f"no fault '{min(unknown)}': choose from {', '.join(FAULTS)}")
    with tempfile.TemporaryDirectory(prefix="faults-", dir=memory_directory()) as folder:
        trial = make_trial("linear", Path(folder), options.most)
        for name in chosen:
            attempt, needs_root = FAULTS[name]
            if needs_root and os.geteuid() != 0:
                print(f"{name}: skipped, because it needs root", file=sys.stderr)
                continue
            attempt(trial)
    for (what, how), count in trial.counts.items():
        print(f"{what:<34}{how:<24}{count:>6}")
    print(f"faults: {trial.counts.total()}; every result has the digests of the undisturbed run")
    return 0
