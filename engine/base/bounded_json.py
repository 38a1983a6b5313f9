"""JSON from untrusted files."""

from __future__ import annotations

import json
from typing import Any

VALUES = 4_000_000


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
    try:
        return json.loads(content.decode("utf-8-sig"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
