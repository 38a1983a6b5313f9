"""Parsers under fire: every kept seed, a short `scripts/run fuzz`, and what the guard sees."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.robustness import fuzz
from scripts.robustness.fuzz_targets import TARGETS

ROOT = Path(__file__).parents[3]


def test_parsers_answer_with_clear_errors() -> None:
    """In a process of its own: an audit hook cannot be removed again."""
    command = [
        sys.executable,
        ROOT / "scripts" / "run",
        "fuzz",
        "--cases",
        "3000",
        "--seconds",
        "3",
    ]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "no failures" in found.stdout


def test_every_target_has_seeds() -> None:
    assert {path.name for path in fuzz.SEEDS.iterdir()} == set(TARGETS)
    assert all(fuzz.seeds_of(name) for name in TARGETS)


MISDEEDS = {
    "writes elsewhere": "open('/tmp/elsewhere', 'w')",
    "removes": "os.remove('/etc/nothing')",
    "starts a process": "os.system('true')",
    "unpickles": "pickle.loads(pickle.dumps(Path))",
    "runs code": "exec('pass')",
    "connects": "socket.create_connection(('127.0.0.1', 9))",
    "is slow": "time.sleep(60)",
    "fills memory": "bytearray(1 << 34)",
    "complains at length": "raise_(LoomError('a' * 5001))",
    "fails": "raise_(ValueError())",
}


@pytest.mark.parametrize("misdeed", MISDEEDS)
def test_the_guard_sees_what_no_parser_may_do(misdeed: str, tmp_path: Path) -> None:
    code = f"""
import os, pickle, signal, socket, sys, time
from pathlib import Path
from scripts.robustness import fuzz_guard
from mergeloom.engine.base.errors import LoomError
fuzz_guard.CASE_SECONDS = 0.2
def raise_(error): raise error
def target(case): {MISDEEDS[misdeed]}
guard = fuzz_guard.Guard(Path(sys.argv[1]))
guard.install()
signal.signal(signal.SIGALRM, fuzz_guard.too_slow)
try:
    with fuzz_guard.bounded_memory():
        fuzz_guard.attempt(target, b"", guard)
except BaseException as error:
    print(type(error).__name__)
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    expected = {
        "is slow": "TooSlow",
        "fills memory": "MemoryError",
        "fails": "ValueError",
        "complains at length": "AssertionError",
    }
    assert found.stdout.strip() == expected.get(misdeed, "Forbidden"), found.stderr
    assert not os.path.exists("/tmp/elsewhere")
