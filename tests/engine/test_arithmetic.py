"""What only workers import: see tests/methods and test_job.py for the arithmetic itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

LOGARITHMS = """
import os, threading
import torch
from engine.arithmetic import use_one_thread

numbers = torch.full((256,), 2.0, dtype=torch.float64)
begun = []

def work():
    {first}
    before = set(os.listdir("/proc/self/task"))
    numbers.log_()
    begun.extend(set(os.listdir("/proc/self/task")) - before)

thread = threading.Thread(target=work)
thread.start()
thread.join()
print(len(begun))
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc")
def test_a_thread_that_computes_starts_no_other() -> None:
    code = LOGARITHMS.format(first="use_one_thread()")
    found = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True
    )
    assert found.stdout == "0\n"
