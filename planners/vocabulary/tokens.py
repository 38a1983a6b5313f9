"""The tokens of a tokenizer, from its files alone, with no tokenizer library."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.planners.models.small_files import check_inside, read_json

MAX_BYTES = 64 << 20
"""Of a file of tokens."""

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
)
_DECIMAL = re.compile("[0-9]{1,9}")


def vocabulary(directory: Path) -> dict[str, int] | None:
    """Numbers by tokens, added tokens included; ``None`` where no file tells.

    Raises:
        CheckpointError: a file is there and cannot be understood.
    """
    for name in FILES:
        check_inside(directory, name)
    found = _base(directory)
    if found is None:
        return None
    added = directory / "added_tokens.json"
    if added.is_file():
        found.update((token, _number(number, added)) for token, number in read_json(added).items())
    settings = directory / "tokenizer_config.json"
    if settings.is_file():
        later = read_json(settings).get("added_tokens_decoder")
        for number, token in (later if isinstance(later, dict) else {}).items():
            if not isinstance(token, Mapping) or not _DECIMAL.fullmatch(number):
                raise _unclear(settings)
            found[_text(token.get("content"), settings)] = int(number)
    return found


def _base(directory: Path) -> dict[str, int] | None:
    whole, plain = directory / "tokenizer.json", directory / "vocab.json"
    if whole.is_file():
        return dict(_of_library(read_json(whole), whole))
    if plain.is_file():
        return {token: _number(number, plain) for token, number in read_json(plain).items()}
    lines = directory / "vocab.txt"
    if lines.is_file():
        words = read_content(lines).decode("utf-8", "replace").splitlines()
        return {word: number for number, word in enumerate(words)}
    pieces = directory / "tokenizer.model"
    if pieces.is_file():
        return {piece: number for number, piece in enumerate(_pieces(pieces))}
    return None


def _of_library(document: Mapping[str, Any], path: Path) -> Iterator[tuple[str, int]]:
    """Tokens of a ``tokenizer.json``."""
    model = document.get("model")
    found = model.get("vocab") if isinstance(model, Mapping) else None
    if isinstance(found, Mapping):
        yield from ((token, _number(number, path)) for token, number in found.items())
    elif isinstance(found, list):  # with scores
        for number, item in enumerate(found):
            piece = item[0] if isinstance(item, list) and item else None
            yield _text(piece, path), number
    added = document.get("added_tokens")
    for item in added if isinstance(added, list) else ():
        if not isinstance(item, Mapping):
            raise _unclear(path)
        yield _text(item.get("content"), path), _number(item.get("id"), path)


def _pieces(path: Path) -> Iterator[str]:
    """Pieces of a sentencepiece model: field 1 of its message, in which field 1 is the text."""
    for number, piece in _fields(read_content(path), path):
        if number == 1:
            texts = (text for inner, text in _fields(piece, path) if inner == 1)
            yield next(texts, b"").decode("utf-8", "replace")


def _fields(message: bytes, path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered fields of a protocol buffer message; the bytes of those that have a length."""
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
            raise _unclear(path)
        if place + length > len(message):
            raise _unclear(path)
        if kind == 2:
            yield tag >> 3, message[place : place + length]
        place += length


def _varint(message: bytes, place: int, path: Path) -> tuple[int, int]:
    value = shift = 0
    while place < len(message) and shift < 64:
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
    raise _unclear(path)


def read_content(path: Path) -> bytes:
    """The bytes of a tokenizer's file.

    Raises:
        CheckpointError: it cannot be read, or is too large.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"cannot read '{path}': {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise CheckpointError(f"'{path}' is too large for a tokenizer")
    return content


def _number(value: object, path: Path) -> int:
    if type(value) is not int or value < 0:
        raise _unclear(path)
    return value


def _text(value: object, path: Path) -> str:
    if not isinstance(value, str):
        raise _unclear(path)
    return value


def _unclear(path: Path) -> CheckpointError:
    return CheckpointError(f"'{path}' is no tokenizer that can be understood")
