"""Tokens read from a tokenizer's files, with no tokenizer library."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.storage.folder import LocalFolder
from mergeloom.planners.vocabulary.tokens import read_vocabulary


def tokenizer(
    directory: Path, tokens: list[str], added: Sequence[str] = (), **more: object
) -> None:
    ids = {token: number for number, token in enumerate(tokens)}
    extra = [{"id": len(tokens) + i, "content": token} for i, token in enumerate(added)]
    document = {"model": {"type": "BPE", "vocab": ids}, "added_tokens": extra, **more}
    (directory / "tokenizer.json").write_text(json.dumps(document))


def test_tokens_of_a_tokenizer_json_are_read(tmp_path: Path) -> None:
    assert read_vocabulary(LocalFolder(tmp_path)) is None
    tokenizer(tmp_path, ["a", "b"], ["<s>"])
    assert read_vocabulary(LocalFolder(tmp_path)) == {"a": 0, "b": 1, "<s>": 2}
    settings = {"added_tokens_decoder": {"3": {"content": "<pad>"}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert read_vocabulary(LocalFolder(tmp_path)) == {"a": 0, "b": 1, "<s>": 2, "<pad>": 3}
    document = {"model": {"vocab": [["x", -1.0], ["y", -2.0]]}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    assert read_vocabulary(LocalFolder(tmp_path)) == {"x": 0, "y": 1, "<pad>": 3}


def test_tokens_of_older_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    assert read_vocabulary(LocalFolder(tmp_path)) == {"a": 0, "b": 1}
    (tmp_path / "vocab.json").write_text(json.dumps({"c": 0}))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"d": 1}))
    assert read_vocabulary(LocalFolder(tmp_path)) == {"c": 0, "d": 1}


def piece(text: str) -> bytes:
    content = text.encode()
    message = b"\x0a" + bytes([len(content)]) + content + b"\x15\x00\x00\x80\x3f\x18\x01"
    return b"\x0a" + bytes([len(message)]) + message


def test_tokens_of_a_sentencepiece_model_are_read(tmp_path: Path) -> None:
    other = b"\x12\x03\x08\xac\x02"  # another field, with a number of two bytes inside
    (tmp_path / "tokenizer.model").write_bytes(piece("<unk>") + piece("ä") + other + piece("b"))
    assert read_vocabulary(LocalFolder(tmp_path)) == {"<unk>": 0, "ä": 1, "b": 2}


@given(content=st.binary(max_size=60))
def test_a_damaged_sentencepiece_model_is_refused(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("broken")
    (directory / "tokenizer.model").write_bytes(content)
    with suppress(CheckpointError):  # and nothing else
        found = read_vocabulary(LocalFolder(directory))
        assert found is not None
        assert all(isinstance(token, str) for token in found)
