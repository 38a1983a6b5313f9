"""Tensors that are copied: integers, constants, and what only one model has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mergeloom.engine.base.errors import CheckpointError
from tests.planners.support import (
    llama,
    llamas,
    load_tensors,
    made_of,
    plan_text,
    two,
    write_checkpoint,
)


def test_integers_are_copied_with_their_type(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        llama(tmp_path / name, seed=seed)
        tensors = load_tensors(tmp_path / name)
        tensors["model.position_ids"] = torch.arange(5)
        config = json.loads((tmp_path / name / "config.json").read_text())
        write_checkpoint(tmp_path / name, tensors, config)
    plan = plan_text(two() + "dtype: bfloat16", tmp_path)
    tensor = plan.explain("model.position_ids")
    assert (made_of(tensor), tensor.copied_because) == (
        [("a", "model.position_ids")],
        "it holds integers",
    )
    dtypes = {write.name: write.dtype.name for write in plan.graph.writes}
    assert dtypes["model.position_ids"] == "int64"
    (left,) = plan.unused
    assert (left.model, left.names) == ("b", ("model.position_ids",))
    assert left.reason == "integers are not merged: another model's are copied"
    assert dtypes["model.norm.weight"] == "bfloat16"


def test_integers_that_differ_are_reported(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        llama(tmp_path / name, seed=seed)
        tensors = load_tensors(tmp_path / name)
        tensors["model.position_ids"] = torch.arange(5) + seed
        config = json.loads((tmp_path / name / "config.json").read_text())
        write_checkpoint(tmp_path / name, tensors, config)
    plan = plan_text(two(), tmp_path)
    assert plan.warnings == (
        "'model.position_ids' is not merged, because it holds integers, and differs between "
        "models: copied from 'a'",
    )


def test_constants_that_differ_in_each_layer_are_reported_once(tmp_path: Path) -> None:
    """Rotary frequencies that one of the models has rounded."""
    for name, seed in (("a", 0), ("b", 1)):
        llama(tmp_path / name, seed=seed)
        tensors = load_tensors(tmp_path / name)
        layers = sum(part.endswith("q_proj.weight") for part in tensors)
        for i in range(layers):
            tensors[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = torch.ones(2) * (seed + 1)
        config = json.loads((tmp_path / name / "config.json").read_text())
        write_checkpoint(tmp_path / name, tensors, config)
    (warning,) = plan_text(two(), tmp_path).warnings
    assert warning == (
        "'model.layers.0.self_attn.rotary_emb.inv_freq' is not merged, because it is a constant, "
        "not a weight, and differs between models: copied from 'a', as are "
        f"{layers - 1} more of its kind in other layers"
    )


def test_a_tensor_that_only_one_model_has_is_copied_and_reported(tmp_path: Path) -> None:
    llamas(tmp_path, "ab")
    tensors = load_tensors(tmp_path / "b")
    tensors["model.layers.2.self_attn.q_proj.bias"] = torch.ones(8)
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    write_checkpoint(tmp_path / "b", tensors, config)
    words = "layer 2 of the output has 'self_attn.q_proj.bias' from layer 2 of 'b'"
    with pytest.raises(CheckpointError, match=words):
        plan_text(two(), tmp_path)
    plan = plan_text(two(), tmp_path, allow_different_architectures=True)
    tensor = plan.explain("model.layers.2.self_attn.q_proj.bias")
    assert (made_of(tensor)[0][0], tensor.copied_because) == ("b", "only one model has it")
    missing, unlike = plan.warnings
    assert missing == (
        "1 tensor is missing in 'a' and merged without it: 'model.layers.2.self_attn.q_proj.bias'"
    )
    assert words in unlike
