"""Converts the tokenizer of a GGUF file to files that transformers reads.

A file has the tokens with their kinds and scores, often the merges, and the name of the way in
which text is cut before; what else there is to a tokenizer follows from these.

    gpt2     pairs of bytes, each spelled as a printable letter, merged in the order of the merges
    llama    pieces of text with ▁ for a space, merged by their scores; bytes for what has no piece
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.storage.gguf import StringArray
from mergeloom.planners.models.gguf.families import Family

CONTROL, USER_DEFINED = 3, 4
"""Kinds of tokens that are matched in a text before it is split."""
SPACE = "\u2581"

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
SPLITS = {
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "dbrx", "smaug-bpe", "falcon3"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), _QWEN2),
    **dict.fromkeys(("gpt-4o", "llama4"), _GPT4O),
    "tekken": _TEKKEN,
}
"""Splitting rules by their GGUF names; others split as GPT-2 does."""
_LLAMA3_NAMES = {"llama3", "llama-v3", "llama-bpe"}
_SINGLE_DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"}

_ROLES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


def tokenizer_files(family: Family, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The contents of ``tokenizer.json`` and ``tokenizer_config.json``; nothing where the file
    called ``where`` has no tokenizer.

    Raises:
        CheckpointError: it is of a kind that is not known, or makes no sense.
    """
    kind = values.get("tokenizer.ggml.model")
    if kind is None or kind in ("none", "no_vocab"):
        return {}
    if kind not in ("gpt2", "llama"):
        known = isinstance(kind, str) and kind.isprintable()
        raise CheckpointError(
            f"'{where}' has a tokenizer of the kind '{str(kind)[:40] if known else '?'}', which is "
            "not read",
            remedy="merge its original weights",
        )
    words = _Words(values, where)
    bos = words.flag("add_bos_token", kind == "llama" or words.cut in _LLAMA3_NAMES)
    eos = words.flag("add_eos_token", False)
    roles = {role: token for role, key in _ROLES.items() if (token := words.named(key)) is not None}
    if kind == "gpt2":
        parts = _byte_level(words)
    elif family.architecture.startswith("gemma"):
        parts = _gemma(words)
    else:
        parts = _sentencepiece(words, family.architecture == "phi3")
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": words.added(parts["model"]["vocab"]),
        "normalizer": parts.get("normalizer"),
        "pre_tokenizer": parts.get("pre_tokenizer"),
        "post_processor": _template(roles if bos else {}, roles if eos else {}, words),
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
class _Words:
    """The tokenizer metadata of a file."""

    values: Mapping[str, Any]
    where: str

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """All tokens, by id.

        Raises:
            CheckpointError: there are none.
        """
        found = self._of("tokens")
        if not isinstance(found, StringArray) or not found.count:
            raise CheckpointError(f"'{self.where}' has a tokenizer without tokens")
        return found.values

    @cached_property
    def kinds(self) -> Sequence[int]:
        """The kind of each token, as far as it is told."""
        found = self._of("token_type")
        return found if isinstance(found, tuple) else ()

    @property
    def scores(self) -> Sequence[float]:
        """The score of each token.

        Raises:
            CheckpointError: they are not there.
        """
        found = self._of("scores")
        if not isinstance(found, tuple) or len(found) != len(self.tokens):
            raise CheckpointError(f"'{self.where}' has a tokenizer without merges or scores")
        return found

    @property
    def cut(self) -> str:
        """The name of the splitting rule."""
        found = self._of("pre")
        return found if isinstance(found, str) else ""

    def merges(self) -> list[tuple[str, str]] | None:
        """Pairs of tokens that are merged, in their order; ``None`` if it is not told.

        Raises:
            CheckpointError: one is no pair.
        """
        found = self._of("merges")
        if not isinstance(found, StringArray):
            return None
        pairs = [merge.split(" ") for merge in found.values]
        if any(len(pair) != 2 for pair in pairs):
            raise CheckpointError(f"'{self.where}' has merges that are not pairs of tokens")
        return [(first, second) for first, second in pairs]

    def flag(self, key: str, default: bool) -> bool:
        """A boolean setting."""
        found = self._of(key)
        return found if isinstance(found, bool) else default

    def named(self, key: str) -> str | None:
        """The token whose id is stored under a key."""
        number = self._of(key)
        there = type(number) is int and 0 <= number < len(self.tokens)
        return self.tokens[number] if there else None

    def added(self, vocabulary: Mapping[str, int]) -> list[dict[str, Any]]:
        """The tokens that are matched in a text before it is split."""
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        return [
            {"id": number, "content": token, **flags, "special": kind == CONTROL}
            for number, (token, kind) in enumerate(zip(self.tokens, self.kinds, strict=False))
            if kind in (CONTROL, USER_DEFINED) and vocabulary.get(token) == number
        ]

    def _of(self, key: str) -> Any:
        return self.values.get(f"tokenizer.ggml.{key}")


def _byte_level(words: _Words) -> dict[str, Any]:
    letters = byte_letters()
    alphabet = set(letters)
    kinds = words.kinds
    vocabulary: dict[str, int] = {}
    for number, token in enumerate(words.tokens):
        apart = number < len(kinds) and kinds[number] in (CONTROL, USER_DEFINED)
        plain = apart or alphabet.issuperset(token)
        spelled = token if plain else "".join(letters[byte] for byte in token.encode("utf-8"))
        vocabulary.setdefault(spelled, number)
    merges = words.merges()
    if merges is None:
        raise CheckpointError(f"'{words.where}' has a tokenizer without merges")
    whole_cut = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    split = SPLITS.get(words.cut)
    cuts: dict[str, Any] = {**whole_cut, "use_regex": split is None}
    if split is not None:
        cuts = _both(
            {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False},
            cuts,
        )
    elif words.cut in _SINGLE_DIGITS:
        cuts = _both({"type": "Digits", "individual_digits": True}, cuts)
    return {
        "pre_tokenizer": cuts,
        "decoder": {**whole_cut, "add_prefix_space": True, "use_regex": True},
        "model": _bpe(vocabulary, merges, whole=words.cut in _LLAMA3_NAMES),
    }


def _sentencepiece(words: _Words, prepends: bool) -> dict[str, Any]:
    """Pieces of text. If it ``prepends``, the first space is put before the text itself."""
    vocabulary = {token: number for number, token in enumerate(words.tokens)}
    merges = words.merges()
    if merges is None:
        merges = _merges_by_score(vocabulary, dict(zip(words.tokens, words.scores, strict=True)))
    begins = words.flag("add_space_prefix", True)
    decoder = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if begins:
        decoder.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    parts: dict[str, Any] = {
        "decoder": {"type": "Sequence", "decoders": decoder},
        "model": _bpe(vocabulary, merges, bytes_too=True, unknown=words.named("unknown_token_id")),
    }
    if prepends:
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


def _gemma(words: _Words) -> dict[str, Any]:
    """Pieces of text whose scores do not tell the order of merges, but their numbers do.

    Tokens of several spaces are written with real ones.
    """
    tokens = [
        SPACE * len(token) if " " in token and not token.strip(" ") else token
        for token in words.tokens
    ]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = words.merges()
    if merges is None:
        order = {token: -number for number, token in enumerate(tokens)}
        merges = _merges_by_score(vocabulary, order)
    decoder = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    return {
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "decoder": {"type": "Sequence", "decoders": decoder},
        "model": _bpe(vocabulary, merges, bytes_too=True, unknown=words.named("unknown_token_id")),
    }


def _bpe(
    vocabulary: Mapping[str, int],
    merges: Iterable[tuple[str, str]],
    *,
    bytes_too: bool = False,
    unknown: str | None = None,
    whole: bool = False,
) -> dict[str, Any]:
    """A BPE model; if ``whole``, a word that is a token is not split."""
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
        "fuse_unk": bytes_too,
        "byte_fallback": bytes_too,
        "ignore_merges": whole,
        "vocab": vocabulary,
        "merges": known,
    }


def _merges_by_score(
    vocabulary: Mapping[str, int], scores: Mapping[str, float]
) -> list[tuple[str, str]]:
    """Every way to put a token together of two others, the token with the highest score first.

    Of one token's ways that with the longest first part is tried first.
    """
    found: list[tuple[float, int, int, str, str]] = []
    for token, score in scores.items():
        ways = [
            (token[:cut], token[cut:])
            for cut in range(1, len(token))
            if token[:cut] in vocabulary and token[cut:] in vocabulary
        ]
        ways.sort(key=lambda way: (vocabulary[way[0]], vocabulary[way[1]]))
        found += ((score, len(first), len(second), first, second) for first, second in ways)
    found.sort(key=lambda way: way[:3], reverse=True)
    return [(first, second) for *_, first, second in found]


def _both(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": [first, second]}


def _template(before: Mapping[str, str], after: Mapping[str, str], words: _Words) -> dict[str, Any]:
    """What is put around a text: a token that begins it and one that ends it, if there are any."""
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
            number = words.tokens.index(token)
            special[token] = {"id": token, "ids": [number], "tokens": [token]}
    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": special,
    }


def byte_letters() -> list[str]:
    """The letter that each byte is spelled as: itself where it is printable in Latin-1, or else
    one of those from U+0100 on, in turn."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
