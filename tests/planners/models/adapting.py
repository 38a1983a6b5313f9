"""Adapters that PEFT makes and saves, and what PEFT and mergeloom make of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file

import mergeloom


def saved(make: Callable[[], Any], settings: dict[str, Any], folder: Path, base: str = "base"):
    """Save a model and an adapter with values other than those that it begins with."""
    model = make()
    if not (folder / base).exists():
        model.save_pretrained(folder / base)
    model = type(model).from_pretrained(folder / base)
    config = peft.LoraConfig(r=4, **{"lora_alpha": 8, "task_type": "CAUSAL_LM", **settings})
    return saved_adapter(model, config, folder, base)


def saved_adapter(model: Any, config: Any, folder: Path, base: str = "base") -> Any:
    """Save an adapter of any kind with values other than those that it begins with."""
    config.base_model_name_or_path = str(folder / base)
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                change = torch.randn_like(parameter) * 0.3
                parameter.copy_(
                    parameter.abs() + 0.1 if "magnitude" in name else parameter + change
                )
    adapted.save_pretrained(folder / "adapter")
    return adapted


def merged(config: dict[str, Any], out: Path, **options: Any) -> dict[str, torch.Tensor]:
    mergeloom.merge(config, out, **options)
    return stored(out)


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a model."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def passthrough(model: str) -> dict[str, Any]:
    return {"merge_method": "passthrough", "models": [{"model": model}], "dtype": "float32"}


def adapted_copy(folder: Path) -> dict[str, Any]:
    """The merge of the adapter that `saved` wrote into its model."""
    return passthrough(f"{folder}/base+{folder}/adapter")


def check_against_peft(adapted: Any, folder: Path) -> int:
    """Check that mergeloom's merge has the tensors of PEFT's; returns how many are changed."""
    adapted.merge_and_unload().save_pretrained(folder / "theirs")
    expected, base = stored(folder / "theirs"), stored(folder / "base")
    found = merged(adapted_copy(folder), folder / "out")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=2e-6, atol=2e-6, msg=name)
    return sum(not torch.equal(tensor, base[name]) for name, tensor in found.items())
