"""Small real tokenizers, trained where they are used."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken as LibraryToken
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from mergeloom.engine.storage.folder import LocalFolder
from mergeloom.planners.vocabulary.tokenizer import Tokenizer, read_tokenizer

TEXTS = [
    "the merge of two models is a model, and layers of a language model have weights and biases",
    "schedules keep memory below a budget whatever the model, the method and the number of inputs",
    "eleven wolves jump over the quick brown fox in 1987; naïve façade, 日本語 and\n\ttabs  here",
]
OTHER = ["zebras graze quietly near rivers while gazelles whirl around", "quartz wizards jinx"]
SPECIAL = ["<unk>", "<s>", "</s>"]


def train(directory: Path, kind: str, texts: list[str], special: list[str], size: int) -> Path:
    """A real tokenizer of one kind, saved as transformers saves it."""
    directory.mkdir(parents=True)
    shared = {"special_tokens": special, "vocab_size": size, "show_progress": False}
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if kind in {"bytes", "whole"}:
        library = Library(models.BPE(ignore_merges=kind == "whole"))
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        library.decoder = decoders.ByteLevel()
        trainer: trainers.Trainer = trainers.BpeTrainer(initial_alphabet=alphabet, **shared)
    elif kind == "pieces":  # as sentencepiece's BPE is converted
        library = Library(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
        library.normalizer = normalizers.Replace(" ", "▁")
        library.decoder = decoders.Replace("▁", " ")
        trainer = trainers.BpeTrainer(**shared)
    elif kind == "words":
        library = Library(models.WordPiece(unk_token="<unk>"))
        library.normalizer = normalizers.BertNormalizer()
        library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        library.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(**shared)
    else:
        library = Library(models.Unigram())
        library.pre_tokenizer = pre_tokenizers.Metaspace()
        library.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token="<unk>", **shared)
    library.train_from_iterator(texts * 3, trainer)
    library.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "eos_token": "</s>",
        "added_tokens_decoder": {
            str(library.token_to_id(token)): {"content": token, "special": True}
            for token in special
        },
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def add(directory: Path, token: str, special: bool) -> None:
    """Give a tokenizer one more token."""
    library = Library.from_file(str(directory / "tokenizer.json"))
    library.add_tokens([LibraryToken(token, special=special, normalized=not special)])
    library.save(str(directory / "tokenizer.json"))


def tokenizer(directory: Path) -> Tokenizer:
    found = read_tokenizer(LocalFolder(directory))
    assert found is not None
    return found
