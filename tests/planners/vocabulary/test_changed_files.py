"""Tokenizers with tokens of others added, as transformers loads them: ids, how texts are cut."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from mergeloom.engine.base import bounded_json
from mergeloom.engine.base.errors import Place
from mergeloom.planners.config.model_reference import ModelReference
from mergeloom.planners.config.tokenizer import TokenizerSettings
from mergeloom.planners.vocabulary.changed_files import _json, changed_files
from mergeloom.planners.vocabulary.plan import Candidate, VocabularyPlan, plan_vocabulary
from mergeloom.planners.vocabulary.tokenizer import Tokenizer
from tests.planners.vocabulary.tokenizers import OTHER, SPECIAL, TEXTS, add, tokenizer, train

KINDS = ["bytes", "whole", "pieces", "words", "scores"]
PLACE = Place("config.yml", 1, "tokenizer")


class Nobody:
    """No model is named by these settings."""

    def position(self, reference: ModelReference) -> int | None:
        raise AssertionError(reference)

    def tokenizer(self, reference: ModelReference) -> Tokenizer | None:
        raise AssertionError(reference)


def united(first: Path, *others: Path, out: Path, short: int = 0) -> VocabularyPlan:
    """The union, written to ``out``; the first model's embedding lacks ``short`` rows."""
    candidates = [
        Candidate(path.name, found := tokenizer(path), max(found.ids.values()) + 1)
        for path in (first, *others)
    ]
    head = candidates[0]
    candidates[0] = Candidate(head.name, head.tokenizer, head.rows - short)
    plan = plan_vocabulary(TokenizerSettings("union", PLACE), candidates, 0, Nobody())
    files = changed_files(plan.tokenizer.folder, plan.tokenizer.changes)
    out.mkdir()
    for path in first.iterdir():
        content = files.get(path.name, path.read_bytes())
        if content is not None:
            (out / path.name).write_bytes(content)
    return plan


@pytest.mark.parametrize("kind", KINDS)
def test_a_written_union_tokenizes_as_intended(kind: str, tmp_path: Path) -> None:
    first = train(tmp_path / "a", kind, TEXTS, SPECIAL, 400)
    other = train(tmp_path / "b", kind, OTHER, ["<|im_start|>", *SPECIAL], 350)
    add(other, "<|tool|>", special=False)
    add(first, "<|a|>", special=True)
    plan = united(first, other, out=tmp_path / "out")
    found = plan.tokenizer
    before, after = (AutoTokenizer.from_pretrained(path) for path in (first, tmp_path / "out"))
    assert after.get_vocab() == dict(found.ids)
    assert dict(found.ids).items() >= before.get_vocab().items()
    assert {"<|im_start|>", "<|tool|>", "<|a|>", *tokenizer(other).ids} <= found.ids.keys()
    exact = kind not in {"whole", "words"}
    assert exact != any("only finds whole words" in warning.cause for warning in plan.warnings)
    for text in [*TEXTS, "mixed up: " + TEXTS[0][::-1], *OTHER] if exact else ():
        ids = before(text)["input_ids"]
        assert after(text)["input_ids"] == ids or before.unk_token_id in ids, text
    for token in ("<|im_start|>", "<|tool|>", "<|a|>", "</s>"):
        assert after(token, add_special_tokens=False)["input_ids"] == [found.ids[token]]
    assert "<|im_start|>" not in after.decode([found.ids["<|im_start|>"]], skip_special_tokens=True)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_without_a_row_are_left_out(kind: str, tmp_path: Path) -> None:
    first = train(tmp_path / "a", kind, TEXTS, SPECIAL, 400)
    add(first, "<|a|>", special=True)
    add(first, "<|b|>", special=True)
    found = united(first, out=tmp_path / "out", short=2).tokenizer
    after = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert after.get_vocab() == dict(found.ids)
    assert not {"<|a|>", "<|b|>"} & found.ids.keys()


def test_nothing_to_add_changes_nothing(tmp_path: Path) -> None:
    first = train(tmp_path / "a", "bytes", TEXTS, SPECIAL, 300)
    found = united(first, first, out=tmp_path / "out").tokenizer
    assert not found.changes
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (
        first / "tokenizer.json"
    ).read_bytes()


def test_a_token_that_is_ordinary_elsewhere_becomes_special(tmp_path: Path) -> None:
    first = train(tmp_path / "a", "bytes", TEXTS, SPECIAL, 400)
    word = next(token for token in tokenizer(first).ids if len(token) == 3 and token.isalpha())
    other = train(tmp_path / "b", "bytes", OTHER, SPECIAL, 300)
    add(other, word, special=True)
    plan = united(first, other, out=tmp_path / "out")
    found = plan.tokenizer
    after = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert found.ids[word] == tokenizer(first).ids[word]
    assert after(f"0{word}1", add_special_tokens=False)["input_ids"].count(found.ids[word]) == 1


def test_older_forms_of_a_vocabulary_do_not_stay_behind(tmp_path: Path) -> None:
    first = train(tmp_path / "a", "bytes", TEXTS, SPECIAL, 300)
    (first / "vocab.json").write_text("{}")
    (first / "added_tokens.json").write_text(json.dumps({"<s>": 1}))
    other = train(tmp_path / "b", "bytes", OTHER, SPECIAL, 330)
    add(other, "<|im_start|>", special=True)
    plan = united(first, other, out=tmp_path / "out")
    found = plan.tokenizer
    assert not (tmp_path / "out" / "vocab.json").exists()
    listed = json.loads((tmp_path / "out" / "added_tokens.json").read_text())
    assert listed == {"<s>": 1, "<|im_start|>": found.ids["<|im_start|>"]}


def test_older_files_are_converted(tmp_path: Path) -> None:
    old = tmp_path / "a"
    old.mkdir()
    (old / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhello\nworld\n##ly\n")
    (old / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    (old / "config.json").write_text('{"model_type": "bert"}')
    other = train(tmp_path / "b", "words", OTHER, SPECIAL, 60)
    add(other, "<|im_start|>", special=True)
    found = united(old, other, out=tmp_path / "out").tokenizer
    (tmp_path / "out" / "tokenizer.json").write_bytes(
        changed_files(found.folder, found.changes)["tokenizer.json"] or b""
    )
    assert not (tmp_path / "out" / "vocab.txt").exists()
    after = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert after.get_vocab() == dict(found.ids)
    assert list(found.ids.values())[:8] == list(range(8))
    assert after("hello worldly", add_special_tokens=False)["input_ids"][0] == 5


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("token", ["é😀", "\ud83d"])
def test_large_files_are_read_and_written_in_pieces(mark: bytes, token: str) -> None:
    words = {f"{token}{number}": number for number in range(20_000)}
    merges = [[word, word] for word in words]
    model = {
        "type": "BPE",
        "vocab": words,
        "merges": merges,
        "none": {},
        "no": [],
        "x": [1.5, None],
    }
    document = {"version": "1.0", "model": model, "added_tokens": [{"id": 3, "special": True}]}
    content = _json(document, None)
    assert content == (json.dumps(document, ensure_ascii="\ud83d" in token) + "\n").encode()
    indented = _json(document, 2)
    assert len(indented) > 1 << 20
    for each in (content, indented):
        assert bounded_json.parse(mark + each) == document
    with pytest.raises(ValueError, match="Expecting"):
        bounded_json.parse(indented[:-10])
