"""The output's ``config.json``, except layers: dtypes, tied heads, vocabulary."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from mergeloom.engine.base.dtypes import DType


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
    for place in _objects(result):
        if dtype is not None:
            for key in ("torch_dtype", "dtype"):
                if key in place and (place is result or isinstance(place[key], str)):
                    place[key] = dtype.name
        if tied is not None and "tie_word_embeddings" in place:
            place["tie_word_embeddings"] = tied
        if vocabulary is not None and place.get("vocab_size") == vocabulary[0]:
            place["vocab_size"] = vocabulary[1]
    if dtype is not None and "torch_dtype" not in result and "dtype" not in result:
        result["torch_dtype"] = dtype.name
    if tied is False:
        result.setdefault("tie_word_embeddings", False)
    return result


def _objects(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield config
    for value in config.values():
        if isinstance(value, dict):
            yield from _objects(value)
