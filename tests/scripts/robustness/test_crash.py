"""Merges that are killed anywhere lose nothing: a short run of `scripts/run crash`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from scripts.robustness.small_merges import memory_directory

ROOT = Path(__file__).parents[3]


def test_killed_merges_end_with_the_same_bytes() -> None:
    with tempfile.TemporaryDirectory(dir=memory_directory()) as folder:
        command = [
            sys.executable,
            ROOT / "scripts" / "run",
            "crash",
            "--kills",
            "4",
            "--kinds",
            "gram,random",
        ]
        command += ["--directory", folder]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "every result has the digests of the undisturbed run" in found.stdout
