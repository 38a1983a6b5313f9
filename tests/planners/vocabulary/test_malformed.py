"""Files of tokenizers that a broken writer leaves are refused by name, with a way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.storage.folder import LocalFolder
from mergeloom.planners.vocabulary.tokenizer import read_tokenizer
from mergeloom.planners.vocabulary.tokens import read_vocabulary

WORDS = {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}
TOKENIZER, SETTINGS, ADDED = "tokenizer.json", "tokenizer_config.json", "added_tokens.json"


def saying(**changes: Any) -> str:
    return json.dumps({"added_tokens": [], "model": WORDS, **changes})


BROKEN = {
    "cut": ({TOKENIZER: saying()[:-9]}, "is not valid JSON"),
    "a list": ({TOKENIZER: "[]"}, "is not a tokenizer file of a known format"),
    "ids as text": ({TOKENIZER: saying(model={**WORDS, "vocab": {"a": "0"}})}, "known format"),
    "ids below 0": ({TOKENIZER: saying(model={**WORDS, "vocab": {"a": -1}})}, "known format"),
    "tokens without scores": (
        {TOKENIZER: saying(model={"type": "Unigram", "vocab": ["a", "b"]})},
        "known format",
    ),
    "a vocabulary of text": ({TOKENIZER: saying(model={**WORDS, "vocab": "a b"})}, "known format"),
    "an added token as text": ({TOKENIZER: saying(added_tokens=["<s>"])}, "known format"),
    "an added token without id": (
        {TOKENIZER: saying(added_tokens=[{"content": "<s>"}])},
        "known format",
    ),
    "an added token without text": ({TOKENIZER: saying(added_tokens=[{"id": 2}])}, "known format"),
    "settings by name": (
        {TOKENIZER: saying(), SETTINGS: '{"added_tokens_decoder": {"x": {"content": "<s>"}}}'},
        f"{SETTINGS}' is not a tokenizer file of a known format",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_tokenizer_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    files, words = BROKEN[kind]
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=words) as caught:
        read_tokenizer(LocalFolder(tmp_path))
    assert caught.value.remedy
    assert str(tmp_path) in caught.value.cause


OLDER = {
    "ids as text": {"vocab.json": '{"a": "0"}'},
    "added ids as text": {"vocab.json": '{"a": 0}', ADDED: '{"<s>": "1"}'},
    "settings by name": {
        "vocab.json": '{"a": 0}',
        SETTINGS: '{"added_tokens_decoder": {"x": {"content": "<s>"}}}',
    },
}


@pytest.mark.parametrize("kind", OLDER)
def test_a_broken_vocabulary_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    for name, content in OLDER[kind].items():
        (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match="is not a tokenizer file of a known format") as found:
        read_vocabulary(LocalFolder(tmp_path))
    assert found.value.remedy
