"""Updates vocabulary sizes in ``config.json`` to the rows of the output's tables."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any

_KEY = re.compile(r"(^|_)(vocab|vocabulary)_size(_|$)|^embedding_size$|^n_vocab$")
_OTHER_SENSES = re.compile(r"vision|visual|audio|image|speech|qformer|codec|talker|2wav")
"""Parts of a configuration whose vocabulary is not one of text tokens."""


def with_sizes(config: Mapping[str, Any], rows: Mapping[int, int]) -> dict[str, Any]:
    """``config`` with the output's numbers of rows; ``rows`` gives them by the donor's.

    Where the configuration names none of the donor's, the number of the embedding's rows, which is
    the first of ``rows``, is written where it belongs.
    """
    result = copy.deepcopy(dict(config))
    found = False
    objects = list(_objects(result))
    for place in objects:
        for key, value in place.items():
            if _KEY.search(key) and type(value) is int and value in rows:
                place[key] = rows[value]
                found = True
    if not found and rows:
        named = (place for place in objects if "vocab_size" in place)
        text = result.get("text_config")
        home = next(named, text if isinstance(text, dict) else result)
        home["vocab_size"] = next(iter(rows.values()))
    return result


def _objects(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield config
    for key, value in config.items():
        if isinstance(value, dict) and not _OTHER_SENSES.search(key):
            yield from _objects(value)
