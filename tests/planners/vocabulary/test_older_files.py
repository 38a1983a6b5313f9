"""Tokenizers of older files: what is missing to read one is said truly, in one line."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.storage.folder import LocalFolder
from mergeloom.planners.vocabulary import older_files
from mergeloom.planners.vocabulary.tokenizer import read_tokenizer

TIKTOKEN = b"".join(base64.b64encode(bytes([byte])) + f" {byte}\n".encode() for byte in range(256))
PIECES = b"\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x00\x00\x18\x02" * 40


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer.model", PIECES, ["a sentencepiece model", "sentencepiece protobuf)"]),
        ("spiece.model", PIECES, ["spiece.model is a sentencepiece model"]),
        ("tokenizer.model", TIKTOKEN, ["a list of tiktoken's", "pip install tiktoken)"]),
        ("tekken.json", json.dumps({"vocab": []}).encode(), ["pip install mistral-common)"]),
        ("qwen.tiktoken", TIKTOKEN, ["only code that comes with the model reads", "it is not run"]),
    ],
)
def test_what_is_missing(
    name: str, content: bytes, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(older_files, "_is_there", lambda package: package == "transformers")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_tokenizer(LocalFolder(tmp_path))
    said = str(caught.value)
    assert "\n" not in said
    assert said.endswith("save it as tokenizer.json once (AutoTokenizer's save_pretrained does)")
    for each in words:
        assert each in said


def test_without_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(older_files, "_is_there", lambda package: False)
    (tmp_path / "vocab.txt").write_text("a\n")
    with pytest.raises(CheckpointError, match=r"install what is missing \(pip install transf"):
        read_tokenizer(LocalFolder(tmp_path))


def test_what_cannot_be_converted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing but the error is said, though transformers has much to say."""
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is a list of words without rules, and transformers"):
        read_tokenizer(LocalFolder(tmp_path))
    assert capfd.readouterr().err == ""


def test_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert read_tokenizer(LocalFolder(tmp_path)) is None
