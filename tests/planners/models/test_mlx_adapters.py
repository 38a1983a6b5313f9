"""Adapters as MLX-LM saves them, against the formulas of its ``fuse``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import mergeloom
from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.storage.folder import LocalFolder
from mergeloom.planners.models.adapter import open_adapter
from tests.planners.support import llama

QUERIES = "model.layers.1.self_attn.q_proj"
DOWN = "model.layers.1.mlp.down_proj"
LORA = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": {"rank": 2, "scale": 2.5}}


def save(folder: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> Any:
    """Save an adapter with values of these shapes."""
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(1)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(tensors, folder / "adapters.safetensors")
    return tensors


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_adapter_of_mlx_is_merged(kind: str, tmp_path: Path) -> None:
    llama(tmp_path / "base")
    base = load_file(tmp_path / "base" / "model.safetensors")
    shapes: dict[str, tuple[int, ...]] = {}
    for module in (QUERIES, DOWN):
        out, width = base[f"{module}.weight"].shape
        shapes |= {f"{module}.lora_a": (width, 2), f"{module}.lora_b": (2, out)}
        shapes |= {f"{module}.m": (out,)} if kind == "dora" else {}
    config = {**LORA, "fine_tune_type": kind, "model": str(tmp_path / "base")}
    tensors = save(tmp_path / "adapter", config, shapes)
    with pytest.warns(UserWarning, match="is an adapter: it is merged into"):  # named by 'model'
        mergeloom.merge(
            {
                "merge_method": "passthrough",
                "models": [str(tmp_path / "adapter")],
                "dtype": "float32",
            },
            tmp_path / "out",
        )
    found = load_file(tmp_path / "out" / "model.safetensors")
    for name, weight in base.items():
        module, expected = name.removesuffix(".weight"), weight.double()
        if module in (QUERIES, DOWN):
            a, b = (tensors[f"{module}.lora_{which}"].double() for which in "ab")
            expected = expected + 2.5 * (a @ b).T
            if kind == "dora":
                lengths = tensors[f"{module}.m"].double() / expected.norm(dim=1)
                expected = expected * lengths[:, None]
        torch.testing.assert_close(found[name].double(), expected, rtol=1e-5, atol=1e-5, msg=name)


A, B = f"{QUERIES}.lora_a", f"{QUERIES}.lora_b"
PAIR: dict[str, tuple[int, ...]] = {A: (8, 2), B: (2, 8)}


@pytest.mark.parametrize(
    ("config", "shapes", "words"),
    [
        ({"fine_tune_type": "full"}, PAIR, "complete weights of some layers .*mlx_lm.fuse"),
        ({"lora_parameters": {"scale": "x"}}, PAIR, "'scale' of 'lora_parameters' is 'x', not a"),
        ({"lora_parameters": {"scale": 1, "alpha": 16}}, PAIR, "depends on the version of MLX-LM"),
        ({}, {A: (8, 2)}, "has lora_a of .*, not the two matrices of LoRA"),
        ({}, {A: (8, 2), B: (3, 8)}, "have different ranks"),
        (
            {},
            {"model.embed_tokens.lora_a": (16, 2), "model.embed_tokens.lora_b": (2, 8)},
            "changes an embedding",
        ),
        ({}, {A: (3, 2, 8), B: (3, 8, 2)}, "changes experts"),
    ],
)
def test_what_mlx_alone_can_merge_is_refused(
    config: dict[str, Any], shapes: dict[str, tuple[int, ...]], words: str, tmp_path: Path
) -> None:
    save(tmp_path, {**LORA, **config}, shapes)
    with pytest.raises(CheckpointError, match=words):
        open_adapter("it", LocalFolder(tmp_path))
