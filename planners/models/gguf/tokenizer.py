"""Converts the tokenizer of a GGUF file to files that transformers reads.

A file has the tokens with their kinds and scores, often the merges, and the name of the rule that
splits text first. Everything else follows from these.

    gpt2     bytes, written as printable characters, are merged in the order of the merges
    llama    pieces of text, with ▁ for a space, are merged by score; other text becomes bytes
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.storage.gguf import StringArray
from mergeloom.planners.models.gguf.families import CONVERT_AGAIN, ORIGINAL, Family
from mergeloom.planners.vocabulary.spelling import byte_characters

CONTROL, USER_DEFINED = 3, 4
"""Kinds of tokens that are recognised before text is split."""
SPACE = "\u2581"

_DECODERS: tuple[dict[str, Any], ...] = (
    {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
)
"""What turns pieces of text with `SPACE` for spaces, and bytes, into text."""

_LETTERS, _DIGITS = r"\p{L}", r"\p{N}"
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = tuple(
    rf"[^\r\n\p{{L}}\p{{N}}]?{start}" for start in (f"{_UPPER}*{_LOWER}+", f"{_UPPER}+{_LOWER}*")
)
_MARKS_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"

_LLAMA3 = "|".join((_CONTRACTIONS, _WORD, _DIGITS + "{1,3}", _MARKS, _SPACES))
_QWEN2 = "|".join((_CONTRACTIONS, _WORD, _DIGITS, _MARKS, _SPACES))
_TEKKEN = "|".join((*_CASED, _DIGITS, _MARKS_SLASH, _SPACES))
_GPT4O = "|".join(
    (*(f"{word}{_CONTRACTIONS}?" for word in _CASED), _DIGITS + "{1,3}", _MARKS_SLASH, _SPACES)
)
SPLITTING_PATTERNS = {
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "dbrx", "smaug-bpe", "falcon3"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), _QWEN2),
    **dict.fromkeys(("gpt-4o", "llama4"), _GPT4O),
    "tekken": _TEKKEN,
}
"""Regular expressions of splitting rules, by GGUF name; other rules split as GPT-2 does."""
_LLAMA3_NAMES = {"llama3", "llama-v3", "llama-bpe"}
_SINGLE_DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"}

_ROLES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


def tokenizer_files(family: Family, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The contents of ``tokenizer.json`` and ``tokenizer_config.json``; empty if the file, called
    ``where``, has no tokenizer.

    Raises:
        CheckpointError: the kind of tokenizer is not supported, or it is malformed.
    """
    kind = values.get("tokenizer.ggml.model")
    if kind is None or kind in ("none", "no_vocab"):
        return {}
    if kind not in ("gpt2", "llama"):
        known = isinstance(kind, str) and kind.isprintable()
        raise CheckpointError(
            f"'{where}' has a tokenizer of the kind '{str(kind)[:40] if known else '?'}', which is "
            "not supported",
            remedy=ORIGINAL,
        )
    metadata = _TokenizerMetadata(values, where)
    bos = metadata.flag(
        "add_bos_token", kind == "llama" or metadata.splitting_rule in _LLAMA3_NAMES
    )
    eos = metadata.flag("add_eos_token", False)
    roles = {
        role: token for role, key in _ROLES.items() if (token := metadata.token_of(key)) is not None
    }
    if kind == "gpt2":
        parts = _byte_level(metadata)
    elif family.architecture.startswith("gemma"):
        parts = _gemma(metadata)
    else:
        parts = _sentencepiece(metadata, family.architecture == "phi3")
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": metadata.added_tokens(parts["model"]["vocab"]),
        "normalizer": parts.get("normalizer"),
        "pre_tokenizer": parts.get("pre_tokenizer"),
        "post_processor": _post_processor(roles if bos else {}, roles if eos else {}, metadata),
        "decoder": parts["decoder"],
        "model": parts["model"],
    }
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": bos,
        "add_eos_token": eos,
        **roles,
    }
    length = values.get(f"{family.architecture}.context_length")
    if type(length) is int:
        settings["model_max_length"] = length
    template = values.get("tokenizer.chat_template")
    if isinstance(template, str):
        settings["chat_template"] = template
    return {"tokenizer.json": document, "tokenizer_config.json": settings}


@dataclass(frozen=True)
class _TokenizerMetadata:
    """The tokenizer metadata of a file."""

    values: Mapping[str, Any]
    where: str

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """All tokens, by id.

        Raises:
            CheckpointError: there are none.
        """
        found = self._get("tokens")
        if not isinstance(found, StringArray) or not found.count:
            raise CheckpointError(
                f"'{self.where}' has a tokenizer without tokens", remedy=CONVERT_AGAIN
            )
        return found.values

    @cached_property
    def kinds(self) -> Sequence[int]:
        """The kind of each token; empty if the file has none."""
        found = self._get("token_type")
        return found if isinstance(found, tuple) else ()

    @property
    def scores(self) -> Sequence[float]:
        """The score of each token.

        Raises:
            CheckpointError: the file has none.
        """
        found = self._get("scores")
        if not isinstance(found, tuple) or len(found) != len(self.tokens):
            raise CheckpointError(
                f"'{self.where}' has a tokenizer without merges or scores", remedy=CONVERT_AGAIN
            )
        return found

    @property
    def splitting_rule(self) -> str:
        """The name of the splitting rule."""
        found = self._get("pre")
        return found if isinstance(found, str) else ""

    def merges(self) -> list[tuple[str, str]] | None:
        """The pairs of tokens to merge, in order; ``None`` if the file has none.

        Raises:
            CheckpointError: one is not a pair.
        """
        found = self._get("merges")
        if not isinstance(found, StringArray):
            return None
        pairs = [merge.split(" ") for merge in found.values]
        if any(len(pair) != 2 for pair in pairs):
            raise CheckpointError(
                f"'{self.where}' has merges that are not pairs of tokens", remedy=CONVERT_AGAIN
            )
        return [(first, second) for first, second in pairs]

    def flag(self, key: str, default: bool) -> bool:
        """A boolean setting."""
        found = self._get(key)
        return found if isinstance(found, bool) else default

    def token_of(self, key: str) -> str | None:
        """The token whose id is stored under a key."""
        number = self._get(key)
        there = type(number) is int and 0 <= number < len(self.tokens)
        return self.tokens[number] if there else None

    def added_tokens(self, vocabulary: Mapping[str, int]) -> list[dict[str, Any]]:
        """The tokens that are recognised before text is split, as entries of ``tokenizer.json``."""
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        return [
            {"id": number, "content": token, **flags, "special": kind == CONTROL}
            for number, (token, kind) in enumerate(zip(self.tokens, self.kinds, strict=False))
            if kind in (CONTROL, USER_DEFINED) and vocabulary.get(token) == number
        ]

    def _get(self, key: str) -> Any:
        return self.values.get(f"tokenizer.ggml.{key}")


def _byte_level(metadata: _TokenizerMetadata) -> dict[str, Any]:
    characters = byte_characters()
    alphabet = set(characters)
    kinds = metadata.kinds
    vocabulary: dict[str, int] = {}
    for number, token in enumerate(metadata.tokens):
        is_added = number < len(kinds) and kinds[number] in (CONTROL, USER_DEFINED)
        plain = is_added or alphabet.issuperset(token)
        spelled = token if plain else "".join(characters[byte] for byte in token.encode("utf-8"))
        vocabulary.setdefault(spelled, number)
    merges = metadata.merges()
    if merges is None:
        raise CheckpointError(
            f"'{metadata.where}' has a tokenizer without merges", remedy=CONVERT_AGAIN
        )
    whole_cut = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    split = SPLITTING_PATTERNS.get(metadata.splitting_rule)
    pre_tokenizer: dict[str, Any] = {**whole_cut, "use_regex": split is None}
    if split is not None:
        pre_tokenizer = _sequence(
            {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False},
            pre_tokenizer,
        )
    elif metadata.splitting_rule in _SINGLE_DIGITS:
        pre_tokenizer = _sequence({"type": "Digits", "individual_digits": True}, pre_tokenizer)
    return {
        "pre_tokenizer": pre_tokenizer,
        "decoder": {**whole_cut, "add_prefix_space": True, "use_regex": True},
        "model": _bpe(vocabulary, merges, ignores_merges=metadata.splitting_rule in _LLAMA3_NAMES),
    }


def _sentencepiece(metadata: _TokenizerMetadata, uses_normalizer: bool) -> dict[str, Any]:
    """A tokenizer of pieces of text. With ``uses_normalizer``, a normalizer replaces spaces,
    otherwise a pre-tokenizer does."""
    vocabulary = {token: number for number, token in enumerate(metadata.tokens)}
    merges = metadata.merges()
    if merges is None:
        merges = _merges_by_score(
            vocabulary, dict(zip(metadata.tokens, metadata.scores, strict=True))
        )
    begins = metadata.flag("add_space_prefix", True)
    decoder = [*_DECODERS]
    if begins:
        decoder.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    parts: dict[str, Any] = {
        "decoder": {"type": "Sequence", "decoders": decoder},
        "model": _bpe(
            vocabulary,
            merges,
            has_byte_fallback=True,
            unknown=metadata.token_of("unknown_token_id"),
        ),
    }
    if uses_normalizer:
        spaces: list[dict[str, Any]] = [{"type": "Prepend", "prepend": SPACE}] if begins else []
        spaces.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
        parts["normalizer"] = {"type": "Sequence", "normalizers": spaces}
    else:
        parts["pre_tokenizer"] = {
            "type": "Metaspace",
            "replacement": SPACE,
            "prepend_scheme": "first" if begins else "never",
            "split": False,
        }
    return parts


def _gemma(metadata: _TokenizerMetadata) -> dict[str, Any]:
    """A tokenizer of pieces of text that are merged in the order of their ids.

    A file has real spaces in tokens that consist of spaces.
    """
    tokens = [
        SPACE * len(token) if " " in token and not token.strip(" ") else token
        for token in metadata.tokens
    ]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = metadata.merges()
    if merges is None:
        order = {token: -number for number, token in enumerate(tokens)}
        merges = _merges_by_score(vocabulary, order)
    return {
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "decoder": {"type": "Sequence", "decoders": [*_DECODERS]},
        "model": _bpe(
            vocabulary,
            merges,
            has_byte_fallback=True,
            unknown=metadata.token_of("unknown_token_id"),
        ),
    }


def _bpe(
    vocabulary: Mapping[str, int],
    merges: Iterable[tuple[str, str]],
    *,
    has_byte_fallback: bool = False,
    unknown: str | None = None,
    ignores_merges: bool = False,
) -> dict[str, Any]:
    """A BPE model; if ``ignores_merges``, a word that is a token is not split."""
    known = [
        pair
        for pair in merges
        if pair[0] in vocabulary and pair[1] in vocabulary and "".join(pair) in vocabulary
    ]
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": has_byte_fallback,
        "byte_fallback": has_byte_fallback,
        "ignore_merges": ignores_merges,
        "vocab": vocabulary,
        "merges": known,
    }


def _merges_by_score(
    vocabulary: Mapping[str, int], scores: Mapping[str, float]
) -> list[tuple[str, str]]:
    """All merges of two tokens into a third, by decreasing score of the result; for one result,
    those with the longest first token come first."""
    found: list[tuple[float, int, int, str, str]] = []
    for token, score in scores.items():
        splits = [
            (token[:splitting_rule], token[splitting_rule:])
            for splitting_rule in range(1, len(token))
            if token[:splitting_rule] in vocabulary and token[splitting_rule:] in vocabulary
        ]
        splits.sort(key=lambda way: (vocabulary[way[0]], vocabulary[way[1]]))
        found += ((score, len(first), len(second), first, second) for first, second in splits)
    found.sort(key=lambda way: way[:3], reverse=True)
    return [(first, second) for *_, first, second in found]


def _sequence(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": [first, second]}


def _post_processor(
    before: Mapping[str, str], after: Mapping[str, str], metadata: _TokenizerMetadata
) -> dict[str, Any]:
    """The post-processor that adds a token at the beginning and one at the end, if there are
    any."""
    ends = [before.get("bos_token"), after.get("eos_token")]
    special: dict[str, Any] = {}

    def around(name: str, kind: int) -> list[dict[str, Any]]:
        start, end = (
            [] if token is None else [{"SpecialToken": {"id": token, "type_id": kind}}]
            for token in ends
        )
        return [*start, {"Sequence": {"id": name, "type_id": kind}}, *end]

    for token in ends:
        if token is not None:
            number = metadata.tokens.index(token)
            special[token] = {"id": token, "ids": [number], "tokens": [token]}
    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": special,
    }
