"""Tiny random models, made by transformers' own classes and saved by them, and merges of them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

import mergeloom
from mergeloom.planners.plan import Plan
from tests.families.tiny import fill, make_model

Tensors = dict[str, torch.Tensor]

LLAVA: dict[str, Any] = {
    "vision_config": {"model_type": "clip_vision_model"},
    "text_config": {"model_type": "llama"},
    "image_token_index": 60,
}
MISTRAL3: dict[str, Any] = {
    "vision_config": {"model_type": "pixtral"},
    "text_config": {"model_type": "mistral"},
    "image_token_index": 60,
}


def made(folder: Path, seed: int, kind: str, **sizes: Any) -> Path:
    """A checkpoint of the class ``kind``, four layers deep, with other weights for each seed."""
    model = make_model(kind, sizes)
    fill(model, seed)
    model.save_pretrained(folder)
    return folder


def pair(folder: Path, kind: str, **sizes: Any) -> tuple[Path, Path]:
    return made(folder / "a", 0, kind, **sizes), made(folder / "b", 1, kind, **sizes)


def tensors(directory: Path) -> Tensors:
    return load_file(directory / "model.safetensors")


def rewrite(directory: Path, change: Callable[[Tensors], Any]) -> Path:
    """Change the tensors of a checkpoint."""
    found = tensors(directory)
    change(found)
    save_file(found, directory / "model.safetensors", {"format": "pt"})
    return directory


def configure(directory: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Change the configuration of a checkpoint."""
    config = json.loads((directory / "config.json").read_text())
    change(config)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def renamed(directory: Path, name: Callable[[str], str]) -> Path:
    """Give the tensors of a checkpoint other names."""

    def change(found: Tensors) -> None:
        for old in list(found):
            found[name(old)] = found.pop(old)

    return rewrite(directory, change)


def slices(first: Path, second: Path) -> list[dict[str, Any]]:
    """Two layers of the first under the last two of the second."""
    return [
        {"sources": [{"model": str(first), "layer_range": [0, 2]}]},
        {"sources": [{"model": str(second), "layer_range": [2, 4]}]},
    ]


def stack(first: Path, second: Path) -> dict[str, Any]:
    """An output as deep as its models, of two layers of each."""
    return {"merge_method": "passthrough", "slices": slices(first, second)}


def weighted(*models: Path) -> list[dict[str, Any]]:
    return [{"model": str(model), "parameters": {"weight": 1}} for model in models]


def blend(*models: Path, **rest: Any) -> dict[str, Any]:
    return {"merge_method": "linear", "models": weighted(*models), **rest}


def merged(config: dict[str, Any], out: Path) -> Tensors:
    """The output's tensors, whatever there is to warn about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mergeloom.LoomWarning)
        mergeloom.merge(config, out)
    return tensors(out)


def planned(config: dict[str, Any]) -> Plan:
    """A plan, with its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mergeloom.LoomWarning)
        return mergeloom.plan(config).plan


def loaded(directory: Path, kind: str) -> Any:
    """The output as transformers loads it, which must find every weight and nothing else."""
    model, report = getattr(transformers, kind).from_pretrained(directory, output_loading_info=True)
    assert not report["missing_keys"], report
    assert not report["unexpected_keys"], report
    return model
