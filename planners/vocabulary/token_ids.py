"""Updates token ids in ``config.json`` and ``generation_config.json`` to the tokenizer."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_ID_KEY = re.compile(
    r"(^|_)token_(ids?|index)$|^(begin_)?suppress_tokens$|^(forced_decoder|bad_words)_ids$"
)
"""Keys whose values are ids, lists of ids, or lists of such lists."""

_REMOVED = object()


def with_token_ids(
    config: Mapping[str, Any],
    source_config: Mapping[str, Any] | None,
    new_id: Callable[[int], int | None],
) -> dict[str, Any]:
    """``config`` with the token ids of the output's tokenizer.

    ``source_config`` is the same file of the model that the tokenizer is from, if that is another
    model; a value that it has under the same key is taken. Every other id is replaced by
    ``new_id``, and removed if its token is gone.
    """
    result = copy.deepcopy(dict(config))
    for place, counterpart in _objects(result, source_config):
        for key in [key for key in place if _ID_KEY.search(key)]:
            if counterpart is not None and key in counterpart:
                place[key] = copy.deepcopy(counterpart[key])
                continue
            value = _with_new_ids(place[key], new_id)
            if value is _REMOVED:
                place[key] = None
            else:
                place[key] = value
        for key in counterpart or ():
            if counterpart is not None and _ID_KEY.search(key) and key not in place:
                place[key] = copy.deepcopy(counterpart[key])
    return result


def _objects(
    config: dict[str, Any], counterpart: Mapping[str, Any] | None
) -> Iterator[tuple[dict[str, Any], Mapping[str, Any] | None]]:
    yield config, counterpart
    for key, value in config.items():
        if isinstance(value, dict):
            inner = counterpart.get(key) if counterpart is not None else None
            yield from _objects(value, inner if isinstance(inner, Mapping) else None)


def _with_new_ids(value: object, new_id: Callable[[int], int | None]) -> object:
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        if value < 0:  # some use negative ids for none
            return value
        found = new_id(value)
        return _REMOVED if found is None else found
    if isinstance(value, list):
        items = [_with_new_ids(item, new_id) for item in value]
        return [item for item in items if item is not _REMOVED]
    return value
