"""Checkpoints and where they are found: complete, foreign, hostile."""

from __future__ import annotations

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from engine.errors import CheckpointError
from planners.checkpoint import INDEX, open_checkpoint
from planners.hub import Resolver
from planners.reference import Location
from tests.planners.support import llama, llama_names, write_checkpoint


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
    assert "is not a directory" in refusal(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refusal(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text("{}")
    assert "no .safetensors files" in refusal(tmp_path / "empty")
    (tmp_path / "empty" / "pytorch_model.bin").write_bytes(b"\x80")
    assert "convert it to safetensors" in refusal(tmp_path / "empty")
    model = llama(tmp_path / "a", shards=3)
    index = json.loads((model / INDEX).read_text())
    index["weight_map"]["extra.weight"] = "model-00001-of-00003.safetensors"
    (model / INDEX).write_text(json.dumps(index))
    assert "lacks 'extra.weight', which the index promises" in refusal(model)
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


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"quant_method": "gptq"}, "gptq"),
        ({"quant_method": "awq"}, "awq"),
        ({"load_in_4bit": True}, "bitsandbytes"),
    ],
)
def test_quantised_checkpoints_are_refused_by_name(
    tmp_path: Path, settings: dict[str, Any], expected: str
) -> None:
    model = llama(tmp_path / "a")
    (model / "config.json").write_text(json.dumps({"quantization_config": settings}))
    assert f"is quantised (by {expected})" in refusal(model)


def test_quantised_tensors_are_refused_too(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", ["model.layers.0.q_proj.qweight"], {})
    assert "is quantised (it has 'model.layers.0.q_proj.qweight')" in refusal(tmp_path / "a")


def cache(folder: Path, model: str, source: Path, revision: str = "main") -> None:
    """A model in the hub's cache: links from a snapshot into blobs."""
    root = folder / ("models--" + model.replace("/", "--"))
    snapshot = root / "snapshots" / "abc123"
    (root / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(source.iterdir())):
        shutil.copy(path, root / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    (root / "refs").mkdir()
    (root / "refs" / revision).write_text("abc123")


def test_where_a_model_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    given = llama(tmp_path / "given")
    near = llama(tmp_path / "configs" / "near")
    folder = llama(tmp_path / "folder" / "acme" / "one")
    flat = llama(tmp_path / "folder" / "two")
    cache(tmp_path / "cache", "acme/three", llama(tmp_path / "three", shards=2), "v1")
    resolver = Resolver(
        model_dirs={"acme/given": given, "acme/old@v2": near},
        search=[tmp_path / "folder"],
        relative_to=tmp_path / "configs",
    )

    def found(path: str, revision: str | None = None) -> Path:
        return resolver.directory(Location(path, revision)).resolve()

    assert found("acme/given") == given
    assert found("acme/given", "v9") == given
    assert found("acme/old", "v2") == near
    assert found("near") == near
    assert found("./configs/near") == near
    assert found("acme/one") == folder
    assert found("acme/two") == flat
    assert found("acme/three", "v1").name == "abc123"
    assert set(open_checkpoint(found("acme/three", "v1")).tensors) == set(llama_names(4))
    for missing in ("acme/three", "acme/none"):  # the first is there, but at another revision
        with pytest.raises(CheckpointError, match=f"--model-dir {missing}=PATH"):
            found(missing)
    with pytest.raises(CheckpointError, match="no hub id either"):
        found("../no/such/model")
    with pytest.raises(CheckpointError, match="is not a directory"):
        Resolver(model_dirs={"a": tmp_path / "none"}).directory(Location("a"))


class Refusing(BaseHTTPRequestHandler):
    """A hub that knows nobody."""

    def do_GET(self) -> None:
        gated = "gated" in self.path
        self.send_response(403 if gated else 404)
        self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("model", "expected"), [("acme/gated", "it is gated"), ("acme/none", "no such model")]
)
def test_what_the_hub_refuses_is_said_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, expected: str
) -> None:
    from huggingface_hub import constants

    server = HTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    asked: list[str] = []
    with pytest.raises(CheckpointError, match=expected) as caught:
        Resolver(download=asked.append).directory(Location(model))
    server.shutdown()
    server.server_close()
    assert asked == [model]
    assert f"--model-dir {model}=PATH" in str(caught.value)
