"""Checkpoints: complete, foreign, hostile."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mergeloom.engine.base.errors import CheckpointError, ConfigError
from mergeloom.engine.storage.safetensors import HeaderReader
from mergeloom.planners.models.checkpoint import INDEX, open_checkpoint
from tests.planners.support import llama, llama_names, llamas, load_tensors, plan_text


@pytest.mark.parametrize("shards", [1, 3])
def test_every_tensor_is_found(tmp_path: Path, shards: int) -> None:
    found = open_checkpoint(llama(tmp_path / "a", shards=shards))
    assert set(found.tensors) == set(llama_names(4))
    assert len(found.sources) == shards
    assert found.config["num_hidden_layers"] == 4


def test_identity_follows_the_content(tmp_path: Path) -> None:
    first = open_checkpoint(llama(tmp_path / "a")).identity
    assert open_checkpoint(tmp_path / "a").identity == first
    llama(tmp_path / "a", seed=1)
    assert open_checkpoint(tmp_path / "a").identity != first


def refusal(directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(directory)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_incomplete_checkpoints_name_what_is_missing(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refusal(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text("{}")
    assert "no .safetensors files" in refusal(tmp_path / "empty")
    (tmp_path / "empty" / "pytorch_model.bin").write_bytes(b"\x80")
    assert "save it again with torch.save, or as safetensors" in refusal(tmp_path / "empty")
    model = llama(tmp_path / "a", shards=3)
    index = json.loads((model / INDEX).read_text())
    index["weight_map"]["extra.weight"] = "model-00001-of-00003.safetensors"
    (model / INDEX).write_text(json.dumps(index))
    assert "lacks 'extra.weight', which the index lists" in refusal(model)
    (model / "model-00002-of-00003.safetensors").unlink()
    assert "lacks the shard 'model-00002-of-00003.safetensors'" in refusal(model)
    (model / INDEX).write_text("[")
    assert "is not valid JSON" in refusal(model)


def test_truncated_shards_are_refused(tmp_path: Path) -> None:
    model = llama(tmp_path / "a")
    shard = model / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert "is truncated" in refusal(model)


@pytest.mark.parametrize("name", ["../b/model.safetensors", "/etc/passwd", "x/../../y", "a\\b"])
def test_an_index_does_not_lead_out_of_the_checkpoint(tmp_path: Path, name: str) -> None:
    llama(tmp_path / "b")
    model = llama(tmp_path / "a", shards=2)
    index = {"weight_map": dict.fromkeys(llama_names(4), name)}
    (model / INDEX).write_text(json.dumps(index))
    assert "outside the checkpoint" in refusal(model)


def test_a_link_does_not_lead_out_of_the_checkpoint(tmp_path: Path) -> None:
    model = llama(tmp_path / "a", shards=2)
    shard = model / "model-00001-of-00002.safetensors"
    shutil.move(shard, tmp_path / "elsewhere.safetensors")
    shard.symlink_to(tmp_path / "elsewhere.safetensors")
    assert "leads outside the checkpoint's directory" in refusal(model)


def test_a_single_file_does_not_lead_out_of_the_checkpoint(tmp_path: Path) -> None:
    model = llama(tmp_path / "a")
    shutil.move(model / "model.safetensors", tmp_path / "elsewhere.safetensors")
    (model / "model.safetensors").symlink_to("../elsewhere.safetensors")
    assert "leads outside the checkpoint's directory" in refusal(model)


def test_a_link_into_a_hub_cache_is_followed(tmp_path: Path) -> None:
    """Older versions of the hub's library downloaded to a directory of links into its cache."""
    model = llama(tmp_path / "a", shards=2)
    blobs = tmp_path / "cache" / "models--owner--name" / "blobs"
    blobs.mkdir(parents=True)
    for path in list(model.iterdir()):
        shutil.move(path, blobs / path.name)
        path.symlink_to(blobs / path.name)
    assert set(open_checkpoint(model).tensors) == set(llama_names(4))
    assert plan_text("merge_method: passthrough\nmodels: [a]\n", tmp_path).side_files


def test_links_out_of_a_directory_that_imitates_the_hub_cache_are_refused(tmp_path: Path) -> None:
    model = llama(tmp_path / "x" / "snapshots" / "a")
    shutil.move(model / "model.safetensors", tmp_path / "x" / "secret")
    (model / "model.safetensors").symlink_to("../../secret")
    assert "leads outside the checkpoint's directory" in refusal(model)


def test_shards_without_an_index_are_read(tmp_path: Path) -> None:
    model = llama(tmp_path / "a", shards=3)
    (model / INDEX).unlink()
    assert set(open_checkpoint(model).tensors) == set(llama_names(4))
    (model / "model-00002-of-00003.safetensors").unlink()
    assert "has 2 of the 3 shards 'model-*-of-00003', and no index" in refusal(model)
    shutil.copy(model / "model-00001-of-00003.safetensors", model / "other.safetensors")
    (model / "model-00003-of-00003.safetensors").unlink()
    (model / "model-00001-of-00003.safetensors").rename(model / "model.1.safetensors")
    assert "is in 'model.1.safetensors' and in 'other.safetensors'" in refusal(model)


def test_pipes_and_devices_are_refused_without_waiting(tmp_path: Path) -> None:
    model = llama(tmp_path / "a", shards=2)
    for path in model.glob("*.safetensors"):
        path.unlink()
        os.mkfifo(path)
    assert "lacks the shard" in refusal(model)
    (model / INDEX).unlink()
    assert "no .safetensors files" in refusal(model)


BOMBS = {
    "lists": b"[" + b"[]," * 2_000_000 + b"0]",
    "numbers": b"[" + b"1," * 5_000_000 + b"0]",
    "deep": b"[" * 500_000,
    "number": b'{"a": ' + b"9" * 10_000 + b"}",
    "utf-16": "{}".encode("utf-16"),
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("name", [INDEX, "config.json"])
def test_json_that_would_fill_memory_is_refused(tmp_path: Path, bomb: str, name: str) -> None:
    model = llama(tmp_path / "a", shards=2)
    (model / name).write_bytes(BOMBS[bomb])
    assert f"{name}'" in refusal(model)


@pytest.mark.parametrize("name", ["a" * 300, "a\n", "\x1b[2J", "", ".", "\ud800"])
def test_impossible_shard_names_are_refused(tmp_path: Path, name: str) -> None:
    model = llama(tmp_path / "a", shards=2)
    (model / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    assert refusal(model).isprintable()


@pytest.mark.parametrize("name", ["config.json", INDEX, "tokenizer.json", "LICENSE"])
def test_small_files_do_not_lead_out_of_the_checkpoint_either(tmp_path: Path, name: str) -> None:
    """A link to somebody's keys would be copied to the output, and from there to the hub."""
    model = llama(tmp_path / "a", shards=2)
    content = (model / name).read_bytes() if (model / name).exists() else b"secret"
    (tmp_path / "secret").write_bytes(content)
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to("../secret")
    with pytest.raises(CheckpointError, match="leads outside the checkpoint's directory"):
        plan_text("merge_method: passthrough\nmodels: [a]\n", tmp_path)


def test_side_files_have_a_maximum_size(tmp_path: Path) -> None:
    model = llama(tmp_path / "a")
    (model / "tokenizer\n.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"has a file 'tokenizer\\n.json'"):
        plan_text("merge_method: passthrough\nmodels: [a]\n", tmp_path)
    (model / "tokenizer\n.json").unlink()
    for number in range(9):
        with open(model / f"tokenizer.{number}", "wb") as file:
            file.truncate(256 << 20)
    with pytest.raises(CheckpointError, match="more than 1000 files or 2 GiB"):
        plan_text("merge_method: passthrough\nmodels: [a]\n", tmp_path)


def test_code_and_templates_are_copied_unread(tmp_path: Path) -> None:
    model = llama(tmp_path / "a")
    config = json.loads((model / "config.json").read_text()) | {"auto_map": {"AutoModel": "evil.X"}}
    (model / "config.json").write_text(json.dumps(config))
    (model / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    template = "{{ ''.__class__.__mro__ }} {% for x in range(10**12) %}"
    (model / "chat_template.jinja").write_text(template)
    (model / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    plan = plan_text("merge_method: passthrough\nmodels: [a]\n", tmp_path)
    copied = {file.name: file for file in plan.side_files}
    assert b"".join(copied["evil.py"].pieces()) == (model / "evil.py").read_bytes()
    assert b"".join(copied["chat_template.jinja"].pieces()) == template.encode()
    assert "pytorch_model.bin" not in copied
    assert "evil" not in sys.modules
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "layers", ["[0, 1000000000]", "[-1, 2]", "[2, 1]", "[0, 1e30]", "[0, 1, 2]"]
)
def test_absurd_layer_ranges_are_refused_at_once(tmp_path: Path, layers: str) -> None:
    llama(tmp_path / "a")
    text = (
        f"merge_method: passthrough\nslices: [{{sources: [{{model: a, layer_range: {layers}}}]}}]"
    )
    with pytest.raises(ConfigError, match="layer_range"):
        plan_text(text, tmp_path)


def test_the_same_files_as_in_transformers_are_read(tmp_path: Path) -> None:
    """One file before an index; the model's shards before files of other formats."""
    whole = llama(tmp_path / "whole")
    stale = {"weight_map": {"model.norm.weight": "gone.safetensors"}}
    (whole / INDEX).write_text(json.dumps(stale))
    shutil.copy(whole / "model.safetensors", whole / "consolidated.safetensors")
    found = open_checkpoint(whole)
    assert [Path(source.name).name for source in found.sources] == ["model.safetensors"]
    assert found.passed_over == ("consolidated.safetensors", INDEX)
    parts = llama(tmp_path / "parts", shards=2)
    shutil.copy(whole / "model.safetensors", parts / "consolidated.safetensors")
    shutil.copy(whole / "model.safetensors", parts / "adapter_model.safetensors")
    indexed = open_checkpoint(parts)
    (parts / INDEX).unlink()
    bare = open_checkpoint(parts)
    assert indexed.passed_over == bare.passed_over
    assert bare.passed_over == ("adapter_model.safetensors", "consolidated.safetensors")
    assert [s.path for s in indexed.sources] == [s.path for s in bare.sources]
    assert set(bare.tensors) == set(indexed.tensors) == set(found.tensors)
    only = llama(tmp_path / "only")
    (only / "model.safetensors").rename(only / "consolidated.safetensors")
    assert set(open_checkpoint(only).tensors) == set(found.tensors)


def test_files_without_an_index_come_after_those_that_transformers_reads(tmp_path: Path) -> None:
    model = llama(tmp_path / "a", shards=2)
    (model / INDEX).unlink()
    other = llama(tmp_path / "b", seed=1)
    torch.save(load_tensors(other), model / "pytorch_model.bin")
    found = open_checkpoint(model)
    assert [Path(source.name).name for source in found.sources] == ["pytorch_model.bin"]
    assert found.passed_over == tuple(f"model-0000{n}-of-00002.safetensors" for n in (1, 2))


def test_an_adapter_beside_the_weights_is_named_and_can_be_applied(tmp_path: Path) -> None:
    model = llama(tmp_path / "a", layers=1)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    matrices = {name.format("A"): torch.ones(2, 8), name.format("B"): torch.ones(8, 2)}
    save_file(matrices, model / "adapter_model.safetensors")
    (model / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    (warning,) = plan_text("merge_method: passthrough\nmodels: [a]\n", tmp_path).warnings
    assert "'a' has an adapter beside its weights, which is not applied: write 'a+a'" in warning
    plan = plan_text("merge_method: passthrough\nmodels: [a+a]\n", tmp_path)
    assert not plan.warnings
    (model_with,) = {tensor.contributions[0].model.name for tensor in plan.tensor_plans()}
    assert model_with == "a+a"


def test_what_equal_headers_say_is_shared_and_places_are_not(tmp_path: Path) -> None:
    headers = HeaderReader()
    paths = llamas(tmp_path, "ab", shards=3)
    one, other = (open_checkpoint(path, headers) for path in paths)
    assert one.described is other.described
    name = "model.norm.weight"
    for path, found in zip(paths, (one, other), strict=True):
        (place,) = found.tensors[name].bytes.ranges()
        assert Path(place.source.name).parent == path
        assert found.tensors[name] is found.tensors[name]
    assert open_checkpoint(llama(tmp_path / "c", layers=3), headers).described != one.described
