"""Which documents name files of weights in place of models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mergeloom.planners.config.yaml_values import Value

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
"""Of files of named tensors."""


def names_files(document: Mapping[str, Value]) -> bool:
    """Whether one of the models that a document lists, or its base, is a file of weights."""
    return any(text.lower().endswith(SUFFIXES) for text in _models(document))


def _models(document: Mapping[str, Value]) -> Iterator[str]:
    listed = document.get("models")
    items = listed.content if listed is not None and isinstance(listed.content, list) else []
    for value in (*items, document.get("base_model")):
        content = None if value is None else value.content
        for key in ("model", "model", "path"):  # a mapping of a mapping, in the peer's long form
            if isinstance(content, dict) and key in content:
                content = content[key].content
        if isinstance(content, str):
            yield content
