"""Tokenizers of pieces of text in GGUF files, against those that transformers makes of them."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import gguf
import pytest
from transformers import AutoTokenizer

from mergeloom import export, plan
from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.storage.files import FileSource
from mergeloom.engine.storage.gguf import StringArray, read_gguf
from tests.planners.models.gguf.files import FAMILIES, write_gguf
from tests.planners.models.gguf.test_families import copied

SPACE = "\u2581"
PIECES = [SPACE, *"thinegadors", "th", "he", "the", f"{SPACE}t", f"{SPACE}the", "in", "ing", "an"]
PIECES += ["and", f"{SPACE}a", f"{SPACE}and", f"{SPACE}{SPACE}", "  ", "   ", "<turn>", "\n\n"]
BYTES = [f"<0x{number:02X}>" for number in range(256)]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
TOKENS = [*SPECIAL, *BYTES, *dict.fromkeys(PIECES)]
KINDS = [
    3,
    3,
    3,
    2,
    *[6] * 256,
    *(4 if p in {"<turn>", "\n\n", "  ", "   "} else 1 for p in PIECES),
]
TEXTS = (
    "the thing and the end",
    "  the   and\n\nthing<turn>and<s> the",
    " and\tthé 日本 hidden",
    "ends</s>",
)


def pieces(writer: gguf.GGUFWriter) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(TOKENS)
    writer.add_token_types(KINDS)
    first = len(SPECIAL) + len(BYTES)
    scores = [0.0] * first + [float(-number) for number in range(len(TOKENS) - first)]
    writer.add_token_scores(scores)
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(3)


def file_of(name: str, path: Path) -> Path:
    kind = FAMILIES[name]
    kind = dataclasses.replace(kind, more={**kind.more, "vocab_size": len(TOKENS)})
    return write_gguf(path, kind, kind.model(), describe=pieces)


@pytest.mark.parametrize("name", ["llama", "gemma2", "phi3"])
def test_texts_are_cut_as_transformers_cuts_them(name: str, tmp_path: Path) -> None:
    file = file_of(name, tmp_path / "small.gguf")
    mine = AutoTokenizer.from_pretrained(copied(file, tmp_path / "out"))
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="small.gguf")
    for text in TEXTS:
        assert mine(text)["input_ids"] == theirs(text)["input_ids"], text
    assert mine("the").input_ids[0] == 1


@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_vocabularies_survive_reading_and_exporting(name: str, tmp_path: Path) -> None:
    file = file_of(name, tmp_path / "small.gguf")
    out = copied(file, tmp_path / "out")
    export(out, tmp_path / "back.gguf")
    first, second = (
        read_gguf(FileSource.at(path)).values for path in (file, tmp_path / "back.gguf")
    )
    for key in ("tokens", "token_type", "bos_token_id", "eos_token_id", "unknown_token_id"):
        one, other = (values[f"tokenizer.ggml.{key}"] for values in (first, second))
        assert isinstance(one, StringArray) or one == other, key
        assert not isinstance(one, StringArray) or one.values == other.values, key
    before = AutoTokenizer.from_pretrained(out)
    after = AutoTokenizer.from_pretrained(copied(tmp_path / "back.gguf", tmp_path / "again"))
    for text in TEXTS:
        assert before(text)["input_ids"] == after(text)["input_ids"], text


def test_without_the_gguf_package_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = file_of("llama", tmp_path / "small.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(CheckpointError, match=r"pip install 'mergeloom\[gguf\]'"):
        plan({"merge_method": "passthrough", "models": [{"model": str(file)}]})
