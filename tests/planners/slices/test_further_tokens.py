"""Layers that predict further tokens (MTP) belong to no stack, and need not be in every model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import mergeloom
from tests.planners.support import LLAMA_LAYER, llama_names, load_tensors, write_checkpoint

DEPTH = 3
PREDICTOR = ("eh_proj.weight", "enorm.weight", "hnorm.weight", "shared_head.norm.weight")
CONFIG = {"architectures": ["Glm4MoeForCausalLM"], "model_type": "glm4_moe", "hidden_size": 8}


def numbered(directory: Path, seed: int, predictors: int = 1, counted: bool = True) -> Path:
    """A model whose predictors are numbered after its layers, as DeepSeek-V3's and GLM-4.5's."""
    found = llama_names(DEPTH)
    for layer in range(DEPTH, DEPTH + predictors):
        found += [f"model.layers.{layer}.{name}" for name in (*LLAMA_LAYER, *PREDICTOR)]
    config = {**CONFIG, "num_hidden_layers": DEPTH, "vocab_size": 32}
    if counted and predictors:
        config["num_nextn_predict_layers"] = predictors
    return write_checkpoint(directory, found, config, seed=seed)


def apart(directory: Path, seed: int, predictors: int) -> Path:
    """A model with predictors in a module of their own, as Qwen3-Next's and MiMo's."""
    found = llama_names(DEPTH)
    for layer in range(predictors):
        found += [f"mtp.layers.{layer}.{name}" for name in LLAMA_LAYER]
    return write_checkpoint(
        directory, found, {**CONFIG, "num_hidden_layers": DEPTH, "vocab_size": 32}, seed=seed
    )


def merged(folder: Path, text: str) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    path = folder / "config.yml"
    path.write_text(text)
    mergeloom.merge(path, folder / "out", search=[folder])
    config = json.loads((folder / "out" / "config.json").read_text())
    return load_tensors(folder / "out"), config


def mean(folder: Path, first: str, second: str) -> dict[str, torch.Tensor]:
    """The mean of what both have, and what only one of them has."""
    one, other = load_tensors(folder / first), load_tensors(folder / second)
    both = {name: (one[name] + other[name]) / 2 for name in one.keys() & other.keys()}
    return {**other, **one, **both}


LINEAR = "merge_method: linear\nmodels: [{model: %s}, {model: %s}]\nparameters: {weight: 1}\n"


@pytest.mark.parametrize(("first", "second"), [("a", "b"), ("b", "a"), ("a", "c"), ("c", "a")])
def test_predictors_of_some_models_are_merged_without_the_others(
    tmp_path: Path, first: str, second: str
) -> None:
    for seed, (name, predictors) in enumerate({"a": 1, "b": 0, "c": 2}.items()):
        numbered(tmp_path / name, seed, predictors)
    found, config = merged(tmp_path, LINEAR % (first, second))
    torch.testing.assert_close(found, mean(tmp_path, first, second))
    predictors = 2 if "c" in (first, second) else 1
    assert (config["num_hidden_layers"], config["num_nextn_predict_layers"]) == (DEPTH, predictors)


def test_a_predictor_that_no_key_counts_stays_behind_the_layers_of_a_stack(tmp_path: Path) -> None:
    """The class reads as many layers as its configuration counts, and this one after them."""
    before = load_tensors(numbered(tmp_path / "a", 0, counted=False))
    found, config = merged(
        tmp_path,
        "merge_method: passthrough\nslices:\n"
        "  - sources: [{model: a, layer_range: [0, 3]}]\n"
        "  - sources: [{model: a, layer_range: [2, 3]}]\n",
    )
    assert config["num_hidden_layers"] == DEPTH + 1
    for layer, origin in enumerate((0, 1, 2, 2, 3)):
        name = "model.layers.{}.mlp.up_proj.weight"
        torch.testing.assert_close(found[name.format(layer)], before[name.format(origin)])
    assert f"model.layers.{DEPTH + 1}.eh_proj.weight" in found
    assert not any(f"layers.{DEPTH + 2}." in name for name in found)


@pytest.mark.parametrize(("first", "second"), [("a", "b"), ("b", "a"), ("a", "c"), ("c", "a")])
def test_predictors_in_a_module_of_their_own_are_no_stack(
    tmp_path: Path, first: str, second: str
) -> None:
    for seed, (name, predictors) in enumerate({"a": 2, "b": 0, "c": 1}.items()):
        apart(tmp_path / name, seed, predictors)
    found, _ = merged(tmp_path, LINEAR % (first, second))
    torch.testing.assert_close(found, mean(tmp_path, first, second))
