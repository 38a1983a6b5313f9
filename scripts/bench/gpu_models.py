"""Checkpoints for `scripts/run gpu`."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from scripts.bench.deadline import Deadline, OutOfTimeError
from scripts.bench.gpu_runs import Place
from scripts.fixtures.environment import ROOT
from scripts.fixtures.shapes import SHAPES

TUNES = 3
_MAKING_SECONDS = 120.0


@dataclass(frozen=True)
class Models:
    """Checkpoints of one shape: a base and its fine-tunes."""

    name: str
    layers: int
    base: Path
    tunes: tuple[Path, ...]


def make(place: Place, name: str, shape: str, layers: int | None) -> Models:
    """Make a base and its fine-tunes, all at once.

    Raises:
        OSError: one cannot be made.
        OutOfTimeError: there was no time.
    """
    work = place.work
    directories = [work / f"{name}-{n}" for n in range(TUNES + 1)]
    models = Models(name, layers or SHAPES[shape].layers, directories[0], tuple(directories[1:]))
    finished = work / f"{name}.made"
    if finished.exists():  # by an earlier run with the same --work
        return models
    allowed = place.deadline.within(_MAKING_SECONDS, 20)
    commands = []
    for number, directory in enumerate(directories):
        command = place.python(str(ROOT / "scripts" / "run"), "checkpoints", shape, str(directory))
        command += ["--force", "--seed", str(number)]
        command += ["--finetune-of", "0"] if number else []
        commands.append(command + (["--layers", str(layers)] if layers else []))
    environment = {**os.environ, **place.variables()}
    running = [
        subprocess.Popen(each, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for each in commands
    ]
    own = Deadline(allowed)
    try:
        for process in running:
            _, words = process.communicate(timeout=max(own.left, 0.1))
            if process.returncode:
                raise OSError(words.decode(errors="replace").strip()[-300:])
    except subprocess.TimeoutExpired as error:
        raise OutOfTimeError(f"checkpoints of {name} took more than {allowed:.0f} s") from error
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()
    finished.touch()
    return models
