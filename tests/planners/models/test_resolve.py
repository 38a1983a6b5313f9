"""Where models are found: given directories, search folders, the hub's cache, the hub."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.planners.config.load import parse_config
from mergeloom.planners.config.model_reference import Location
from mergeloom.planners.models.checkpoint import open_checkpoint
from mergeloom.planners.models.resolve import Resolver, is_hub_id
from mergeloom.planners.plan import make_plan
from mergeloom.planners.planner import PlanOptions
from tests.planners.support import llama, llama_names


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


def test_models_are_searched_for_in_the_documented_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    (tmp_path / "near").mkdir()
    assert found("near") == near, "a directory without a model is passed over"
    assert not resolver.others(Location("near"))
    llama(tmp_path / "near")
    assert found("near") == tmp_path / "near"
    assert resolver.others(Location("near")) == (near,)
    assert not resolver.others(Location(str(near)))
    with pytest.raises(CheckpointError, match="neither a directory nor a hub id"):
        found("../no/such/model")
    with pytest.raises(CheckpointError, match="is not a directory"):
        Resolver(model_dirs={"a": tmp_path / "none"}).directory(Location("a"))


def test_impossible_paths_are_errors_in_one_line(tmp_path: Path) -> None:
    resolver = Resolver(search=[tmp_path], relative_to=tmp_path)
    for path in ("a" * 5000, "x/" * 3000, "~nobody-of-that-name/x", "a\0b"):
        with pytest.raises(CheckpointError):
            resolver.directory(Location(path))
    with pytest.raises(CheckpointError):
        Resolver().directory(Location("acme/one", "../../../x"))


def test_hub_ids_are_told_from_paths() -> None:
    assert is_hub_id("acme/one-7B_v1.5")
    assert is_hub_id("gpt2")
    for path in ("", "/a", "./a", "../a", "a/b/c", "~/a", "a b/c", "a/.b", "a/-b"):
        assert not is_hub_id(path)


def test_a_local_model_is_found_without_the_hub(tmp_path: Path) -> None:
    llama(tmp_path / "acme" / "one")
    program = (
        "import sys; from pathlib import Path; "
        "from mergeloom.planners.models.resolve import Resolver; "
        "from mergeloom.planners.config.model_reference import Location; "
        "from mergeloom.planners.models.checkpoint import open_checkpoint; "
        "open_checkpoint(Resolver(search=[Path(sys.argv[1])]).directory(Location('acme/one'))); "
        "assert not {'huggingface_hub', 'torch', 'safetensors', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)


@dataclass
class Hub:
    """A hub with one model, as far as downloads need it."""

    files: dict[str, bytes]
    commit: str = "a" * 40
    broken: set[str] = field(default_factory=set)
    """Files whose transfer ends early."""
    asked: list[str] = field(default_factory=list)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        headers = {"Content-Type": "application/json"}
        status, body, cut = 200, b"", False
        if path.startswith("/api/models/acme/one/tree/"):
            body = json.dumps(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": _digest(data)}
                    for name, data in self.files.items()
                ]
            ).encode()
        elif path.startswith("/api/models/acme/one/revision/missing"):
            status, headers["X-Error-Code"] = 404, "RevisionNotFound"
        elif path.startswith("/api/models/acme/one"):
            siblings = [{"rfilename": name} for name in self.files]
            document = {"id": "acme/one", "sha": self.commit, "siblings": siblings}
            body = json.dumps(document).encode()
        elif path.startswith("/acme/one/resolve/"):
            name = path.removeprefix("/acme/one/resolve/").partition("/")[2]
            body = self.files[name]
            headers |= {"ETag": f'"{_digest(body)}"', "X-Repo-Commit": self.commit}
            if request.command == "GET":
                self.asked.append(name)
                cut = name in self.broken
        elif "gated" in path:
            status, headers["X-Error-Code"] = 403, "GatedRepo"
        else:
            status, headers["X-Error-Code"] = 404, "RepoNotFound"
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body[: len(body) // 2] if cut else body)
        request.close_connection = cut


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine, and an empty cache."""
    from huggingface_hub import constants

    source = llama(tmp_path / "source", shards=2)
    made = Hub({path.name: path.read_bytes() for path in source.iterdir()})
    made.files |= {
        "tokenizer.json": b"{}",
        "pytorch_model.bin": b"x",
        "consolidated.safetensors": b"x",
        "original/consolidated.00.pth": b"x",
        "modeling_llama.py": b"x",
    }

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            made.answer(self)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    yield made
    server.shutdown()
    server.server_close()


def test_a_download_fetches_what_is_needed_once(hub: Hub) -> None:
    announced: list[str] = []
    directory = Resolver(download=announced.append).directory(Location("acme/one"))
    assert announced == ["acme/one"]
    assert set(open_checkpoint(directory).tensors) == set(llama_names(4))
    assert {path.name for path in directory.iterdir()} == {
        *(name for name in hub.files if name.startswith("model-")),
        "config.json",
        "model.safetensors.index.json",
        "tokenizer.json",
    }
    assert Resolver().directory(Location("acme/one")) == directory
    assert Resolver().directory(Location("acme/one", hub.commit)) == directory


def test_an_interrupted_download_is_completed(hub: Hub) -> None:
    last = "model-00002-of-00002.safetensors"
    first = Resolver(download=lambda _: None).directory(Location("acme/one"))
    (first / last).resolve().unlink()
    (first / last).unlink()
    with pytest.raises(CheckpointError, match="downloads are off"):
        Resolver().directory(Location("acme/one"))
    hub.asked.clear()
    again = Resolver(download=lambda _: None).directory(Location("acme/one"))
    assert set(open_checkpoint(again).tensors) == set(llama_names(4))
    assert hub.asked == [last]


def test_a_broken_connection_is_explained(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.broken.add("model-00001-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"the hub .* cannot be reached") as caught:
        Resolver(download=lambda _: None).directory(Location("acme/one"))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("model", "revision", "expected"),
    [
        ("acme/gated", None, "it is gated"),
        ("acme/none", None, "no such model"),
        ("acme/one", "missing", "it has no revision 'missing'"),
    ],
)
def test_a_refusal_of_the_hub_is_explained(
    hub: Hub, model: str, revision: str | None, expected: str
) -> None:
    announced: list[str] = []
    with pytest.raises(CheckpointError, match=expected) as caught:
        Resolver(download=announced.append).directory(Location(model, revision))
    assert announced == [str(Location(model, revision))]
    assert f"--model-dir {model}=PATH" in str(caught.value)


def test_a_cache_that_cannot_be_written_is_named(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    with pytest.raises(CheckpointError, match="No space left on device: name another") as caught:
        Resolver(download=lambda _: None).directory(Location("acme/one"))
    assert f"the hub's cache '{tmp_path / 'cache'}' cannot be written" in str(caught.value)


def test_what_is_missing_for_certain_is_said_before_anything_is_downloaded(
    hub: Hub, tmp_path: Path
) -> None:
    announced: list[str] = []
    text = "merge_method: linear\nmodels: [acme/one, ./none]\nparameters: {weight: 1}\n"
    with pytest.raises(CheckpointError, match=r"'./none' is neither") as caught:
        make_plan(parse_config(text), Resolver(download=announced.append), PlanOptions())
    assert len(caught.value.findings) == 1
    assert not announced


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("acme/modèle", "is neither a directory nor a hub id"),
        ("acme/a--b", "is neither a directory nor a hub id"),
        ("acme/" + "a" * 92, "is neither a directory nor a hub id"),
        ("$MODELS/a", "environment variables are not replaced in configurations, write the path"),
    ],
)
def test_names_that_no_hub_has_are_not_asked_for(hub: Hub, model: str, expected: str) -> None:
    with pytest.raises(CheckpointError, match=expected):
        Resolver(download=lambda _: None).directory(Location(model))
    assert not hub.asked


def test_a_directory_with_a_similar_name_is_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "mistral").mkdir()
    expected = "write 'mistral' if you mean that directory, or give its directory by --model-dir"
    with pytest.raises(CheckpointError, match=expected):
        Resolver(relative_to=tmp_path).directory(Location("mistrel"))


def test_offline_the_hub_is_not_contacted(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set"):
        Resolver(download=lambda _: None).directory(Location("acme/one"))
    assert not hub.asked
