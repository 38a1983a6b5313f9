"""The gallery of what goes wrong while a merge runs: what is said, as text that people review.

Like `test_mistakes`; ``pytest tests/mergeloom/test_failures.py --review`` writes it anew. What
follows ``#`` in a command is what happens while it runs: one of `EVENTS`.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mergeloom.engine.hardware import process
from mergeloom.engine.output.lock import lock_directory
from mergeloom.engine.storage.file_system import Files
from mergeloom.report.meter import Meter
from tests.mergeloom.gallery import answered, mistakes, said_by
from tests.planners.support import llama, load_tensors, write_checkpoint

PAGE = Path(__file__).parent / "failures.txt"
TEXT = PAGE.read_text(encoding="utf-8")

Patch = pytest.MonkeyPatch
CONFIG = """merge_method: linear
models:
  - {model: a, parameters: {weight: 1}}
  - {model: b, parameters: {weight: 1}}
"""


def _fails(name: str, code: int) -> Callable[[Patch], None]:
    """Let a call of the file system return an error, as soon as the merge runs."""

    def happen(patch: Patch) -> None:
        def call(self: Any, *given: Any) -> Any:
            if Path("out", ".mergeloom").is_dir() or name == "make_directory":
                raise OSError(code, os.strerror(code))
            return true_call(self, *given)

        true_call = getattr(Files, name)
        patch.setattr(Files, name, call)

    return happen


def _first_read(act: Callable[[], object]) -> Callable[[Patch], None]:
    """Let something happen when the first bytes of an input are read."""

    def happen(patch: Patch) -> None:
        left = [act]

        def read(self: Any, *given: Any) -> Any:
            while left:
                left.pop()()
            return true_read(self, *given)

        true_read = Files.read
        patch.setattr(Files, "read", read)

    return happen


def _unreadable(patch: Patch) -> None:
    def read(self: Any, *given: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    patch.setattr(Files, "read", read)


def _change() -> None:
    weights = Path("a/model.safetensors")
    content = weights.read_bytes()
    weights.write_bytes(content[:-4] + bytes(4))
    os.utime(weights, (1, 1))


def _interrupt(patch: Patch) -> None:
    def snapshot(self: Any, counters: Any) -> Any:
        if counters.merges_done:
            raise KeyboardInterrupt
        return true_snapshot(self, counters)

    true_snapshot = Meter.snapshot
    patch.setattr(Meter, "snapshot", snapshot)


def _memory(patch: Patch) -> None:
    def snapshot(self: Any, counters: Any) -> None:
        raise MemoryError

    patch.setattr(Meter, "snapshot", snapshot)


def _another(patch: Patch) -> Callable[[], None]:
    Path("out/.mergeloom").mkdir(parents=True, exist_ok=True)
    return lock_directory(Path("out/.mergeloom"))


def _small(patch: Patch) -> None:
    usage = shutil.disk_usage(".")
    patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))


class _Full(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


FULL = "stdout is a full disk"
EVENTS: dict[str, Callable[[Patch], Callable[[], None] | None]] = {
    "the disk is full": _fails("write", errno.ENOSPC),
    "the quota is used up": _fails("allocate", errno.EDQUOT),
    "the disk of the output is mounted read-only": _fails("make_directory", errno.EROFS),
    "nobody may write there": _fails("make_directory", errno.EACCES),
    "the disk of an input fails": _fails("read", errno.EIO),
    "the weights cannot be read": _unreadable,
    "a network folder has gone": _fails("read", errno.ESTALE),
    "an input is overwritten": _first_read(_change),
    "an input is cut": _first_read(lambda: os.truncate("a/model.safetensors", 4000)),
    "Ctrl+C": _interrupt,
    "the system has no memory left": _memory,
    "another process merges into it": _another,
    "10 kB are free": _small,
    FULL: lambda patch: None,  # see `answer_of`
}


TOLD = (
    "warning|error|interrupted|merged|writes .* too little|model|the same"
    "|'out' (is|was|has|holds a merge whose)"
)
"""How lines begin that are shown; of a plan and of a table of figures nothing is."""


@contextlib.contextmanager
def happening(command: str) -> Iterator[None]:
    """Let what is written after ``#`` happen while a command runs."""
    event = command.partition("  # ")[2]
    with pytest.MonkeyPatch.context() as patch:
        release = EVENTS[event](patch) if event else None
        try:
            yield
        finally:
            if release is not None:
                release()


def answer_of(command: str) -> str:
    """What a command of the gallery answers; other programs prepare something and say nothing."""
    if not command.startswith("mergeloom "):
        assert os.system(command) == 0
        return ""
    with happening(command):
        lines, status = said_by(command, _Full() if command.endswith(FULL) else None)
    told = [line if re.match(TOLD, line) else "…\n" for line in lines]
    told = [line for i, line in enumerate(told) if line != "…\n" or told[i - 1 : i] != [line]]
    text = "".join(told).replace(str(Path.cwd()), "/here") + f"[{status}]\n"
    text = re.sub(r"\d+(?= tensors? (are|were))|\d+ %, \d+(?= of)", "N", text)  # by chance
    text = re.sub(r"(?<=sound: )\d+|(?<=and )[\d.]+ k?B(?= of)|[\d.]+ k?B(?=, equal)", "N", text)
    return re.sub(r" in [\d.]+ s \(.*?\)|, header \w+", "", text)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Checkpoints, sound ones and others, in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(process, "devices", lambda *_: ())
    for seed, name in enumerate("ab"):
        llama(Path(name), seed=seed)
    name = "model.layers.1.mlp.up_proj.weight"
    for folder, value in (("broken", float("nan")), ("large", 3e38)):
        tensors = load_tensors(llama(Path(folder), seed=2))
        tensors[name] = torch.full_like(tensors[name], value)
        config = (Path(folder) / "config.json").read_text()
        write_checkpoint(Path(folder), tensors, {})
        (Path(folder) / "config.json").write_text(config)
    Path("linear.yml").write_text(CONFIG)
    return tmp_path


def test_messages_of_failures_are_the_reviewed_ones(
    models: Path, request: pytest.FixtureRequest
) -> None:
    text = answered(TEXT, answer_of)
    if request.config.getoption("review"):
        PAGE.write_text(text, encoding="utf-8")
    else:
        assert text == TEXT


def test_every_failure_is_in_the_gallery_and_none_is_an_internal_error() -> None:
    every = list(mistakes(TEXT))
    shown = {command.partition("  # ")[2] for mistake in every for command, _ in mistake.answers}
    assert shown - {""} == EVENTS.keys()
    for mistake in every:
        said = "".join(text for _, text in mistake.answers)
        assert "internal error" not in said, mistake.title
        assert "Traceback" not in said, mistake.title
