"""Spelling of tokens: which bytes of text a token represents."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

Spelling = Literal["bytes", "pieces", "words", "plain"]
"""A character for each byte (GPT-2's alphabet); spaces as ▁ (sentencepiece), bytes as <0x0A>; words
whose later pieces begin with ## (WordPiece); or as it is."""

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_CONTINUED = "##"


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


def content(token: str, spelling: Spelling) -> bytes:
    """The bytes of text of an ordinary token; a word begins with a space."""
    if spelling == "bytes":
        alphabet = _alphabet()
        try:
            return bytes(alphabet[character] for character in token)
        except KeyError:
            return _encoded(token)
    if spelling == "pieces":
        found = _BYTE.fullmatch(token)
        return bytes([int(found[1], 16)]) if found else _encoded(token.replace("▁", " "))
    if spelling == "words":
        continued = token.startswith(_CONTINUED) and token != _CONTINUED
        return _encoded(token[len(_CONTINUED) :] if continued else f" {token}")
    return _encoded(token)


def is_single_byte(token: str, spelling: Spelling) -> bool:
    """Whether a token is spelled by the number of its byte."""
    return spelling == "pieces" and _BYTE.fullmatch(token) is not None


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


@cache
def _alphabet() -> dict[str, int]:
    """Bytes by the characters that stand for them: printable ones of Latin-1 for themselves, the
    others, in their order, for those from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {
        chr(256 + number): byte for number, byte in enumerate(others)
    }
