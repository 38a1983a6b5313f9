"""Folders of a model: those that belong to it are taken over, weights in others are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mergeloom.planners.plan import Plan
from tests.planners.support import llama, llamas, plan_text


def sentences(directory: Path, seed: int = 0, dense: bool = True) -> Path:
    """A model as sentence-transformers saves it, with a dense layer after pooling."""
    llama(directory, seed=seed)
    folders = ["", "1_Pooling", *(["2_Dense"] if dense else []), "3_Normalize"]
    listed = [{"idx": i, "name": str(i), "path": path} for i, path in enumerate(folders)]
    (directory / "modules.json").write_text(json.dumps(listed))
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text("{}")
    if dense:
        (directory / "2_Dense").mkdir()
        (directory / "2_Dense" / "config.json").write_text('{"in_features": 8}')
        tensors = {"linear.weight": torch.full((8, 8), float(seed))}
        save_file(tensors, directory / "2_Dense" / "model.safetensors")
    return directory


def planned(folder: Path) -> Plan:
    text = "models: [{model: a}, {model: b}]\nparameters: {weight: 1}\nmerge_method: linear\n"
    return plan_text(text, folder)


def names(plan: Plan) -> set[str]:
    return {file.name for file in plan.side_files}


def test_modules_of_sentence_transformers_are_copied(tmp_path: Path) -> None:
    sentences(tmp_path / "a")
    sentences(tmp_path / "b", seed=1)
    plan = planned(tmp_path)
    copied = {"1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"}
    assert copied <= names(plan)
    assert plan.warnings == (
        "'2_Dense/model.safetensors' is copied from 'a', not merged with that of 'b'",
    )


def test_equal_modules_cause_no_warning(tmp_path: Path) -> None:
    sentences(tmp_path / "a")
    sentences(tmp_path / "b")
    assert not planned(tmp_path).warnings


def test_modules_that_the_donor_lacks_are_named(tmp_path: Path) -> None:
    sentences(tmp_path / "a", dense=False)
    sentences(tmp_path / "b")
    plan = planned(tmp_path)
    assert not any(name.startswith("2_Dense") for name in names(plan))
    assert plan.warnings == ("weights in '2_Dense/' of 'b' are neither merged nor copied",)


@pytest.mark.parametrize("folder", ["onnx", "deep/er"])
def test_weights_in_other_folders_are_named(tmp_path: Path, folder: str) -> None:
    llamas(tmp_path, "ab")
    (tmp_path / "a" / folder).mkdir(parents=True)
    (tmp_path / "a" / folder / "model.onnx").write_bytes(b"x")
    (tmp_path / "a" / "images").mkdir()
    (tmp_path / "a" / "images" / "plot.png").write_bytes(b"x")
    (tmp_path / "a" / ".cache").mkdir()
    (tmp_path / "a" / ".cache" / "model.bin").write_bytes(b"x")
    first = folder.split("/", maxsplit=1)[0]
    warnings = planned(tmp_path).warnings
    assert warnings == (f"weights in '{first}/' of 'a' are neither merged nor copied",)


def test_named_chat_templates_are_copied(tmp_path: Path) -> None:
    llamas(tmp_path, "ab")
    (tmp_path / "a" / "additional_chat_templates").mkdir()
    (tmp_path / "a" / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    assert "additional_chat_templates/tool_use.jinja" in names(planned(tmp_path))


def test_modules_that_lie_elsewhere_are_not_followed(tmp_path: Path) -> None:
    sentences(tmp_path / "a")
    llama(tmp_path / "b", seed=1)
    listed = [{"path": "../b"}, {"path": "/etc"}, {"path": 7}, "x", {"path": "2_Dense/.."}]
    (tmp_path / "a" / "modules.json").write_text(json.dumps(listed))
    assert not any(".." in name or name.startswith("/") for name in names(planned(tmp_path)))


def test_shards_in_a_folder_that_the_index_names_are_read(tmp_path: Path) -> None:
    model = llama(tmp_path / "a", shards=2)
    index = model / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    (model / "shards").mkdir()
    for name in set(content["weight_map"].values()):
        (model / name).rename(model / "shards" / name)
    content["weight_map"] = {key: f"shards/{name}" for key, name in content["weight_map"].items()}
    index.write_text(json.dumps(content))
    assert not plan_text("models: [a]\nmerge_method: passthrough\n", tmp_path).warnings
    (model / "original").mkdir()
    save_file({"x": torch.zeros(1)}, model / "original" / "x.safetensors")
    plan = plan_text("models: [a]\nmerge_method: passthrough\n", tmp_path)
    assert plan.warnings == ("weights in 'original/' of 'a' are neither merged nor copied",)
