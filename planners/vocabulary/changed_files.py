"""The files of the output's tokenizer: those of its source model, with tokens added and removed.

Added tokens of other models, above all special ones, are recognised in text as in those models.
Their ordinary tokens are added to the vocabulary without merges, or with the lowest score, so that
text is split as before.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from mergeloom.engine.storage.folder import Folder
from mergeloom.planners.models.small_files import read_object
from mergeloom.planners.vocabulary.tokenizer import (
    SETTINGS_FILE,
    TOKENIZER_FILE,
    TokenChanges,
    tokenizer_json,
)
from mergeloom.planners.vocabulary.tokens import added_entries, unknown_format_error

_ADDED_FILE = "added_tokens.json"
_SUPERSEDED_FILES = (
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tiktoken.model",
    "tekken.json",
)
"""Older vocabulary files, which are left out when ordinary tokens are added or removed."""


def changed_files(folder: Folder, changes: TokenChanges) -> dict[str, bytes | None]:
    """New contents of files of the tokenizer in ``folder``; ``None`` for files that are left out.

    Raises:
        CheckpointError: it is malformed.
    """
    if not changes:
        return {}
    document = tokenizer_json(folder)
    if document is None:
        raise unknown_format_error(f"{folder.name}/{TOKENIZER_FILE}")
    _change_tokenizer_json(document, changes, f"{folder.name}/{TOKENIZER_FILE}")
    files: dict[str, bytes | None] = {TOKENIZER_FILE: _json(document, None)}
    if folder.has(SETTINGS_FILE):
        settings = read_object(folder, SETTINGS_FILE)
        if _change_settings(settings, changes):
            files[SETTINGS_FILE] = _json(settings, 2)
    if folder.has(_ADDED_FILE):
        known = {
            token: number
            for token, number in read_object(folder, _ADDED_FILE).items()
            if token not in changes.removed
        }
        known.update((token.content, token.number) for token in changes.added.values())
        files[_ADDED_FILE] = _json(known, 2)
    if changes.ordinary or changes.removed:
        files.update((name, None) for name in _SUPERSEDED_FILES if folder.has(name))
        files.update((name, None) for name in folder.names() if name.endswith(".tiktoken"))
    return files


def _change_tokenizer_json(document: dict[str, Any], changes: TokenChanges, path: str) -> None:
    """Change the content of ``tokenizer.json``.

    The library gives an added token the next free id, unless the vocabulary has it; so all are put
    into the vocabulary if they would get other ids.
    """
    model = document["model"]
    by_content = {item.get("content"): item for item in added_entries(document, path)}
    for new in changes.added.values():
        by_content[new.content] = {"id": new.number, "content": new.content, **new.flags}
    kept = [item for content, item in by_content.items() if content not in changes.removed]
    document["added_tokens"] = sorted(kept, key=lambda item: item["id"])
    entries = {item["content"]: item["id"] for item in kept}
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        for token in changes.removed:
            vocabulary.pop(token, None)
        vocabulary.update(changes.ordinary)
        if not _get_their_ids(document["added_tokens"], vocabulary):
            for token, number in entries.items():
                vocabulary.setdefault(token, number)
    elif isinstance(vocabulary, list):
        model["vocab"] = _with_scores(vocabulary, entries, changes)
    else:
        raise unknown_format_error(path)
    if changes.removed and isinstance(model.get("merges"), list):
        model["merges"] = [merge for merge in model["merges"] if _is_kept(merge, changes.removed)]


def _get_their_ids(added: Sequence[Mapping[str, Any]], vocabulary: Mapping[str, int]) -> bool:
    """Whether the library gives added tokens the ids they have, even if the vocabulary lacks them:
    one after the other, from its number of tokens on."""
    following = len(vocabulary)
    for item in added:
        if item["content"] in vocabulary:
            following = max(following, item["id"] + 1)
        elif item["id"] != following:
            return False
        else:
            following += 1
    return True


def _with_scores(
    pieces: list[list[Any]], added: Mapping[str, int], changes: TokenChanges
) -> list[list[Any]]:
    """Pieces with scores, in the order of ids; added ones get a lower score than all others."""
    kept = [piece for piece in pieces if piece[0] not in changes.removed]
    known = {piece[0] for piece in kept}
    more = {**added, **changes.ordinary}
    following = {number: token for token, number in more.items() if token not in known}
    last = max(following, default=-1)
    lowest = min((piece[1] for piece in kept), default=0.0) - 10_000.0
    for number in range(len(kept), last + 1):
        kept.append([following.get(number, f"<unused {number}>"), lowest])
    return kept


def _is_kept(merge: object, removed: frozenset[str]) -> bool:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list):
        return True
    return not removed.intersection((*parts, "".join(parts)))


def _change_settings(settings: dict[str, Any], changes: TokenChanges) -> bool:
    """Change the content of ``tokenizer_config.json``; returns whether it has added tokens."""
    listed = settings.get("added_tokens_decoder")
    if not isinstance(listed, dict):
        return False
    kept = {
        number: item
        for number, item in listed.items()
        if not isinstance(item, dict) or item.get("content") not in changes.removed
    }
    for token in changes.added.values():
        kept[str(token.number)] = {"content": token.content, **token.flags}
    ordered = sorted(kept.items(), key=lambda item: int(item[0]))
    settings["added_tokens_decoder"] = dict(ordered)
    return True


def _json(document: Mapping[str, Any], indent: int | None) -> bytes:
    """JSON as UTF-8, encoded piece by piece, because one string may take four bytes per
    character."""
    whole = json.dumps(document, indent=indent, ensure_ascii=False) if indent else None
    content = bytearray()
    try:
        for piece in _pieces(document) if whole is None else (whole,):
            content += piece.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell and UTF-8 cannot
        return (json.dumps(document, indent=indent) + "\n").encode()
    content += b"\n"
    return bytes(content)


_ENTRIES_PER_PIECE = 4096
"""Maximum entries of a vocabulary or of a list of merges in one piece."""


def _pieces(value: Any) -> Iterator[str]:
    """The result of `json.dumps` in pieces of at most `_ENTRIES_PER_PIECE` entries."""
    if not isinstance(value, (dict, list)) or not value:
        yield json.dumps(value, ensure_ascii=False)
        return
    is_list = isinstance(value, list)
    rest = iter(value if isinstance(value, list) else value.items())
    before = "[" if is_list else "{"
    if is_list or len(value) > _ENTRIES_PER_PIECE:
        while some := list(islice(rest, _ENTRIES_PER_PIECE)):
            yield before + json.dumps(some if is_list else dict(some), ensure_ascii=False)[1:-1]
            before = ", "
    else:
        for key, inner in rest:
            yield f"{before}{json.dumps(key, ensure_ascii=False)}: "
            yield from _pieces(inner)
            before = ", "
    yield "]" if is_list else "}"
