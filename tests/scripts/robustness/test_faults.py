"""Faults of every kind: a share of what `scripts/run faults` tries."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.robustness import faults
from scripts.robustness.small_disks import mounted
from scripts.robustness.small_merges import memory_directory

FORKING = {"signals", "memory", "locks", "small-disks"}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=memory_directory()) as path:
        yield Path(path)


def needs_mounts(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    try:
        with mounted(folder, "ext4", 8 << 20):
            pass
    except OSError as error:
        pytest.skip(f"nothing can be mounted here: {error}")


@pytest.mark.parametrize("name", sorted(set(faults.FAULTS) - FORKING))
def test_failing_calls_are_one_line_and_lose_nothing(
    name: str, folder: Path, tmp_path: Path
) -> None:
    attempt, mounts = faults.FAULTS[name]
    if mounts:
        needs_mounts(tmp_path)
    (folder / name).mkdir()
    bench = faults.make_trial("linear", folder / name, most=2)
    attempt(bench)
    assert bench.counts.total() > 1


@pytest.mark.parametrize("name", sorted(FORKING))
def test_killed_and_starved_processes_lose_nothing(name: str, tmp_path: Path) -> None:
    """In a process of its own: one with threads, as tests may have, should not be forked."""
    if faults.FAULTS[name][1]:
        needs_mounts(tmp_path)
    program = Path(__file__).parents[3] / "scripts" / "run"
    command = [sys.executable, program, "faults", "--faults", name, "--most", "2"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "every result has the digests of the undisturbed run" in found.stdout
