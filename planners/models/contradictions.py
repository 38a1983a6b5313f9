"""Contradictions between a model's configuration and its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mergeloom.planners.models.architecture import declared_layers
from mergeloom.planners.models.model import Model

_ROWS = re.compile(r"(^|_)vocab_size$")
_OTHER_ROWS = re.compile(r"^(codebook_vocab_size|prompt_types)$")
"""Keys of further rows: of codebooks (Kyutai) and of prompts (CPM-Ant), in the same embedding."""
_WIDTH = re.compile(
    r"(^|_)(hidden_size|hidden_dim|n_embd|n_embed|d_model|embed_dim|emb_dim|embedding_size|"
    r"word_embed_proj_dim|width)$|^dim$"
)

_OTHER_PARTS = re.compile(r"vision|visual|image|audio|speech|qformer|perceiver")
"""Parts of a configuration about towers other than the main one."""

MLLAMA_ROWS = 8
"""Rows for special tokens that Mllama's class adds to its text vocabulary."""


def contradictions(model: Model, embedding: str | None) -> Iterator[str]:
    """One line for each configuration value that contradicts the tensors: number of layers of the
    main tower, rows and columns of the token ``embedding``."""
    said = f"the config.json of '{model.name}' says"
    tower = model.architecture.main
    declared = [
        (path, count)
        for path, count in declared_layers(model.config)
        if not any(_OTHER_PARTS.search(key) for key in path)
    ]
    if declared and tower.layers and all(count != tower.layers for _, count in declared):
        path, count = declared[0]
        yield f"{said} {'.'.join(path)} {count}, its tensors have {tower.layers} layers"
    if embedding is None or embedding not in model or len(model.shape(embedding)) != 2:
        return
    more = MLLAMA_ROWS if model.config.get("model_type") == "mllama" else 0
    for pattern, size, added, what in (
        (_ROWS, model.shape(embedding)[0], more, "rows"),
        (_WIDTH, model.shape(embedding)[1], 0, "columns"),
    ):
        numbers = dict(_numbers(model.config, pattern))
        if pattern is _ROWS and any(_numbers(model.config, _OTHER_ROWS)):
            continue
        if numbers and size - added not in numbers.values():
            key, number = next(iter(numbers.items()))
            yield f"{said} {key} {number}, '{embedding}' has {size} {what}"


def _numbers(
    config: Mapping[str, Any], pattern: re.Pattern[str], path: str = ""
) -> Iterator[tuple[str, int]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, pattern, f"{path}{key}.")
        elif pattern.search(key) and type(value) is int:
            yield f"{path}{key}", value
