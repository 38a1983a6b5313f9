"""Merges that are killed anywhere lose nothing: a short run of `scripts/crash`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_killed_merges_end_with_the_same_bytes(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "scripts" / "crash", "--kills", "8", "--directory", tmp_path]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "every result has the digests of the undisturbed run" in found.stdout
