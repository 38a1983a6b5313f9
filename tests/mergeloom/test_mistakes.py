"""The gallery of mistakes: what the program answers to each, as text that people review.

The files in ``mistakes/`` hold both: files that somebody wrote, commands, and below each command
what is printed. ``pytest tests/mergeloom/test_mistakes.py --review`` writes the answers anew; read
them before they are committed. Mistakes are from mergekit's issues where a number says so, from
published configurations, and from trials of this program.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mergeloom.cli import run
from mergeloom.engine.hardware import process
from scripts.fixtures.tokenizer_files import tokenizer_files
from tests.planners.support import llama, write_checkpoint

GALLERY = Path(__file__).parent / "mistakes"
LINEAR = """merge_method: linear
models:
  - {model: a, parameters: {weight: 1}}
  - {model: b, parameters: {weight: 1}}
"""


@dataclass(frozen=True)
class Mistake:
    """One of the gallery: how it is called, files to write, commands, and what they answer."""

    title: str
    files: tuple[tuple[str, str], ...]
    answers: tuple[tuple[str, str], ...]

    def text(self) -> str:
        files = "".join(f"-- {name}\n{content}" for name, content in self.files)
        answers = "".join(f"$ {command}\n{answer}" for command, answer in self.answers)
        return f"== {self.title}\n{files}{answers}"


def mistakes(text: str) -> Iterator[Mistake]:
    """The mistakes of one file of the gallery."""
    for part in re.split(r"^== ", text, flags=re.MULTILINE)[1:]:
        title, _, rest = part.rstrip("\n").partition("\n")
        written, *commands = re.split(r"^\$ ", rest + "\n", flags=re.MULTILINE)
        files = re.split(r"^-- ", written, flags=re.MULTILINE)[1:]
        yield Mistake(
            title,
            tuple(_halves(each) for each in files),
            tuple(_halves(each) for each in commands),
        )


def _halves(text: str) -> tuple[str, str]:
    first, _, rest = text.partition("\n")
    return first, rest


PAGES = {page.stem: page.read_text(encoding="utf-8") for page in sorted(GALLERY.glob("*.txt"))}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of checkpoints, sound ones and others."""
    folder = tmp_path_factory.mktemp("mistakes")
    for seed, name in enumerate(("base", "a", "b")):
        llama(folder / name, seed=seed)
    llama(folder / "deep", layers=6)
    llama(folder / "wide", width=16)
    llama(folder / "more-words", vocabulary=34)
    write_checkpoint(
        folder / "gpt",
        [f"transformer.h.{i}.attn.c_attn.weight" for i in range(4)],
        {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_layer": 4},
    )
    llama(folder / "shard-missing", shards=3)
    (folder / "shard-missing" / "model-00002-of-00003.safetensors").unlink()
    weights = llama(folder / "cut") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    pointer = llama(folder / "pointer") / "model.safetensors"
    pointer.write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9942981696\n"
    )
    (llama(folder / "weightless") / "model.safetensors").unlink()
    (llama(folder / "no-config") / "config.json").unlink()
    for name, token in (("words", "<a>"), ("other-words", "<b>")):
        files = tokenizer_files()
        files["tokenizer.json"]["added_tokens"][-1]["content"] = token
        for file, content in files.items():
            (llama(folder / name, vocabulary=512) / file).write_text(json.dumps(content))
    (folder / "adapter").mkdir()
    factor = torch.ones(2, 8)
    key = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file(
        {f"{key}.lora_A.weight": factor, f"{key}.lora_B.weight": factor.T.contiguous()},
        folder / "adapter" / "adapter_model.safetensors",
    )
    (folder / "adapter" / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "base", "r": 2})
    )
    (folder / "pipeline").mkdir()
    (folder / "pipeline" / "model_index.json").write_text(
        json.dumps({"_class_name": "StableDiffusionXLPipeline"})
    )
    config = llama(folder / "quantised") / "config.json"
    settings = {"quantization_config": {"quant_method": "aqlm"}}
    config.write_text(json.dumps({**json.loads(config.read_text()), **settings}))
    (folder / "full").mkdir()
    (folder / "full" / "thesis.txt").write_text("do not lose this")
    return folder


def answer(command: str) -> str:
    """What a command prints, its warnings and errors last, and how it ends."""
    program, *words = shlex.split(command)
    assert program == "mergeloom"
    said = io.StringIO()
    before, sys.argv = sys.argv, ["mergeloom", *words]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status = run()
    finally:
        sys.argv = before
    lines = said.getvalue().splitlines(keepends=True)
    first = next((i for i, line in enumerate(lines) if line.startswith(("warn", "err"))), 0)
    text = "".join(["…\n"] * (first > 0) + lines[first:])
    return re.sub(r"\d+(?= ?MiB)", "N", f"{text}[{status}]\n")


@pytest.mark.parametrize("page", PAGES)
def test_what_is_answered_is_what_was_reviewed(
    page: str, models: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(models)
    monkeypatch.setattr(process, "devices", lambda *_: ())
    (models / "linear.yml").write_text(LINEAR)
    introduction = PAGES[page].partition("\n\n")[0]
    parts = [introduction]
    for mistake in mistakes(PAGES[page]):
        for name, content in mistake.files:
            (models / name).write_text(content)
        answers = tuple((command, answer(command)) for command, _ in mistake.answers)
        parts.append(Mistake(mistake.title, mistake.files, answers).text().rstrip("\n"))
    text = "\n\n".join(parts) + "\n"
    if request.config.getoption("review"):
        (GALLERY / f"{page}.txt").write_text(text, encoding="utf-8")
    else:
        assert text == PAGES[page]


def test_there_are_sixty_and_each_says_what_to_do() -> None:
    every = [each for text in PAGES.values() for each in mistakes(text)]
    assert len(every) >= 60
    assert len({each.title for each in every}) == len(every)
    for mistake in every:
        assert mistake.answers, mistake.title
        last = mistake.answers[-1][1]
        assert "this should not happen" not in last, mistake.title
        assert "Traceback" not in last, mistake.title
