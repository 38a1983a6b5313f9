"""Runs mergekit in its own environment, and reads its output."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.fixtures.environment import ROOT

if TYPE_CHECKING:
    from torch import Tensor


_VARIABLES = {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}


def run_mergekit(
    merges: Sequence[tuple[Mapping[str, Any], Path]], environment: Path, seed: int = 0
) -> list[str | None]:
    """Run all configurations with mergekit in one process; return an error or ``None`` for each.

    Raises:
        OSError: the process cannot be started, or ends early.
    """
    lines = [
        json.dumps({"config": config, "output": str(output), "seed": seed})
        for config, output in merges
    ]
    command = [
        str(environment / "bin" / "python"),
        str(ROOT / "scripts" / "conformance" / "mergekit_worker.py"),
    ]
    done = subprocess.run(
        command,
        input="\n".join(lines) + "\n",
        env={**os.environ, **_VARIABLES},
        capture_output=True,
        text=True,
        check=False,
    )
    answers = [json.loads(line)["error"] for line in done.stdout.splitlines()]
    if done.returncode != 0 or len(answers) != len(merges):
        lines = done.stderr.strip().splitlines()
        raise OSError(f"mergekit ended early: {lines[-1] if lines else done.returncode}")
    return answers


def load(directory: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint."""
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        tensors.update(load_file(path))
    return tensors
