"""Models and adapters that are damaged or incomplete are refused while planning: with the name of
the file, the place of the configuration that names it, and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mergeloom.engine.base.errors import LoomError
from mergeloom.engine.storage.gguf_writing import build_gguf
from tests.planners.support import llama, plan_text

QUERIES = "model.layers.0.self_attn.q_proj"
EMBEDDING = "model.embed_tokens"
ONE = "models: [a]\nmerge_method: passthrough\n"
ADAPTED = "models: [a+adapter]\nmerge_method: passthrough\n"


def adapter(
    folder: Path, tensors: Mapping[str, Sequence[int]], module: str = QUERIES, **config: Any
) -> None:
    """An adapter beside the model ``a``, with tensors of some shapes for one module."""
    llama(folder / "a")
    directory = folder / "adapter"
    directory.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (directory / "adapter_config.json").write_text(json.dumps({**settings, **config}))
    named = {f"base_model.model.{module}.{name}": torch.ones(*s) for name, s in tensors.items()}
    save_file(named, directory / "adapter_model.safetensors")


LORA = {"lora_A.weight": (2, 8), "lora_B.weight": (8, 2)}


def index(folder: Path, content: object) -> None:
    llama(folder / "a", shards=2)
    (folder / "a" / "model.safetensors.index.json").write_text(json.dumps(content))


def token_rows(folder: Path, indices: object, width: int = 8) -> None:
    rows = {"token_adapter.trainable_tokens_delta": (2, width)}
    adapter(folder, rows, EMBEDDING, trainable_token_indices=indices)


def gguf(folder: Path, values: Mapping[str, Any]) -> None:
    header, _ = build_gguf(values, ())
    (folder / "a.gguf").write_bytes(header)


Case = tuple[Callable[[Path], None], str, str, str]
CASES: dict[str, Case] = {
    "index without a map": (
        lambda folder: index(folder, {"metadata": {}}),
        ONE,
        "'{}/a/model.safetensors.index.json' has no 'weight_map'",
        "copy or download it again",
    ),
    "index that names no file": (
        lambda folder: index(folder, {"weight_map": {"model.norm.weight": 1}}),
        ONE,
        "'{}/a/model.safetensors.index.json': 'model.norm.weight' is in no file",
        "copy or download it again",
    ),
    "index of control characters": (
        lambda folder: index(folder, {"weight_map": {"a\x1b[31m": "model.safetensors"}}),
        ONE,
        "'{}/a/model.safetensors.index.json': 'a\\x1b[31m' is not a tensor name",
        "copy or download it again",
    ),
    "bias that the model's module lacks": (
        lambda folder: adapter(folder, {"bias": (8,)}, modules_to_save=["q_proj"]),
        ADAPTED,
        "'a+adapter': the adapter has '" + QUERIES + ".bias', which the model does not have",
        "take the model that the adapter was made for",
    ),
    "half a product": (
        lambda folder: adapter(folder, {"lora_A.weight": (2, 8)}),
        ADAPTED,
        "'{}/adapter' has only one of the two matrices for '" + QUERIES + "'",
        "copy or download it again",
    ),
    "adapter of an absent module": (
        lambda folder: adapter(folder, LORA, "model.layers.9.self_attn.q_proj"),
        ADAPTED,
        "'a+adapter': the adapter changes modules that the model does not have: "
        "'model.layers.9.self_attn.q_proj'",
        "give the model that it was made for; if it is that, merge it into its model with peft "
        "(merge_and_unload) first",
    ),
    "adapter with a bias": (
        lambda folder: adapter(folder, {**LORA, "lora_B.bias": (8,)}, lora_bias=True),
        ADAPTED,
        "'a+adapter': the adapter adds a bias to '" + QUERIES + "', which has none",
        "take the model that the adapter was made for",
    ),
    "adapter that replaces an absent module": (
        lambda folder: adapter(folder, {"weight": (8, 8)}, "score", modules_to_save=["score"]),
        ADAPTED,
        "'a+adapter': the adapter changes modules that the model does not have: 'score'",
        "give the model that it was made for; if it is that, merge it into its model with peft "
        "(merge_and_unload) first",
    ),
    "rows of other width": (
        lambda folder: token_rows(folder, [0, 1], width=4),
        ADAPTED,
        "'a+adapter': the adapter's rows for 'model.embed_tokens.weight' do not fit the model's",
        "take the model that the adapter was made for",
    ),
    "tokens that are no list": (
        lambda folder: token_rows(folder, "all"),
        ADAPTED,
        "'{}/adapter/adapter_config.json': 'trainable_token_indices' is not a list of token ids",
        "copy or download it again",
    ),
    "tokens of another number": (
        lambda folder: token_rows(folder, [0, 1, 2]),
        ADAPTED,
        "'{}/adapter/adapter_config.json': 'trainable_token_indices' names 3 tokens of "
        "'model.embed_tokens', the weights have 2",
        "copy or download it again",
    ),
    "adapter for nobody": (
        lambda folder: adapter(folder, LORA),
        "models: [adapter]\nmerge_method: passthrough\n",
        "'adapter' is an adapter that does not name its base model",
        "write MODEL+adapter",
    ),
    "GGUF of nothing": (
        lambda folder: gguf(folder, {"general.name": "x"}),
        "models: [a.gguf]\nmerge_method: passthrough\n",
        "'{}/a.gguf' does not name the architecture of its model",
        "copy or download it again",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_damaged_models_are_refused(case: str, tmp_path: Path) -> None:
    make, text, cause, remedy = CASES[case]
    make(tmp_path)
    with pytest.raises(LoomError) as caught:
        plan_text(text, tmp_path)
    error = caught.value
    assert cause.replace("{}", str(tmp_path)) in error.cause
    assert error.remedy == remedy
    assert error.code == "checkpoint"
    assert str(error.place) == "config.yml:1: models[0]"
