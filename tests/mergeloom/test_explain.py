"""Explaining one tensor says what the whole plan says of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import mergeloom

COMMON = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 40}
FAMILIES: dict[str, Callable[[], Any]] = {
    "tied": lambda: transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
            **COMMON, num_hidden_layers=3, num_key_value_heads=1, tie_word_embeddings=True
        )
    ),
    "experts": lambda: transformers.MixtralForCausalLM(
        transformers.MixtralConfig(
            **COMMON, num_hidden_layers=2, num_key_value_heads=1, num_local_experts=2
        )
    ),
    "encoder and decoder": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    ),
}
TIES = """
merge_method: ties
base_model: a
models:
  - model: b
    parameters: {weight: [0.1, 0.9], density: [{filter: mlp, value: 0.3}, {value: 0.5}]}
  - model: c
    parameters: {weight: [{filter: .1., value: [0.2, 0.8]}, {value: 1}], density: 0.7}
dtype: bfloat16
"""


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tensor_is_explained_as_in_the_whole_plan(family: str, tmp_path: Path) -> None:
    for seed, name in enumerate("abc"):
        torch.manual_seed(seed)
        FAMILIES[family]().save_pretrained(tmp_path / name)
    config = tmp_path / "c.yml"
    config.write_text(TIES)
    planned = mergeloom.plan(config, search=tmp_path, device="cpu")
    whole = {each.tensor: each for each in mergeloom.explain(planned).tensors}
    assert len(whole) > 10
    assert mergeloom.explain(config, search=tmp_path).tensors == tuple(whole.values())
    for name, expected in list(whole.items())[::5]:
        alone = mergeloom.explain(config, name, search=tmp_path)
        assert alone.tensors == (expected,) == mergeloom.explain(planned, name).tensors


@pytest.mark.parametrize(
    ("asked", "remedy"),
    [
        ("q_proj.weigth", "did you mean 'q_proj.weight'?"),
        ("model.layer.0.mlp.up_proj.weight", "did you mean 'model.layers.0.mlp.up_proj.weight'?"),
        ("nosuch.weight", "there are 39 tensors, such as "),
    ],
)
def test_a_name_that_no_tensor_has_gets_a_whole_one(config: Path, asked: str, remedy: str) -> None:
    with pytest.raises(mergeloom.LoomError) as caught:
        mergeloom.explain(config, asked)
    assert caught.value.remedy.startswith(remedy)
