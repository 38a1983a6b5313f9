"""Reads the tokens of a tokenizer from its files, without a tokenizer library."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.storage.folder import Folder
from mergeloom.planners.models.small_files import read_object

MAX_BYTES = 64 << 20
"""Maximum size of a tokenizer file."""

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
)
_VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model")
"""Files with a vocabulary, by precedence."""

_DECIMAL = re.compile("[0-9]{1,9}")


def read_vocabulary(folder: Folder) -> dict[str, int] | None:
    """The ids of all tokens, including added ones; ``None`` if there is no file with a vocabulary.

    Raises:
        CheckpointError: a file is malformed.
    """
    found = _read_base(folder)
    if found is None:
        return None
    added, settings = "added_tokens.json", "tokenizer_config.json"
    if folder.has(added):
        where = f"{folder.name}/{added}"
        items = read_object(folder, added).items()
        found.update((token, _number(number, where)) for token, number in items)
    if folder.has(settings):
        where = f"{folder.name}/{settings}"
        later = read_object(folder, settings).get("added_tokens_decoder")
        for number, token in (later if isinstance(later, dict) else {}).items():
            if not isinstance(token, Mapping) or not _DECIMAL.fullmatch(number):
                raise unknown_format_error(where)
            found[_text(token.get("content"), where)] = int(number)
    return found


def _read_base(folder: Folder) -> dict[str, int] | None:
    name = next((each for each in _VOCABULARY_FILES if folder.has(each)), None)
    if name is None:
        return None
    where = f"{folder.name}/{name}"
    if name == "tokenizer.json":
        return dict(_tokenizer_json_tokens(read_object(folder, name), where))
    if name == "vocab.json":
        items = read_object(folder, name).items()
        return {token: _number(number, where) for token, number in items}
    content = read_content(folder, name)
    if name == "vocab.txt":
        words = content.decode("utf-8", "replace").splitlines()
        return {word: number for number, word in enumerate(words)}
    return {piece: number for number, piece in enumerate(_sentencepiece_pieces(content, where))}


def _tokenizer_json_tokens(document: Mapping[str, Any], path: str) -> Iterator[tuple[str, int]]:
    """Tokens of a ``tokenizer.json``."""
    model = document.get("model")
    found = model.get("vocab") if isinstance(model, Mapping) else None
    if isinstance(found, Mapping):
        yield from ((token, _number(number, path)) for token, number in found.items())
    elif isinstance(found, list):  # with scores
        for number, item in enumerate(found):
            piece = item[0] if isinstance(item, list) and item else None
            yield _text(piece, path), number
    for item in added_entries(document, path):
        yield _text(item.get("content"), path), _number(item.get("id"), path)


def added_entries(document: Mapping[str, Any], path: str) -> list[dict[str, Any]]:
    """The entries of added tokens in a ``tokenizer.json``.

    Raises:
        CheckpointError: they are not a list of objects.
    """
    found = document.get("added_tokens")
    entries = [] if found is None else found
    if not isinstance(entries, list) or not all(isinstance(item, dict) for item in entries):
        raise unknown_format_error(path)
    return entries


def _sentencepiece_pieces(content: bytes, path: str) -> Iterator[str]:
    """Pieces of a sentencepiece model: field 1 of its message, in which field 1 is the text."""
    for number, piece in _message_fields(content, path):
        if number == 1:
            texts = (text for inner, text in _message_fields(piece, path) if inner == 1)
            yield next(texts, b"").decode("utf-8", "replace")


def _message_fields(message: bytes, path: str) -> Iterator[tuple[int, bytes]]:
    """The fields of a protocol buffer message that have a length: their numbers and bytes."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place, path)
        kind = tag & 7
        length = {1: 8, 5: 4}.get(kind, 0)
        if kind == 0:
            _, place = _varint(message, place, path)
        elif kind == 2:
            length, place = _varint(message, place, path)
        elif not length:
            raise unknown_format_error(path)
        if place + length > len(message):
            raise unknown_format_error(path)
        if kind == 2:
            yield tag >> 3, message[place : place + length]
        place += length


def _varint(message: bytes, place: int, path: str) -> tuple[int, int]:
    value = shift = 0
    while place < len(message) and shift < 64:
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
    raise unknown_format_error(path)


def read_content(folder: Folder, name: str) -> bytes:
    """The bytes of a tokenizer file.

    Raises:
        CheckpointError: it cannot be read, is too large, or leads outside.
    """
    return folder.read(name, MAX_BYTES)


def _number(value: object, path: str) -> int:
    if type(value) is not int or value < 0:
        raise unknown_format_error(path)
    return value


def _text(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise unknown_format_error(path)
    return value


def unknown_format_error(path: str) -> CheckpointError:
    """An error about a malformed tokenizer file."""
    return CheckpointError(
        f"'{path}' is not a tokenizer file of a known format",
        remedy="copy or download it again, or save it again with transformers",
    )
