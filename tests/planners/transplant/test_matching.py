"""Which tokens two tokenizers share, whatever their spelling."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergeloom.engine.storage.folder import LocalFolder
from mergeloom.planners.config.transplant import SUBWORD_WEIGHTS, SubwordWeights
from mergeloom.planners.transplant.matching import match_tokens
from mergeloom.planners.transplant.pieces import piece_weights
from mergeloom.planners.vocabulary.spelling import Spelling, spelling_of, text_bytes
from mergeloom.planners.vocabulary.tokenizer import Tokenizer, tokenizer_json
from tests.planners.vocabulary.tokenizers import SPECIAL, TEXTS, add, tokenizer, train


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("bytes", "bytes"), ("pieces", "pieces"), ("words", "words"), ("unigram", "pieces")],
)
def test_the_spelling_of_each_kind_of_tokenizer_is_recognised(
    kind: str, expected: Spelling, tmp_path: Path
) -> None:
    directory = train(tmp_path / kind, kind, TEXTS, SPECIAL, 350)
    document = tokenizer_json(LocalFolder(directory))
    assert document is not None
    assert spelling_of(document) == expected
    assert tokenizer(directory).spelling == expected


def test_tokens_stand_for_bytes() -> None:
    assert text_bytes("Ġthe", "bytes") == b" the"
    assert text_bytes("ĊĊ", "bytes") == b"\n\n"
    assert text_bytes("æĹ¥", "bytes") == "日".encode()
    assert text_bytes("æĹ", "bytes") == "日".encode()[:2]
    assert text_bytes("▁the", "pieces") == b" the"
    assert text_bytes("<0x0A>", "pieces") == b"\n"
    assert text_bytes("the", "words") == b" the"
    assert text_bytes("##s", "words") == b"s"
    assert text_bytes("the", "plain") == b"the"


@pytest.mark.parametrize("kind", ["pieces", "words"])
def test_tokens_of_another_spelling_are_matched_by_their_bytes(kind: str, tmp_path: Path) -> None:
    model = tokenizer(train(tmp_path / "model", "bytes", TEXTS, SPECIAL, 400))
    donor = tokenizer(train(tmp_path / "donor", kind, TEXTS, [*SPECIAL, "<only>"], 400))
    found = match_tokens(model, donor, 10_000, False)
    assert {"<s>", "</s>", "<unk>"} <= found.spelled.keys()
    assert found.bytes
    by_number = {number: token for token, number in model.ids.items()}
    for token, row in {**found.spelled, **found.bytes}.items():
        if token not in SPECIAL:
            assert text_bytes(token, donor.spelling) == text_bytes(by_number[row], "bytes")
    theirs = {text_bytes(t, "bytes") for t in model.ids if t not in model.added}
    for token in donor.ids.keys() - found.shared.keys():
        assert token == "<only>" or text_bytes(token, donor.spelling) not in theirs


def test_equal_spellings_of_different_bytes_are_not_matched(tmp_path: Path) -> None:
    """Ġ is a letter where spaces are spelled otherwise."""
    model = tokenizer(train(tmp_path / "model", "bytes", TEXTS, SPECIAL, 400))
    texts = [*TEXTS, "Ġal-Għarb Ġal-Għarb Ġal-Għarb Ġ Ġ"]
    donor = tokenizer(train(tmp_path / "donor", "pieces", texts, SPECIAL, 400))
    assert "Ġ" in donor.ids
    assert "Ġ" in model.ids
    assert "Ġ" not in match_tokens(model, donor, 10_000, False).shared


def test_added_tokens_that_are_not_special_are_matched_by_their_text(tmp_path: Path) -> None:
    """Gemma's line breaks and runs of spaces are added tokens; others have learnt them."""
    train(tmp_path / "model", "pieces", TEXTS, SPECIAL, 400)
    for token, special in {"\n\n": False, "▁▁▁": False, "ing": False, "<|x|>": True}.items():
        add(tmp_path / "model", token, special)
    model = tokenizer(tmp_path / "model")
    texts = [*TEXTS, *["{    return sing", "{    ring; <|x|>\n\n"] * 9]
    donor = tokenizer(train(tmp_path / "donor", "bytes", texts, SPECIAL, 500))
    found = match_tokens(model, donor, 10_000, False)
    expected = {"ĊĊ": "\n\n", "ĠĠĠ": "▁▁▁"}
    assert expected.keys() <= donor.ids.keys()
    for token, own in expected.items():
        assert found.bytes[token] == model.ids[own]
    assert found.spelled["ing"] == model.ids["ing"]
    assert model.ids["<|x|>"] not in found.shared.values()
    assert match_tokens(donor, model, 10_000, False).bytes["\n\n"] == donor.ids["ĊĊ"]


def test_special_tokens_match_by_role_and_others_by_prefix(tmp_path: Path) -> None:
    directory = train(tmp_path / "donor", "bytes", [*TEXTS, "modelling models"], ["<end>"], 420)
    add(directory, "<|turn|>", special=True)
    donor = tokenizer(directory)
    donor = Tokenizer(**{**vars(donor), "settings": {"eos_token": {"content": "<end>"}}})
    model = tokenizer(train(tmp_path / "model", "bytes", TEXTS[:1], SPECIAL, 320))
    found = match_tokens(model, donor, 10_000, True)
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
    assert not match_tokens(model, donor, 10_000, False).prefixes


def test_the_space_before_a_word_is_not_its_prefix(tmp_path: Path) -> None:
    texts = [*TEXTS[:1], "a zqzqzq zqzqzq    zq" * 30]
    donor = tokenizer(train(tmp_path / "donor", "bytes", texts, SPECIAL, 400))
    model = tokenizer(train(tmp_path / "model", "bytes", TEXTS[:1], SPECIAL, 320))
    prefixes = match_tokens(model, donor, 10_000, True).prefixes
    assert "Ġzq" in donor.ids
    assert "Ġzq" not in prefixes
    assert prefixes["ĠĠ"] == model.ids["Ġ"]


@pytest.mark.parametrize("how", SUBWORD_WEIGHTS)
def test_weights_of_pieces_follow_the_subword_method(how: SubwordWeights) -> None:
    assert list(piece_weights(0, how, head=False)) == []
    assert list(piece_weights(1, how, head=True)) == [1.0]
    inside, outside = piece_weights(3, how, head=False), piece_weights(3, how, head=True)
    assert sum(inside) == pytest.approx(3.0 if how == "sum" else 1.0)
    assert list(outside) == list(reversed(inside))
    assert inside[2] == max(inside)


def test_tokens_without_a_row_are_not_shared(tmp_path: Path) -> None:
    model = tokenizer(train(tmp_path / "model", "bytes", TEXTS, SPECIAL, 400))
    found = match_tokens(model, model, 300, False)
    assert set(found.shared.values()) == set(range(300))
