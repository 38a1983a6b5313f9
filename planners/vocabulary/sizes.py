"""Updates vocabulary sizes in ``config.json`` to the rows of the output's tables."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any

_SIZE_KEY = re.compile(r"(^|_)(vocab|vocabulary)_size(_|$)|^embedding_size$|^n_vocab$")
_OTHER_PARTS = re.compile(r"vision|visual|audio|image|speech|qformer|codec|talker|2wav")
"""Nested configurations whose vocabulary is not one of text tokens."""


def with_sizes(config: Mapping[str, Any], rows: Mapping[int, int]) -> dict[str, Any]:
    """``config`` with the output's numbers of rows; ``rows`` maps the donor's numbers to them.

    If the configuration has none of the donor's numbers, the output's number for the embedding, the
    first in ``rows``, is written to the usual key.
    """
    result = copy.deepcopy(dict(config))
    found = False
    objects = list(_objects(result))
    for place in objects:
        for key, value in place.items():
            if _SIZE_KEY.search(key) and type(value) is int and value in rows:
                place[key] = rows[value]
                found = True
    if not found and rows:
        named = (place for place in objects if "vocab_size" in place)
        text = result.get("text_config")
        section = next(named, text if isinstance(text, dict) else result)
        section["vocab_size"] = next(iter(rows.values()))
    return result


def _objects(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield config
    for key, value in config.items():
        if isinstance(value, dict) and not _OTHER_PARTS.search(key):
            yield from _objects(value)
