"""Tokens read from a tokenizer's files; settings that are let through as they change nothing."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergeloom.engine.base.errors import CheckpointError, ConfigError, LoomError
from mergeloom.planners.vocabulary.tokens import vocabulary
from tests.planners.support import llama, plan_text


def tokenizer(directory: Path, tokens: list[str], added: list[str] = [], **more: object) -> None:  # noqa: B006
    ids = {token: number for number, token in enumerate(tokens)}
    extra = [{"id": len(tokens) + i, "content": token} for i, token in enumerate(added)]
    document = {"model": {"type": "BPE", "vocab": ids}, "added_tokens": extra, **more}
    (directory / "tokenizer.json").write_text(json.dumps(document))


def test_of_a_tokenizer_json(tmp_path: Path) -> None:
    assert vocabulary(tmp_path) is None
    tokenizer(tmp_path, ["a", "b"], ["<s>"])
    assert vocabulary(tmp_path) == {"a": 0, "b": 1, "<s>": 2}
    settings = {"added_tokens_decoder": {"3": {"content": "<pad>"}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert vocabulary(tmp_path) == {"a": 0, "b": 1, "<s>": 2, "<pad>": 3}
    document = {"model": {"vocab": [["x", -1.0], ["y", -2.0]]}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    assert vocabulary(tmp_path) == {"x": 0, "y": 1, "<pad>": 3}


def test_of_older_files(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    assert vocabulary(tmp_path) == {"a": 0, "b": 1}
    (tmp_path / "vocab.json").write_text(json.dumps({"c": 0}))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"d": 1}))
    assert vocabulary(tmp_path) == {"c": 0, "d": 1}


def piece(text: str) -> bytes:
    content = text.encode()
    message = b"\x0a" + bytes([len(content)]) + content + b"\x15\x00\x00\x80\x3f\x18\x01"
    return b"\x0a" + bytes([len(message)]) + message


def test_of_a_sentencepiece_model(tmp_path: Path) -> None:
    other = b"\x12\x03\x08\xac\x02"  # another field, with a number of two bytes inside
    (tmp_path / "tokenizer.model").write_bytes(piece("<unk>") + piece("ä") + other + piece("b"))
    assert vocabulary(tmp_path) == {"<unk>": 0, "ä": 1, "b": 2}


@given(content=st.binary(max_size=60))
def test_bytes_that_are_no_sentencepiece_model(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("broken")
    (directory / "tokenizer.model").write_bytes(content)
    with suppress(CheckpointError):  # and nothing else
        found = vocabulary(directory)
        assert found is not None
        assert all(isinstance(token, str) for token in found)


def merged(folder: Path, settings: str) -> None:
    models = "models: [{model: a}, {model: b}]\nparameters: {weight: 1}\nbase_model: a\n"
    plan_text(f"merge_method: linear\n{models}{settings}\n", folder)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for seed, name in enumerate("ab"):
        llama(tmp_path / name, seed=seed, vocabulary=3)
        tokenizer(tmp_path / name, ["x", "y", "z"], padding={"length": seed})
    return tmp_path


SETTINGS = ("tokenizer_source: base", "tokenizer_source: b", "tokenizer: {source: union}")


@pytest.mark.parametrize("settings", SETTINGS)
def test_settings_that_change_nothing_are_let_through(models: Path, settings: str) -> None:
    merged(models, settings)
    merged(models, "chat_template: auto")


@pytest.mark.parametrize("settings", SETTINGS)
def test_settings_that_would_change_something_are_refused(models: Path, settings: str) -> None:
    tokenizer(models / "b", ["x", "y", "other"])
    with pytest.raises(ConfigError, match="'a' and 'b' have different vocabularies"):
        merged(models, settings)
    for name in "ab":
        tokenizer(models / name, ["x", "y"])
    with pytest.raises(ConfigError, match="3 rows for 2 tokens"):
        merged(models, settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("tokenizer_source: unoin", "did you mean 'union'"),
        ("tokenizer_source: no/such", "neither 'union', 'base' nor a model"),
        ("tokenizer: {source: base, pad_to_multiple_of: 64}", "3 rows of the embedding are no mul"),
        ("chat_template: chatml", "leave 'chat_template' out"),
    ],
)
def test_settings_that_mean_nothing_yet(models: Path, settings: str, words: str) -> None:
    with pytest.raises(LoomError, match=words):
        merged(models, settings)


def test_templates_that_differ_are_not_chosen_from(models: Path) -> None:
    (models / "a" / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(ConfigError, match="chat_template"):
        merged(models, "chat_template: auto")
