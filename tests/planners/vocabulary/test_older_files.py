"""Tokenizers of older files: what is missing to read one is said truly, in one line."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import pytest
import sentencepiece
import tiktoken
from tokenizers import Tokenizer as Library

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.storage.folder import LocalFolder
from mergeloom.planners.vocabulary import older_files
from mergeloom.planners.vocabulary.tokenizer import read_tokenizer, tokenizer_json_text
from tests.planners.vocabulary.tokenizers import OTHER, TEXTS

TIKTOKEN = b"".join(base64.b64encode(bytes([byte])) + f" {byte}\n".encode() for byte in range(256))
PIECES = b"\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x00\x00\x18\x02" * 40


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer.model", PIECES, ["a sentencepiece model", "sentencepiece protobuf)"]),
        ("spiece.model", PIECES, ["spiece.model is a sentencepiece model"]),
        ("tokenizer.model", TIKTOKEN, ["a tiktoken file", "pip install tiktoken)"]),
        ("tekken.json", json.dumps({"vocab": []}).encode(), ["pip install mistral-common)"]),
        ("qwen.tiktoken", TIKTOKEN, ["only code from the model can read", "never run"]),
    ],
)
def test_an_older_file_that_cannot_be_converted_says_what_is_missing(
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


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_sentencepiece_model_tokenizes_as_sentencepiece_does(kind: str, tmp_path: Path) -> None:
    """Tokens, ids and how texts are cut are those of sentencepiece itself."""
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS + OTHER),
        model_writer=trained,
        model_type=kind,
        vocab_size=150,
        hard_vocab_limit=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(trained.getvalue())
    settings = {"tokenizer_class": "LlamaTokenizer" if kind == "bpe" else "T5Tokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "extra_ids": 0}))
    found = read_tokenizer(LocalFolder(tmp_path))
    assert found is not None
    assert (found.kind, found.spelling) == ("BPE" if kind == "bpe" else "Unigram", "pieces")
    theirs = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    pieces = {theirs.id_to_piece(number): number for number in range(len(theirs))}
    assert pieces.items() <= found.ids.items()
    library = Library.from_str(tokenizer_json_text(LocalFolder(tmp_path)))
    for text in TEXTS[:2]:
        assert library.encode(text, add_special_tokens=False).ids == theirs.encode(text)


def test_a_tiktoken_file_tokenizes_as_tiktoken_does(tmp_path: Path) -> None:
    words = [b"th", b"he", b"the", b" the", b"in", b"er"]
    tokens = [*(bytes([byte]) for byte in range(256)), *words]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    lines = [base64.b64encode(token) + f" {rank}\n".encode() for token, rank in ranks.items()]
    (tmp_path / "tokenizer.model").write_bytes(b"".join(lines))
    found = read_tokenizer(LocalFolder(tmp_path))
    assert found is not None
    assert {found.text_of(token): number for token, number in found.ids.items()} == ranks
    theirs = tiktoken.Encoding(
        "small", pat_str=r" ?\w+|\W", mergeable_ranks=ranks, special_tokens={}
    )
    library = Library.from_str(tokenizer_json_text(LocalFolder(tmp_path)))
    for text in ("the winter there", "naïve façade"):
        assert library.encode(text, add_special_tokens=False).ids == theirs.encode(text)


def test_without_transformers_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(older_files, "_is_there", lambda package: False)
    (tmp_path / "vocab.txt").write_text("a\n")
    with pytest.raises(CheckpointError, match=r"install what is missing \(pip install transf"):
        read_tokenizer(LocalFolder(tmp_path))


def test_a_file_that_cannot_be_converted_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing but the error is said, though transformers has much to say."""
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(CheckpointError, match="a list of tokens without rules, and transformers"):
        read_tokenizer(LocalFolder(tmp_path))
    assert capfd.readouterr().err == ""


def test_a_directory_without_tokenizer_has_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert read_tokenizer(LocalFolder(tmp_path)) is None
