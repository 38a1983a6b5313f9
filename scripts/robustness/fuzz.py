"""Feed damaged input to the parsers, which may answer only with clear errors.

    scripts/run fuzz                            a few seconds for each target
    scripts/run fuzz --cases 1000000            this many cases, shared among the targets
    scripts/run fuzz --targets header --seconds 60 --atheris
                                            guided by coverage, if atheris is installed

A target is a function of bytes. It may raise nothing but a `LoomError` whose message is printable,
and may not take longer than ``CASE_SECONDS`` or more memory than ``MEMORY_BYTES``. An audit hook
checks that it opens no file for writing outside its directory, starts no process, opens no
connection, unpickles nothing and neither imports nor runs code. New formats are added to
``TARGETS``, with seeds in ``SEEDS``.
"""

from __future__ import annotations

import argparse
import importlib
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import xxhash

from mergeloom.engine.base.errors import LoomError
from scripts.robustness.fuzz_cases import Mutator
from scripts.robustness.fuzz_guard import (
    CASE_SECONDS,
    MEMORY_BYTES,
    Guard,
    attempt,
    bounded_memory,
    too_slow,
)
from scripts.robustness.fuzz_targets import TARGETS
from scripts.robustness.small_merges import memory_directory

SEEDS = Path(__file__).resolve().parent.parent.parent / "tests" / "seeds"


def seeds_of(name: str) -> list[bytes]:
    """The seeds of a target, from its folder."""
    return [path.read_bytes() for path in sorted((SEEDS / name).iterdir())]


def fuzz(
    name: str, folder: Path, guard: Guard, cases: int, seconds: float, seed: int
) -> Counter[str]:
    """Try a target's seeds and ``cases`` mutations of them, for at most ``seconds``.

    Raises:
        AssertionError: a case did not end with a clear error; it is kept beside the seeds, as
            ``crash-...``.
    """
    target = TARGETS[name]
    (folder / name).mkdir()
    function = target.make(folder / name)
    seeds = seeds_of(name)
    for case in seeds:  # imports what is needed, before the guard forbids imports
        with suppress(LoomError):
            function(case)
    chance = random.Random(f"{name} {seed}")
    mutator = Mutator(seeds, chance, target.repair)
    counts: Counter[str] = Counter()
    signal.signal(signal.SIGALRM, too_slow)
    began = time.monotonic()
    with bounded_memory():
        while counts.total() < len(seeds) + cases and time.monotonic() - began < seconds:
            number = counts.total()
            case = seeds[number] if number < len(seeds) else mutator.case()
            try:
                counts[attempt(function, case, guard)] += 1
            except BaseException as error:
                kept = SEEDS / name / f"crash-{xxhash.xxh3_64_hexdigest(case)}"
                if not isinstance(error, KeyboardInterrupt):
                    kept.write_bytes(case)
                raise AssertionError(
                    f"{name}: {type(error).__name__}: {error!s:.300} by '{kept}'"
                ) from error
    return counts


def guided(name: str, folder: Path, guard: Guard, seconds: float) -> None:
    """Let atheris search for cases that reach new code; it ends the process."""
    atheris = importlib.import_module("atheris")
    target = TARGETS[name]
    packages = ["engine", "planners", "methods", "mergeloom"]
    with atheris.instrument_imports(include=packages):
        (folder / name).mkdir()
        function = target.make(folder / name)
        for case in seeds_of(name):
            with suppress(LoomError):
                function(case)

    def once(case: bytes) -> None:
        attempt(function, target.repair(case, random.Random(0)), guard)

    corpus = folder / "corpus"
    corpus.mkdir()
    limits = [f"-max_total_time={seconds:.0f}", "-max_len=4096", f"-timeout={CASE_SECONDS:.0f}"]
    limits += [f"-rss_limit_mb={(MEMORY_BYTES >> 20) + 512}", f"-artifact_prefix={folder}/"]
    signal.signal(signal.SIGALRM, too_slow)
    atheris.Setup([sys.argv[0], *limits, str(corpus), str(SEEDS / name)], once)
    atheris.Fuzz()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; the result is its exit status."""
    parser = argparse.ArgumentParser(prog="run fuzz", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--targets",
        default=",".join(TARGETS),
        metavar="NAMES",
        help=f"targets, separated by commas [default: {','.join(TARGETS)}]",
    )
    parser.add_argument(
        "--cases", type=int, default=20_000, metavar="N", help="total cases [default: 20000]"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=3600.0,
        metavar="SECONDS",
        help="time limit per target [default: 3600]",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of random choices [default: 0]")
    parser.add_argument("--atheris", action="store_true", help="search by coverage; one target")
    options = parser.parse_args(arguments)
    names = options.targets.split(",")
    if unknown := set(names) - set(TARGETS):
        parser.error(f"no target '{min(unknown)}': choose from {', '.join(TARGETS)}")
    shares = sum(TARGETS[name].share for name in names)
    total, failed = 0, False
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory_directory()) as path:
        folder = Path(path)
        guard = Guard(folder)
        guard.install()
        if options.atheris:
            guided(names[0], folder, guard, options.seconds)
        for name in names:
            cases = int(options.cases * TARGETS[name].share / shares)
            began = time.monotonic()
            try:
                counts = fuzz(name, folder, guard, cases, options.seconds, options.seed)
            except AssertionError as error:
                print(f"fuzz: {error}", file=sys.stderr)
                failed = True
                continue
            seconds = time.monotonic() - began
            total += counts.total()
            print(
                f"{name:<15}{counts.total():>9} cases {counts['taken']:>8} taken"
                f"{counts['refused']:>9} refused{seconds:>8.1f} s",
                flush=True,
            )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    if failed:
        return 1
    print(f"{total} cases, no failures; peak memory {peak} MiB")
    return 0
