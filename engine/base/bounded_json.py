"""JSON from untrusted files."""

from __future__ import annotations

import json
from typing import Any

VALUES = 4_000_000
_LARGE = 1 << 20
"""Bytes from which on memory matters more than the moment that importing another parser takes."""
_MARK = b"\xef\xbb\xbf"


def parse(content: bytes, values: int = VALUES) -> Any:
    """The value that JSON text in UTF-8 stands for; at most about ``values`` values in it.

    Memory follows from that, and not from what JSON can hold: 20 bytes of memory for each byte
    of ``[[],[],...``.

    Raises:
        ValueError: it is no JSON, too deep, or holds more.
    """
    brackets = content.count(b"[") + content.count(b"{")
    if brackets > values // 4 or content.count(b",") > values:
        raise ValueError("it has more values than make sense")
    if len(content) > _LARGE:
        try:
            return _parsed_in_place(content)
        except ValueError:
            pass  # the other parser knows better why, or takes it
    try:
        return json.loads(content.decode("utf-8-sig"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _parsed_in_place(content: bytes) -> Any:
    """The same without the text as a string, which takes four bytes for each character."""
    from pydantic_core import from_json

    return from_json(content.removeprefix(_MARK), cache_strings="all")
