"""Outputs load in transformers and generate: decoders stacked and blended, tied or not, experts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mergeloom
from scripts.fixtures.checkpoints import make


def generate(directory: Path) -> str:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model, report = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    tokens = tokenizer("hello there", return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**tokens, max_new_tokens=5, do_sample=False)
    assert out.shape[1] > tokens["input_ids"].shape[1]
    return str(tokenizer.decode(out[0]))


def stack(first: Path, second: Path, layers: int) -> dict[str, Any]:
    return {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": str(first), "layer_range": [0, layers]}]},
            {"sources": [{"model": str(second), "layer_range": [layers - 1, layers]}]},
            {"sources": [{"model": str(second), "layer_range": [layers - 1, layers]}]},
        ],
        "dtype": "bfloat16",
    }


@pytest.mark.parametrize(("shape", "tied"), [("tiny", True), ("tiny", False), ("moe", None)])
def test_stacks_load_and_generate(tmp_path: Path, shape: str, tied: bool | None) -> None:
    first, second = (
        make(tmp_path / name, shape, tied=tied, layers=2, seed=seed, finetune_of=0)
        for seed, name in enumerate(("first", "second"), 1)
    )
    mergeloom.merge(stack(first, second, 2), tmp_path / "out", max_shard_size="100MB")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == 4
    assert generate(tmp_path / "out")
    before = (first / "tokenizer_config.json").read_bytes()
    assert (tmp_path / "out" / "tokenizer_config.json").read_bytes() == before


def test_a_blend_of_a_tied_and_an_untied_model_is_untied(tmp_path: Path) -> None:
    tied = make(tmp_path / "tied", "tiny", tied=True, seed=1)
    untied = make(tmp_path / "untied", "tiny", tied=False, seed=2)
    config = {
        "merge_method": "slerp",
        "models": [str(tied), str(untied)],
        "base_model": str(tied),
        "parameters": {"t": 0.5},
        "out_dtype": "float16",
    }
    mergeloom.merge(config, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["tie_word_embeddings"] is False
    assert "float16" in (written.get("torch_dtype"), written.get("dtype"))
    assert generate(tmp_path / "out")
