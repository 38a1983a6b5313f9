"""Let every call of a merge fail in every way, and see one clear line, and nothing lost.

    scripts/run faults                  all that can be tried here; some of it needs root

Calls of the file system fail, once or for good, are cut short, find their files changed; disks
are too small or read-only, memory runs out, signals arrive. A merge then either ends well, or it
ends with one line and exit code 1 (130 after a signal), and when the cause is gone the same
command ends with the bytes of an undisturbed run. What comes later and reads or writes in other
ways (remote sources, other formats) is tried by giving it a place in ``FAULTS``.
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
    """Where merges are tried: a job, its models, the right result, a new directory each time.

    ``most`` is how many of many like cases are tried, drawn at random; ``None`` for all.
    """

    job: Job
    models: Path
    expected: dict[str, str]
    folder: Path
    counts: Counter[tuple[str, str]]
    most: int | None = None

    def some(self, cases: range) -> list[int]:
        """The cases to try."""
        if self.most is None or self.most >= len(cases):
            return [*cases]
        return sorted(random.Random(len(cases)).sample(cases, self.most))

    def try_files(self, what: str, files: Files, io_mode: IOMode = IOMode.AUTO) -> bool:
        """One merge with ``files``, then another without; whether the first one ended well."""
        output = self.new()
        try:
            run(self.job, output, _options(io_mode, files))
            well = True
        except LoomError as error:
            check_error(error)
            well = False
        self.resume(what, output, well)
        return well

    def resume(self, what: str, output: Path, well: bool) -> None:
        """The cause is gone: the same merge must end well, with the right bytes."""
        outcome = run(self.job, output, _options(IOMode.AUTO))
        assert digests(output) == self.expected, "the result differs"
        assert not outcome.warnings, outcome.warnings
        shutil.rmtree(output)
        self.counts[what, "ended well" if well else "one line, then resumed"] += 1

    def new(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.folder)) / "out"


def _options(io_mode: IOMode, files: Files = FILES) -> Options:
    return Options(8 << 30, MACHINE, io_mode, commit_seconds=0.01, files=files)


def check_error(error: LoomError) -> None:
    """A failure at run time is one line for a person, and says that it can be continued."""
    assert isinstance(error, RunError), repr(error)
    assert error.exit_code == 1
    assert str(error).isprintable()
    assert "continue" in str(error), str(error)


def system_errors(trial: Trial) -> None:
    """Every call fails with every error that it can return, once and for good."""
    for what, (error, kinds) in ERRORS.items():
        for io_mode in (IOMode.DIRECT, IOMode.BUFFERED):
            counting = FaultyFiles(error, kinds, 0, False)
            run(trial.job, trial.new(), _options(io_mode, counting))
            for number in trial.some(range(1, counting.calls + 1)):
                for lasting in (False, True):
                    files = FaultyFiles(error, kinds, number, lasting)
                    trial.try_files(what, files, io_mode)


def short_calls(trial: Trial) -> None:
    """Reads and writes end early, at any byte."""
    for seed in trial.some(range(30)):
        for io_mode in IOMode:
            assert trial.try_files("short reads and writes", ShortFiles(seed), io_mode)


def inputs_change(trial: Trial) -> None:
    """A file is cut, written over, replaced or removed while it is read."""
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
        for number in trial.some(range(1, 30)):
            output = trial.new()
            try:
                run(trial.job, output, _options(IOMode.AUTO, MeddlingFiles(number, meddle)))
                well = True
            except LoomError as error:
                check_error(error)
                well = False
            # What was read of the old file is right: a file that is open does not change by being
            # replaced or removed. What was read of a changed one must not have been recorded.
            shutil.copy2(kept, path)
            trial.resume(what, output, well)
    path.unlink()
    try:
        run(trial.job, trial.new(), _options(IOMode.AUTO))
        raise AssertionError("a missing input went unnoticed")
    except LoomError as error:
        check_error(error)
    shutil.copy2(kept, path)
    trial.counts["file missing at the start", "one line, then resumed"] += 1


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
    """SIGINT and SIGTERM at any moment."""
    chance = random.Random(0)
    for number in (signal.SIGINT, signal.SIGTERM):
        what = signal.Signals(number).name
        for _ in trial.some(range(30)):
            output = trial.new()

            def interrupt(pid: int, number: int = number) -> None:
                time.sleep(chance.uniform(0.02, 0.35))
                os.kill(pid, number)

            ended = command(_merge(trial, output), meanwhile=interrupt)
            if ended.status not in (0, -number):  # not begun yet, or over already
                assert ended.status == 130, ended
                assert ended.complaints.count("\n") == 1, ended
                assert ended.complaints.startswith("interrupted"), ended
            again = command(_merge(trial, output))
            assert again.status == 0, again
            assert {**digests(output)} == _by_command(trial), "the result differs"
            shutil.rmtree(output)
            how = {0: "ended well", 130: "one line, then resumed"}
            trial.counts[what, how.get(ended.status, "before it began")] += 1


def memory(trial: Trial) -> None:
    """The system gives no more memory, from some point on."""
    expected = _by_command(trial)
    for extra in trial.some(range(0, 120, 4)):
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
        well = "one line, then resumed" if ended.status else "ended well"
        trial.counts["memory limit (RLIMIT_AS)", well] += 1


def small_disks(trial: Trial) -> None:
    """File systems of a fixed size: too small from the start, or filled while a merge runs."""
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
            trial.counts[f"{kind} too small at the start", "one line, then resumed"] += 1
            filler.unlink()
            shutil.rmtree(output)
            for io_mode in ("buffered", "direct"):
                for left in trial.some(range(0, 2 * needed, needed // 10)):
                    options = _options(IOMode(io_mode))
                    try:
                        run(trial.job, output, options, begun=_filling(volume, left))
                        well = True
                    except LoomError as error:
                        check_error(error)
                        well = False
                    filler.unlink()
                    trial.resume(f"{kind} filled while it ran", output, well)


def _filling(volume: Path, left: int) -> Callable[[object], None]:
    """Something that fills the disk after the free space was looked at, all but ``left`` bytes."""
    return lambda _: fill(volume / "filler", free_bytes(volume) - left)


def read_only(trial: Trial) -> None:
    """The output's file system is read-only, from the start or when it is continued."""
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
    """A second process on one output is refused, until the first one is gone, however it went."""
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
    """What the command line makes: its configuration has a name and comments of its own."""
    output = trial.models / "by-command"
    if not output.exists():
        ended = command(_merge(trial, output))
        assert ended.status == 0, ended
    return digests(output)


def make_trial(kind: str, folder: Path, most: int | None = None) -> Trial:
    """The place to try one of the small merges at."""
    models = make_models(folder / "models")
    job = make_job(kind, models)
    run(job, folder / "reference", _options(IOMode.AUTO))
    return Trial(job, models, digests(folder / "reference"), folder, Counter(), most)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; the result is its exit status."""
    parser = argparse.ArgumentParser(prog="run faults", description=__doc__.split("\n")[0])
    parser.add_argument("--faults", default=",".join(FAULTS), help="such as errors,signals")
    parser.add_argument("--most", type=int, help="cases of a kind that are tried [default: all]")
    options = parser.parse_args(arguments)
    chosen = options.faults.split(",")
    if unknown := set(chosen) - set(FAULTS):
        parser.error(f"no fault '{min(unknown)}': choose from {', '.join(FAULTS)}")
    with tempfile.TemporaryDirectory(prefix="faults-", dir=memory_directory()) as folder:
        trial = make_trial("linear", Path(folder), options.most)
        for name in chosen:
            attempt, needs_root = FAULTS[name]
            if needs_root and os.geteuid() != 0:
                print(f"{name}: not tried, it needs root", file=sys.stderr)
                continue
            attempt(trial)
    for (what, how), count in trial.counts.items():
        print(f"{what:<34}{how:<24}{count:>6}")
    print(f"{trial.counts.total()} faults; every result has the digests of the undisturbed run")
    return 0
