"""Detects documents whose models are weight files or pipelines, which have no layers to stack."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from mergeloom.engine.storage.folder import LocalFolder
from mergeloom.planners.config.yaml_values import Value

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
"""Suffixes of files with named tensors."""


def names_files(document: Mapping[str, Value]) -> bool:
    """Whether one of the models of a document, or its base, is a weight file or the directory of a
    pipeline."""
    named = list(_model_names(document))
    return any(text.lower().endswith(SUFFIXES) for text in named) or any(map(_is_pipeline, named))


def _is_pipeline(text: str) -> bool:
    try:
        return LocalFolder(Path(text).expanduser()).has("model_index.json")
    except RuntimeError:  # there is no such user
        return False


def _model_names(document: Mapping[str, Value]) -> Iterator[str]:
    listed = document.get("models")
    items = listed.content if listed is not None and isinstance(listed.content, list) else []
    for value in (*items, document.get("base_model")):
        content = None if value is None else value.content
        for key in ("model", "model", "path"):  # nested mappings, as in mergekit's long form
            if isinstance(content, dict) and key in content:
                content = content[key].content
        if isinstance(content, str):
            yield content
