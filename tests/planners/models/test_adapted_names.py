"""Names of modules in adapters and models: of several towers, and of classes old and new."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import mergeloom
from mergeloom.engine.base.errors import CheckpointError
from mergeloom.planners.models.adapted_names import module_names
from tests.families.tables.vision import VISION
from tests.families.tiny import fill, make_model
from tests.planners.models.adapting import adapted_copy, check_against_peft, saved

FAMILIES = {family.name: family for family in VISION}

LLAVA_NEW = (
    "model.language_model.layers.0.mlp.up_proj",
    "model.language_model.layers.1.mlp.up_proj",
    "model.vision_tower.encoder.layers.0.mlp.fc1",
    "model.multi_modal_projector.linear_1",
    "model.language_model.embed_tokens",
    "lm_head",
)
LLAVA_BETWEEN = (*LLAVA_NEW[:2], "model.vision_tower.vision_model.encoder.layers.0.mlp.fc1",
                 *LLAVA_NEW[3:])  # fmt: skip
LLAVA_OLD = (
    "language_model.model.layers.0.mlp.up_proj",
    "language_model.model.layers.1.mlp.up_proj",
    "vision_tower.vision_model.encoder.layers.0.mlp.fc1",
    "multi_modal_projector.linear_1",
    "language_model.model.embed_tokens",
    "language_model.lm_head",
)
QWEN_NEW = (
    "model.language_model.layers.0.self_attn.q_proj",
    "model.visual.blocks.0.attn.qkv",
    "model.visual.merger.mlp.0",
    "lm_head",
)
QWEN_OLD = (
    "model.layers.0.self_attn.q_proj",
    "visual.blocks.0.attn.qkv",
    "visual.merger.mlp.0",
    "lm_head",
)
MLLAMA_NEW = (
    "model.language_model.layers.0.cross_attn.q_proj",
    "model.vision_model.transformer.layers.0.mlp.fc1",
    "model.vision_model.global_transformer.layers.0.mlp.fc1",
    "model.multi_modal_projector",
)
MLLAMA_OLD = (
    "language_model.model.layers.0.cross_attn.q_proj",
    "vision_model.transformer.layers.0.mlp.fc1",
    "vision_model.global_transformer.layers.0.mlp.fc1",
    "multi_modal_projector",
)
GPT2 = ("h.0.attn.c_attn", "wte"), ("transformer.h.0.attn.c_attn", "transformer.wte")
BERT = (
    ("encoder.layer.0.output.dense", "pooler.dense"),
    ("bert.encoder.layer.0.output.dense", "bert.pooler.dense"),
)
MIXTRAL = (
    ("model.layers.0.mlp.experts", "model.layers.0.mlp.gate"),
    ("model.layers.0.block_sparse_moe.experts", "model.layers.0.block_sparse_moe.gate"),
)


@pytest.mark.parametrize(
    ("adapter", "model"),
    [
        (LLAVA_NEW, LLAVA_OLD),
        (LLAVA_OLD, LLAVA_NEW),
        (LLAVA_BETWEEN, LLAVA_OLD),
        (LLAVA_BETWEEN, LLAVA_NEW),
        (LLAVA_OLD, LLAVA_BETWEEN),
        (LLAVA_NEW, LLAVA_BETWEEN),
        (QWEN_NEW, QWEN_OLD),
        (QWEN_OLD, QWEN_NEW),
        (MLLAMA_NEW, MLLAMA_OLD),
        (MLLAMA_OLD, MLLAMA_NEW),
        GPT2,
        GPT2[::-1],
        BERT,
        BERT[::-1],
        MIXTRAL,
    ],
)
def test_each_tower_has_a_prefix_of_its_own(
    adapter: tuple[str, ...], model: tuple[str, ...]
) -> None:
    more = [name.replace(".0.", ".7.") for name in model]  # layers that the adapter leaves alone
    found = module_names(adapter, {*model, *more}, lambda mine, theirs: True)
    assert found == (dict(zip(adapter, model, strict=True)), [])


LAYER = "layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("adapter", "model"),
    [
        ("model.layers.9.self_attn.q_proj", [f"model.{LAYER}"]),
        (f"model.{LAYER}", [f"thinker.model.{LAYER}", f"talker.model.{LAYER}"]),
        (f"text.{LAYER}", [f"vision_tower.{LAYER}", "llm.blocks.0.attn"]),
        (f"model.encoder.{LAYER}", [f"model.decoder.{LAYER}"]),
        ("bert.pooler.dense", ["cls.predictions.transform.dense"]),
    ],
    ids=["another layer", "two like it", "an image's", "a decoder's", "another's last part"],
)
def test_a_module_is_not_taken_for_another(adapter: str, model: list[str]) -> None:
    assert module_names([adapter], model, lambda mine, theirs: True) == ({}, [adapter])


def test_sizes_tell_which_of_two_towers_it_is() -> None:
    model = [f"thinker.model.{LAYER}", f"talker.model.{LAYER}"]
    found, _ = module_names([f"model.{LAYER}"], model, lambda mine, theirs: "talker" in theirs)
    assert found == {f"model.{LAYER}": f"talker.model.{LAYER}"}


def save(name: str, settings: dict[str, Any], folder: Path) -> Any:
    family = FAMILIES[name]

    def make() -> Any:
        model = make_model(family.cls, family.sizes, depth=2)
        fill(model, 0)
        return model

    return saved(make, settings, folder)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "mllama", "gemma3 with images"])
def test_language_model_and_vision_tower_trained_together_agree_with_peft(
    name: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    adapted = save(name, {"target_modules": "all-linear"}, tmp_path)
    assert check_against_peft(adapted, tmp_path) > 20


def test_an_adapter_of_a_tower_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save("llava", {"target_modules": "all-linear"}, tmp_path)
    file = tmp_path / "base" / "model.safetensors"
    words = {name: tensor for name, tensor in load_file(file).items() if "vision_tower" not in name}
    save_file(words, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"does not have: 'model\.vision_tower\."):
        mergeloom.plan(adapted_copy(tmp_path))
