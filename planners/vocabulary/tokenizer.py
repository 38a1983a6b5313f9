"""Reads tokenizers from their files: tokens with ids and flags, rules, special tokens.

`tokenizer.json` is read as JSON. Older files are first converted to it by transformers, which is
imported for nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import field
from functools import cached_property
from typing import Any

from mergeloom.engine.base import bounded_json
from mergeloom.engine.base.errors import COPY_AGAIN, CheckpointError
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.storage.folder import Folder
from mergeloom.planners.models.small_files import read_object
from mergeloom.planners.vocabulary.older_files import convert_older_files, has_older_files
from mergeloom.planners.vocabulary.spelling import Spelling, spelling_of, text_bytes
from mergeloom.planners.vocabulary.tokens import added_entries, read_content, unknown_format_error

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
"""Flags of an added token: how it is matched in text."""

SETTINGS_FILE = "tokenizer_config.json"
TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is recognised in text before any rule is applied; ``flags`` by name.

    ``is_extra`` says that the vocabulary of the model in ``tokenizer.json`` does not have it.
    """

    content: str
    number: int
    flags: Mapping[str, bool]
    is_extra: bool = True

    @property
    def special(self) -> bool:
        return self.flags["special"]


@dataclass(frozen=True, eq=False)
class TokenChanges:
    """The changes of a tokenizer: ordinary and added tokens that it gets, with their ids, and
    tokens that it loses. An added token may be an ordinary one already."""

    ordinary: Mapping[str, int] = field(default_factory=dict)
    added: Mapping[str, AddedToken] = field(default_factory=dict)
    removed: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.ordinary or self.added or self.removed)


NO_CHANGES = TokenChanges()


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """The tokenizer of one model.

    ``ids`` has all tokens, including added ones. ``rules`` has digests of the other parts that
    determine how text is split, by name. ``settings`` is the content of ``tokenizer_config.json``,
    ``spelling`` says how ordinary tokens are written.
    """

    folder: Folder
    kind: str
    ids: Mapping[str, int]
    added: Mapping[str, AddedToken]
    rules: Mapping[str, str]
    settings: Mapping[str, Any]
    takes_whole_words: bool = False
    changes: TokenChanges = NO_CHANGES
    template: str | None = None
    spelling: Spelling = "plain"

    @cached_property
    def special_names(self) -> dict[str, str]:
        """Special tokens by role (``bos_token``, ``eos_token``, ...)."""
        found = {}
        for key, value in self.settings.items():
            if key.endswith("_token"):
                content = value.get("content") if isinstance(value, Mapping) else value
                if isinstance(content, str):
                    found[key] = content
        return found

    def text_of(self, token: str) -> bytes | None:
        """The bytes of text that a token represents; ``None`` for a special token.

        An added token that is not special represents itself, apart from the spelling of spaces.
        """
        added = self.added.get(token)
        if added is None:
            return text_bytes(token, self.spelling)
        if added.special:
            return None
        return text_bytes(token, "pieces" if self.spelling == "pieces" else "plain")


def read_tokenizer(folder: Folder) -> Tokenizer | None:
    """The tokenizer in ``folder``; ``None`` if there is none.

    Raises:
        CheckpointError: it is malformed or not supported.
    """
    document = tokenizer_json(folder)
    if document is None:
        return None
    path = f"{folder.name}/{TOKENIZER_FILE}"
    model = document.get("model")
    if not isinstance(model, dict):
        raise unknown_format_error(path)
    ids = _vocabulary_ids(model.get("vocab"), path)
    settings = read_settings(folder)
    added = {token.content: token for token in added_tokens(document, settings, ids, path)}
    ids.update((token.content, token.number) for token in added.values())
    pipeline = {"normalizer": "normaliser", "pre_tokenizer": "pre-tokenizer"}
    rules = {name: _digest(document.get(key)) for key, name in pipeline.items()}
    kind = model.get("type")
    return Tokenizer(
        folder,
        kind if isinstance(kind, str) else "BPE" if "merges" in model else "?",
        ids,
        added,
        rules,
        settings,
        model.get("ignore_merges") is True or kind == "WordPiece",
        spelling=spelling_of(document),
    )


def ids_of(content: bytes, path: str) -> dict[str, int]:
    """The tokens of a ``tokenizer.json`` with this ``content``; messages call it ``path``.

    Raises:
        CheckpointError: it is malformed.
    """
    document = _parsed_json(content, path)
    model = document.get("model")
    ids = _vocabulary_ids(model.get("vocab") if isinstance(model, dict) else None, path)
    ids.update((each.content, each.number) for each in added_tokens(document, {}, ids, path))
    return ids


def read_settings(folder: Folder) -> dict[str, Any]:
    """The content of ``tokenizer_config.json``; empty if there is none."""
    return read_object(folder, SETTINGS_FILE) if folder.has(SETTINGS_FILE) else {}


def tokenizer_json(folder: Folder) -> dict[str, Any] | None:
    """The content of ``tokenizer.json``, or the conversion of older files by transformers.

    Raises:
        CheckpointError: it is malformed, or transformers is needed and not installed.
    """
    path = f"{folder.name}/{TOKENIZER_FILE}"
    if folder.has(TOKENIZER_FILE):
        return _parsed_json(read_content(folder, TOKENIZER_FILE), path)
    if not has_older_files(folder):
        return None
    text = convert_older_files(folder)
    return None if text is None else _parsed_json(text.encode(), path)


def tokenizer_json_text(folder: Folder) -> str:
    """The text of `tokenizer_json`; empty if there is none."""
    document = tokenizer_json(folder)
    return "" if document is None else json.dumps(document)


def added_tokens(
    document: Mapping[str, Any],
    settings: Mapping[str, Any],
    ids: Mapping[str, int],
    path: str,
) -> Sequence[AddedToken]:
    """The added tokens in ``tokenizer.json``, then those that the settings add.

    Raises:
        CheckpointError: they are malformed.
    """
    found: dict[str, AddedToken] = {}
    for item in added_entries(document, path):
        token = _added_token(item, item.get("id"), path, ids)
        found[token.content] = token
    later = settings.get("added_tokens_decoder")
    for number, item in (later if isinstance(later, Mapping) else {}).items():
        if not number.isdecimal() or len(number) > 9:
            raise unknown_format_error(f"{path.rpartition('/')[0]}/{SETTINGS_FILE}")
        token = _added_token(item, int(number), f"{path.rpartition('/')[0]}/{SETTINGS_FILE}", ids)
        if token.content not in found and ids.get(token.content, token.number) == token.number:
            found[token.content] = token
    return list(found.values())


def _added_token(item: object, number: object, path: str, own: Mapping[str, int]) -> AddedToken:
    if not isinstance(item, Mapping) or type(number) is not int or number < 0:
        raise unknown_format_error(path)
    content = item.get("content")
    if not isinstance(content, str):
        raise unknown_format_error(path)
    special = item.get("special") is True
    flags = {flag: item.get(flag) is True for flag in FLAGS}
    if "normalized" not in item:
        flags["normalized"] = not special
    return AddedToken(content, number, flags, content not in own)


def _vocabulary_ids(vocabulary: object, path: str) -> dict[str, int]:
    if isinstance(vocabulary, dict):
        if not all(type(number) is int and number >= 0 for number in vocabulary.values()):
            raise unknown_format_error(path)
        return dict(vocabulary)
    if isinstance(vocabulary, list):  # with scores
        pieces = [item[0] if _is_scored(item) else None for item in vocabulary]
        if not all(isinstance(piece, str) for piece in pieces):
            raise unknown_format_error(path)
        return {piece: number for number, piece in enumerate(pieces) if isinstance(piece, str)}
    raise unknown_format_error(path)


def _is_scored(item: object) -> bool:
    return isinstance(item, list) and len(item) == 2 and isinstance(item[1], (int, float))


def _parsed_json(content: bytes, path: str) -> dict[str, Any]:
    try:
        document = bounded_json.parse(content)
    except ValueError as error:
        raise CheckpointError(f"'{path}' is not valid JSON: {error}", remedy=COPY_AGAIN) from error
    if not isinstance(document, dict):
        raise unknown_format_error(path)
    return document


def _digest(part: object) -> str:
    if isinstance(part, dict) and part.get("type") == "Sequence":
        inner = part.get("normalizers", part.get("pretokenizers"))
        part = inner or None
    text = json.dumps(part, sort_keys=True)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
