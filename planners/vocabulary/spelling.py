"""The spelling of tokens: the bytes of text that a token represents."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

Spelling = Literal["bytes", "pieces", "words", "plain"]
"""The way tokens are written: ``bytes``, one character for each byte (GPT-2's alphabet);
``pieces``, with ▁ for a space and <0x0A> for a byte (sentencepiece); ``words``, whose later pieces
begin with ## (WordPiece); or ``plain`` text."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_CONTINUATION = "##"


def spelling_of(document: Mapping[str, Any]) -> Spelling:
    """The spelling used in a ``tokenizer.json``."""
    model = document.get("model")
    model = model if isinstance(model, Mapping) else {}
    if model.get("type") == "WordPiece":
        return "words"
    parts = [document.get(key) for key in ("normalizer", "pre_tokenizer", "decoder")]
    rules = json.dumps(parts, ensure_ascii=False)
    if '"ByteLevel"' in rules:
        return "bytes"
    if model.get("byte_fallback") is True or '"Metaspace"' in rules or "▁" in rules:
        return "pieces"
    return "plain"


def text_bytes(token: str, spelling: Spelling) -> bytes:
    """The bytes of text of an ordinary token; a word begins with a space."""
    if spelling == "bytes":
        alphabet = _alphabet()
        try:
            return bytes(alphabet[character] for character in token)
        except KeyError:
            return _as_bytes(token)
    if spelling == "pieces":
        found = _BYTE_TOKEN.fullmatch(token)
        return bytes([int(found[1], 16)]) if found else _as_bytes(token.replace("▁", " "))
    if spelling == "words":
        continued = token.startswith(_CONTINUATION) and token != _CONTINUATION
        return _as_bytes(token[len(_CONTINUATION) :] if continued else f" {token}")
    return _as_bytes(token)


def is_single_byte(token: str, spelling: Spelling) -> bool:
    """Whether a token is written as the number of a byte."""
    return spelling == "pieces" and _BYTE_TOKEN.fullmatch(token) is not None


def _as_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


@cache
def _alphabet() -> dict[str, int]:
    """Bytes by the characters that stand for them."""
    return {character: byte for byte, character in enumerate(byte_characters())}


def byte_characters() -> list[str]:
    """The character that stands for each byte in GPT-2's alphabet: the one with its number if that
    is printable in Latin-1, otherwise the next one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
