"""Merges of a few milliseconds with several shards and both small and large tensors."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from mergeloom.engine.hardware.spec import Machine
from mergeloom.engine.job import Job
from mergeloom.engine.output.manifest import DIRECTORY
from mergeloom.methods.ops.arithmetic import TORCH, cpu_arithmetic
from scripts.fixtures.shapes import Shape

KINDS: dict[str, dict[str, Any]] = {
    "passthrough": {"merge_method": "passthrough", "models": ["one"]},
    "linear": {"merge_method": "linear", "models": ["base", "one"], "parameters": {"weight": 1}},
}
MACHINE = Machine(2, 300 << 20, 0, cpu_arithmetic(), TORCH)
"""The machine that schedules assume, so that they do not depend on this one."""

_SHAPE = Shape("llama", 2, 64, 256, 4, 2, 16, 3000)
_SHARD_BYTES = 300_000


def make_models(directory: Path) -> Path:
    """Generate the inputs of all `KINDS`."""
    from scripts.fixtures.checkpoints import make

    make(directory / "base", _SHAPE)
    make(directory / "one", _SHAPE, finetune_of=0, seed=1)
    return directory


def make_job(kind: str, models: Path) -> Job:
    """The job that the engine runs for one of `KINDS`."""
    from mergeloom import api

    planned = api.plan(
        {"dtype": "bfloat16", **KINDS[kind]},
        ram="8GiB",
        search=[models],
        max_shard_size=_SHARD_BYTES,
        observer=api.Observer(warned=lambda finding: None),  # shards are small on purpose
    )
    return planned.plan.job({})


def digests(output: Path) -> dict[str, str]:
    """SHA-256 of every file of an output, except its records."""
    return {
        path.relative_to(output).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(output.rglob("*"))
        if path.is_file() and path.parent.name != DIRECTORY
    }


def memory_directory() -> str | None:
    """A file system in memory, if there is one: the tests make thousands of syncs."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
