"""The gallery of mistakes: what the program answers to each, as text that people review.

The files in ``mistakes/`` hold both: files that somebody wrote, commands, and below each command
what is printed. ``pytest tests/mergeloom/test_mistakes.py --review`` writes the answers anew; read
them before they are committed. Mistakes are from mergekit's issues where a number says so, from
published configurations, and from trials of this program.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergeloom.engine.hardware import process
from scripts.fixtures.tokenizer_files import tokenizer_files
from tests.mergeloom.gallery import answer, answered, mistakes
from tests.planners.support import llama, llamas, write_checkpoint

GALLERY = Path(__file__).parent / "mistakes"
LINEAR = """merge_method: linear
models:
  - {model: a, parameters: {weight: 1}}
  - {model: b, parameters: {weight: 1}}
"""


PAGES = {page.stem: page.read_text(encoding="utf-8") for page in sorted(GALLERY.glob("*.txt"))}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of checkpoints, sound ones and others."""
    folder = tmp_path_factory.mktemp("mistakes")
    llamas(folder, ("base", "a", "b"))
    llama(folder / "deep", layers=6)
    llama(folder / "wide", width=16)
    llama(folder / "half", dtype=torch.bfloat16)
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
    cache = folder / "models--acme--c"
    shutil.copytree(folder / "a", cache / "snapshots" / "0123")
    qwen = folder / "qwen"
    shutil.copytree(folder / "a", qwen)
    described = json.loads((qwen / "config.json").read_text())
    described |= {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    (qwen / "config.json").write_text(json.dumps(described))
    tensors = load_file(qwen / "model.safetensors")
    for layer in range(described["num_hidden_layers"]):
        tensors[f"model.layers.{layer}.self_attn.q_norm.weight"] = torch.ones(8)
    save_file(tensors, qwen / "model.safetensors")
    (folder / "full").mkdir()
    (folder / "full" / "thesis.txt").write_text("do not lose this")
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_messages_about_mistakes_are_the_reviewed_ones(
    page: str, models: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(models)
    monkeypatch.setattr(process, "devices", lambda *_: ())
    (models / "linear.yml").write_text(LINEAR)
    text = answered(PAGES[page], answer)
    if request.config.getoption("review"):
        (GALLERY / f"{page}.txt").write_text(text, encoding="utf-8")
    else:
        assert text == PAGES[page]


def test_the_gallery_has_sixty_mistakes_and_each_message_has_a_remedy() -> None:
    every = [each for text in PAGES.values() for each in mistakes(text)]
    assert len(every) >= 60
    assert len({each.title for each in every}) == len(every)
    for mistake in every:
        assert mistake.answers, mistake.title
        last = mistake.answers[-1][1]
        assert "internal error" not in last, mistake.title
        assert "Traceback" not in last, mistake.title
