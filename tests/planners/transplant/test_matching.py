"""Which tokens two tokenizers share, whatever their spelling."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergeloom.engine.storage.folder import LocalFolder
from mergeloom.planners.config.transplant import SUBWORDS, Subword
from mergeloom.planners.transplant.matching import match
from mergeloom.planners.transplant.pieces import weights
from mergeloom.planners.vocabulary.spelling import Spelling, content, spelling_of
from mergeloom.planners.vocabulary.tokenizer import Tokenizer, library_document
from tests.planners.vocabulary.tokenizers import SPECIAL, TEXTS, add, tokenizer, train


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("bytes", "bytes"), ("pieces", "pieces"), ("words", "words"), ("unigram", "pieces")],
)
def test_the_spelling_of_each_kind_of_tokenizer_is_recognised(
    kind: str, expected: Spelling, tmp_path: Path
) -> None:
    directory = train(tmp_path / kind, kind, TEXTS, SPECIAL, 350)
    document = library_document(LocalFolder(directory))
    assert document is not None
    assert spelling_of(document) == expected
    assert tokenizer(directory).spelling == expected


def test_tokens_stand_for_bytes() -> None:
    assert content("Ġthe", "bytes") == b" the"
    assert content("ĊĊ", "bytes") == b"\n\n"
    assert content("æĹ¥", "bytes") == "日".encode()
    assert content("æĹ", "bytes") == "日".encode()[:2]
    assert content("▁the", "pieces") == b" the"
    assert content("<0x0A>", "pieces") == b"\n"
    assert content("the", "words") == b" the"
    assert content("##s", "words") == b"s"
    assert content("the", "plain") == b"the"


@pytest.mark.parametrize("kind", ["pieces", "words"])
def test_tokens_of_another_spelling_are_matched_by_their_bytes(kind: str, tmp_path: Path) -> None:
    model = tokenizer(train(tmp_path / "model", "bytes", TEXTS, SPECIAL, 400))
    donor = tokenizer(train(tmp_path / "donor", kind, TEXTS, [*SPECIAL, "<only>"], 400))
    found = match(model, donor, 10_000, False)
    assert {"<s>", "</s>", "<unk>"} <= found.spelled.keys()
    assert found.bytes
    by_number = {number: token for token, number in model.ids.items()}
    for token, row in {**found.spelled, **found.bytes}.items():
        if token not in SPECIAL:
            assert content(token, donor.spelling) == content(by_number[row], "bytes")
    theirs = {content(t, "bytes") for t in model.ids if t not in model.added}
    for token in donor.ids.keys() - found.shared.keys():
        assert token == "<only>" or content(token, donor.spelling) not in theirs


def test_equal_spellings_of_different_bytes_are_not_matched(tmp_path: Path) -> None:
    """Ġ is a letter where spaces are spelled otherwise."""
    model = tokenizer(train(tmp_path / "model", "bytes", TEXTS, SPECIAL, 400))
    texts = [*TEXTS, "Ġal-Għarb Ġal-Għarb Ġal-Għarb Ġ Ġ"]
    donor = tokenizer(train(tmp_path / "donor", "pieces", texts, SPECIAL, 400))
    assert "Ġ" in donor.ids
    assert "Ġ" in model.ids
    assert "Ġ" not in match(model, donor, 10_000, False).shared


def test_added_tokens_that_are_not_special_are_matched_by_their_text(tmp_path: Path) -> None:
    """Gemma's line breaks and runs of spaces are added tokens; others have learnt them."""
    train(tmp_path / "model", "pieces", TEXTS, SPECIAL, 400)
    for token, special in {"\n\n": False, "▁▁▁": False, "ing": False, "<|x|>": True}.items():
        add(tmp_path / "model", token, special)
    model = tokenizer(tmp_path / "model")
    texts = [*TEXTS, *["{    return sing", "{    ring; <|x|>\n\n"] * 9]
    donor = tokenizer(train(tmp_path / "donor", "bytes", texts, SPECIAL, 500))
    found = match(model, donor, 10_000, False)
    expected = {"ĊĊ": "\n\n", "ĠĠĠ": "▁▁▁"}
    assert expected.keys() <= donor.ids.keys()
    for token, own in expected.items():
        assert found.bytes[token] == model.ids[own]
    assert found.spelled["ing"] == model.ids["ing"]
    assert model.ids["<|x|>"] not in found.shared.values()
    assert match(donor, model, 10_000, False).bytes["\n\n"] == donor.ids["ĊĊ"]


def test_special_tokens_match_by_role_and_others_by_prefix(tmp_path: Path) -> None:
    directory = train(tmp_path / "donor", "bytes", [*TEXTS, "modelling models"], ["<end>"], 420)
    add(directory, "<|turn|>", special=True)
    donor = tokenizer(directory)
    donor = Tokenizer(**{**vars(donor), "settings": {"eos_token": {"content": "<end>"}}})
    model = tokenizer(train(tmp_path / "model", "bytes", TEXTS[:1], SPECIAL, 320))
    found = match(model, donor, 10_000, True)
    assert found.roles == {"<end>": model.ids["</s>"]}
    assert "<|turn|>" not in {**found.shared, **found.prefixes}
    assert found.prefixes
    by_number = {number: token for token, number in model.ids.items()}
    for token, row in found.prefixes.items():
        prefix = by_number[row]
        longer = (token[:n] for n in range(len(token) - 1, len(prefix), -1))
        assert token.startswith(prefix)
        assert token != prefix
        assert not any(each in model.ids for each in longer)
    assert not match(model, donor, 10_000, False).prefixes


@pytest.mark.parametrize("how", SUBWORDS)
def test_weights_of_pieces_follow_the_subword_method(how: Subword) -> None:
    assert list(weights(0, how, head=False)) == []
    assert list(weights(1, how, head=True)) == [1.0]
    inside, outside = weights(3, how, head=False), weights(3, how, head=True)
    assert sum(inside) == pytest.approx(3.0 if how == "sum" else 1.0)
    assert list(outside) == list(reversed(inside))
    assert inside[2] == max(inside)


def test_tokens_without_a_row_are_not_shared(tmp_path: Path) -> None:
    model = tokenizer(train(tmp_path / "model", "bytes", TEXTS, SPECIAL, 400))
    found = match(model, model, 300, False)
    assert set(found.shared.values()) == set(range(300))
