"""Updates token ids in ``config.json`` and ``generation_config.json`` to the tokenizer."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_KEY = re.compile(
    r"(^|_)token_(ids?|index)$|^(begin_)?suppress_tokens$|^(forced_decoder|bad_words)_ids$"
)
"""Keys whose values are ids, lists of ids, or lists of such lists."""

_GONE = object()


def with_token_ids(
    config: Mapping[str, Any],
    of_source: Mapping[str, Any] | None,
    moved: Callable[[int], int | None],
) -> dict[str, Any]:
    """``config`` with ids of the output's tokenizer.

    Where ``of_source``, the same file of the model that the tokenizer is from, has the key at the
    same place, its value holds; else each id is ``moved``, and left out where its token is gone.
    """
    result = copy.deepcopy(dict(config))
    for place, twin in _objects(result, of_source):
        for key in [key for key in place if _KEY.search(key)]:
            if twin is not None and key in twin:
                place[key] = copy.deepcopy(twin[key])
                continue
            value = _moved(place[key], moved)
            if value is _GONE:
                place[key] = None
            else:
                place[key] = value
        for key in twin or ():
            if twin is not None and _KEY.search(key) and key not in place:
                place[key] = copy.deepcopy(twin[key])
    return result


def _objects(
    config: dict[str, Any], twin: Mapping[str, Any] | None
) -> Iterator[tuple[dict[str, Any], Mapping[str, Any] | None]]:
    yield config, twin
    for key, value in config.items():
        if isinstance(value, dict):
            inner = twin.get(key) if twin is not None else None
            yield from _objects(value, inner if isinstance(inner, Mapping) else None)


def _moved(value: object, moved: Callable[[int], int | None]) -> object:
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        if value < 0:  # some use negative ids for none
            return value
        found = moved(value)
        return _GONE if found is None else found
    if isinstance(value, list):
        items = [_moved(item, moved) for item in value]
        return [item for item in items if item is not _GONE]
    return value
