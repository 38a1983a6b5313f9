"""The output's ``config.json``, except layers: dtypes, tied heads, vocabulary."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from mergeloom.engine.base.dtypes import DType
from mergeloom.planners.models.token_weights import OTHER_PARTS


def rewrite_config(
    config: Mapping[str, Any],
    dtype: DType | None,
    tied: bool | None,
    vocabulary: tuple[int, int] | None,
) -> dict[str, Any]:
    """The configuration of the output; layers are unchanged from ``config``.

    ``dtype`` is the output's, ``tied`` whether embedding and head are one tensor, ``vocabulary``
    the number of embedding rows of donor and output; ``None`` leaves a value unchanged.
    """
    result = copy.deepcopy(dict(config))
    for place, about_tokens in _objects(result):
        if dtype is not None:
            for key in ("torch_dtype", "dtype"):
                if key in place and (place is result or isinstance(place[key], str)):
                    place[key] = dtype.name
        if tied is not None and about_tokens and "tie_word_embeddings" in place:
            place["tie_word_embeddings"] = tied
        if vocabulary is not None and place.get("vocab_size") == vocabulary[0]:
            place["vocab_size"] = vocabulary[1]
    if dtype is not None and "torch_dtype" not in result and "dtype" not in result:
        result["torch_dtype"] = dtype.name
    if tied is False:
        result.setdefault("tie_word_embeddings", False)
    return result


def _objects(
    config: dict[str, Any], about_tokens: bool = True
) -> Iterator[tuple[dict[str, Any], bool]]:
    """The configuration and all nested ones, and whether each may be about tokens."""
    yield config, about_tokens
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _objects(value, about_tokens and OTHER_PARTS.search(key) is None)
