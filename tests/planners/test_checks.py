"""Models that do not fit each other, or their own configuration, are refused or named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mergeloom.engine.base.errors import CheckpointError, ConfigError
from tests.planners.support import llama, llamas, load_tensors, plan_text, write_checkpoint

LINEAR = (
    "merge_method: linear\nmodels:\n"
    "- {model: a, parameters: {weight: 1}}\n- {model: b, parameters: {weight: 1}}\n"
)
STACK = (
    "merge_method: passthrough\nslices:\n"
    "- sources: [{model: a, layer_range: [0, 3]}]\n- sources: [{model: b, layer_range: [2, 4]}]\n"
)


def change(directory: Path, tensors: dict[str, torch.Tensor] | None = None, **config: Any) -> None:
    old = json.loads((directory / "config.json").read_text())
    write_checkpoint(directory, tensors or load_tensors(directory), old | config)


def renamed(directory: Path, old: str, new: str) -> None:
    tensors = load_tensors(directory)
    change(directory, {name.replace(old, new): tensor for name, tensor in tensors.items()})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    llamas(tmp_path, "ab")
    return tmp_path


def test_two_naming_schemes_are_refused_unless_allowed(folder: Path) -> None:
    renamed(folder / "b", "mlp.up_proj.", "feed_forward.w3.")
    words = "layer 0 of 'a' has 'mlp.up_proj.weight', layer 0 of 'b' 'feed_forward.w3.weight'"
    with pytest.raises(CheckpointError, match=f"{words} in its place.*--allow-different-arch"):
        plan_text(LINEAR, folder)
    plan = plan_text(LINEAR, folder, allow_different_architectures=True)
    assert any(words in warning for warning in plan.warnings)
    assert plan.explain("model.layers.0.feed_forward.w3.weight").copied_because


def test_a_stack_of_two_architectures_is_refused_unless_allowed(folder: Path) -> None:
    renamed(folder / "b", "mlp.up_proj.", "feed_forward.w3.")
    words = "layer 3 of the output has 'feed_forward.w3.weight' from layer 2 of 'b' and lacks"
    with pytest.raises(CheckpointError, match=words):
        plan_text(STACK, folder)
    assert plan_text(STACK, folder, allow_different_architectures=True).layers == 5


def test_a_stack_of_two_sizes_is_refused(tmp_path: Path) -> None:
    llama(tmp_path / "a")
    llama(tmp_path / "b", width=16)
    words = "layer 3 of the output, from layer 2 of 'b', has 'input_layernorm.weight' of 16"
    for allowed in (False, True):
        with pytest.raises(CheckpointError, match=words):
            plan_text(STACK, tmp_path, allow_different_architectures=allowed)


def test_another_number_of_heads_is_refused_unless_allowed(folder: Path) -> None:
    change(folder / "a", num_attention_heads=4)
    change(folder / "b", num_attention_heads=2)
    words = "'num_attention_heads' differs: 4 in 'a', 2 in 'b'"
    for text in (LINEAR, STACK):
        with pytest.raises(CheckpointError, match=f"{words}.*--allow-different-architectures"):
            plan_text(text, folder)
        plan = plan_text(text, folder, allow_different_architectures=True)
        assert any(words in warning for warning in plan.warnings)


def test_configurations_that_disagree_are_named(folder: Path) -> None:
    change(folder / "a", rope_theta=1e4)
    change(folder / "b", rope_theta=1e6)
    for text in (LINEAR, STACK):
        (warning,) = plan_text(text, folder).warnings
        assert "'rope_theta' differs: 10000.0 in 'a', 1000000.0 in 'b'" in warning


def test_values_that_the_tensors_contradict_are_named(folder: Path) -> None:
    change(folder / "b", num_hidden_layers=5, vocab_size=33, hidden_size=9)
    assert plan_text(LINEAR, folder).warnings == (
        "the config.json of 'b' says num_hidden_layers 5, its tensors have 4 layers",
        "the config.json of 'b' says vocab_size 33, 'model.embed_tokens.weight' has 32 rows",
        "the config.json of 'b' says hidden_size 9, 'model.embed_tokens.weight' has 8 columns",
    )


def test_rows_of_codebooks_are_no_contradiction(folder: Path) -> None:
    """Kyutai's embedding has rows for codebooks besides those for tokens."""
    change(folder / "b", vocab_size=20, codebook_vocab_size=12)
    assert not any("has 32 rows" in each for each in plan_text(LINEAR, folder).warnings)


def test_the_width_of_heads_is_not_that_of_the_model(folder: Path) -> None:
    """Classes write it before the model's, and it may happen to have the embedding's width."""
    for name in "ab":
        change(folder / name, head_dim=8)
    change(folder / "b", hidden_size=9)
    assert any("says hidden_size 9," in each for each in plan_text(LINEAR, folder).warnings)


def test_a_count_of_another_tower_contradicts_nothing(folder: Path) -> None:
    config = json.loads((folder / "b" / "config.json").read_text())
    del config["num_hidden_layers"]
    config["vision_config"] = {"num_hidden_layers": 7}
    write_checkpoint(folder / "b", load_tensors(folder / "b"), config)
    assert plan_text(LINEAR, folder).warnings == ()


def test_a_depth_that_no_key_counts_is_refused(folder: Path) -> None:
    change(folder / "a", num_hidden_layers=5)
    with pytest.raises(ConfigError, match="its counts differ"):
        plan_text(STACK, folder)


def test_integers_beside_a_matrix_are_refused(folder: Path) -> None:
    tensors = load_tensors(folder / "b")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = torch.zeros(32, 1, dtype=torch.uint8)
    change(folder / "b", tensors)
    for text in (LINEAR, LINEAR.replace("a,", "x,").replace("b,", "a,").replace("x,", "b,")):
        with pytest.raises(CheckpointError, match="quantised"):
            plan_text(text, folder)
