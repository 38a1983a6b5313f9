"""Parsing of JSON from untrusted files, with bounded memory."""

from __future__ import annotations

import json
from typing import Any

MAX_VALUES = 4_000_000
"""Maximum number of values by default."""
_LARGE_BYTES = 1 << 20
"""Size in bytes from which saving memory is worth importing another parser."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""The UTF-8 byte order mark, which some editors write."""


def parse(content: bytes, values: int = MAX_VALUES) -> Any:
    """Parse UTF-8 JSON text that contains at most about ``values`` values.

    The limit bounds memory: text such as ``[[],[],...`` takes 20 bytes of memory for each of its
    bytes.

    Raises:
        ValueError: it is not JSON, nested too deeply, or has more values.
    """
    brackets = content.count(b"[") + content.count(b"{")
    if brackets > values // 4 or content.count(b",") > values:
        raise ValueError("it has too many values")
    if len(content) > _LARGE_BYTES:
        try:
            return _parsed_in_place(content)
        except ValueError:
            pass  # the other parser may accept it, and has better messages
    try:
        return json.loads(content.decode("utf-8-sig"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _parsed_in_place(content: bytes) -> Any:
    """Parse without decoding to a string, which takes up to four bytes per character."""
    from pydantic_core import from_json

    return from_json(content.removeprefix(_BYTE_ORDER_MARK), cache_strings="all")
