"""The output's ``config.json``: the donor's, with layer counts and what hangs on them rewritten."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergeloom.engine.base.dtypes import DType
from mergeloom.planners.models.architecture import LAYER_COUNT_KEYS

_LAYER_INDICES = re.compile(r"(^|_)(layers|layer_ids|layer_idxs?|layer_indices)$")


_NOT_LAYERS = re.compile(r"^architectures$|token_ids?$")
"""Keys of lists that never have one entry a layer, whatever their length."""


@dataclass(frozen=True, slots=True)
class LayerChange:
    """What became of one tower: ``origins[i]`` is the donor's layer that output layer i stands
    for (where the donor has no part in it, the layer at the same place in its source)."""

    tower: str
    donor_layers: int
    origins: tuple[int, ...]


def rewrite_config(
    config: Mapping[str, Any],
    changes: Sequence[LayerChange],
    dtype: DType | None,
    tied: bool | None,
    vocabulary: tuple[int, int] | None,
) -> dict[str, Any]:
    """The configuration of the output.

    Layer counts follow ``changes`` wherever the donor's configuration declares its own count;
    so do lists with one entry a layer, and lists of layer numbers beside a count. ``dtype`` is
    the output's, ``tied`` whether embedding and head are one tensor, ``vocabulary`` the donor's
    and the output's number of embedding rows; ``None`` leaves these as they are.
    """
    result = copy.deepcopy(dict(config))
    for change in changes:
        if change.origins == tuple(range(change.donor_layers)):
            continue
        others = [other.tower for other in changes if other is not change]
        for place in _places(result, change, others):
            _rewrite_layers(place, change)
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


_SAME = {
    "language": "text",
    "llm": "text",
    "visual": "vision",
    "image": "vision",
    "speech": "audio",
}
"""Words that name the same part of a model, some in tensors' names and some in configurations."""


def _words(name: str) -> set[str]:
    return {_SAME.get(word, word) for word in re.findall(r"[a-z]+", name)}


def _places(
    config: dict[str, Any], change: LayerChange, others: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """The objects that declare the tower's layer count.

    With several towers of equal depth, the object whose key shares a word with the tower's name
    is meant, if there is one, and else those that share none with the ``others``' names.
    """
    found = [
        (path, place)
        for path, place in _with_paths(config, "")
        if any(place.get(key) == change.donor_layers for key in LAYER_COUNT_KEYS)
    ]
    if others:
        own, theirs = _words(change.tower), set().union(*map(_words, others))
        fitting = [(path, place) for path, place in found if own & _words(path)]
        free = [(path, place) for path, place in found if not (theirs - own) & _words(path)]
        found = fitting or free
    for _, place in found:
        yield place


def _with_paths(config: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, config
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _with_paths(value, f"{path}_{key}".strip("_"))


def _rewrite_layers(place: dict[str, Any], change: LayerChange) -> None:
    old, new = change.donor_layers, len(change.origins)
    counts = {*_count_keys(place, change.tower), "max_window_layers"}
    for key, value in place.items():
        if key in counts and value == old and not isinstance(value, bool):
            place[key] = new
        elif isinstance(value, list) and len(value) == old and not _NOT_LAYERS.search(key):
            place[key] = [value[origin] if origin < old else value[-1] for origin in change.origins]
        elif _is_layer_numbers(key, value, old):
            place[key] = [i for i, origin in enumerate(change.origins) if origin in value]


def _count_keys(place: Mapping[str, Any], tower: str) -> list[str]:
    """Keys that count this tower's layers: those that name its side, or else those that name
    no side (``num_layers`` is the encoder's where there is a ``num_decoder_layers``)."""
    keys = [key for key in LAYER_COUNT_KEYS if key in place]
    side = next((side for side in ("encoder", "decoder") if side in tower), None)
    own = [key for key in keys if side is not None and side in key]
    return own or [key for key in keys if "encoder" not in key and "decoder" not in key]


def _is_layer_numbers(key: str, value: object, layers: int) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and _LAYER_INDICES.search(key) is not None
        and all(isinstance(item, int) and 0 <= item < layers for item in value)
    )
