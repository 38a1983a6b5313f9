"""What only workers import: see tests/methods and test_job.py for the arithmetic itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

LOGARITHMS = """
import threading
import psutil, torch
from mergeloom.engine.run.torch_arrays import use_one_thread

numbers = torch.full((256,), 2.0, dtype=torch.float64)
begun = []
process = psutil.Process()

def work():
    {first}
    before = process.num_threads()
    numbers.log_()
    begun.append(process.num_threads() - before)

thread = threading.Thread(target=work)
thread.start()
thread.join()
print(*begun)
"""


def test_a_computing_thread_starts_no_other_threads() -> None:
    code = LOGARITHMS.format(first="use_one_thread()")
    found = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True
    )
    assert found.stdout == "0\n"
