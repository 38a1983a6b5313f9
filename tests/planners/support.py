"""Tiny checkpoints with any tensor names, for tests of planning and merging."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mergeloom.engine.output.side_files import SideFile
from mergeloom.planners.config.load import parse_config
from mergeloom.planners.models.resolve import Resolver
from mergeloom.planners.plan import Plan, make_plan
from mergeloom.planners.planner import PlanOptions
from mergeloom.planners.tensors import TensorPlan

LLAMA_LAYER = (
    "input_layernorm.weight",
    "mlp.down_proj.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "post_attention_layernorm.weight",
    "self_attn.k_proj.weight",
    "self_attn.o_proj.weight",
    "self_attn.q_proj.weight",
    "self_attn.v_proj.weight",
)


def llama_names(layers: int, head: bool = True) -> list[str]:
    """Tensor names of a decoder with ``layers`` layers."""
    inner = [f"model.layers.{i}.{name}" for i in range(layers) for name in LLAMA_LAYER]
    return ["model.embed_tokens.weight", *inner, "model.norm.weight"] + ["lm_head.weight"] * head


def write_checkpoint(
    directory: Path,
    names: Iterable[str] | Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    *,
    seed: int = 0,
    width: int = 8,
    vocabulary: int = 32,
    dtype: torch.dtype = torch.float32,
    shards: int = 1,
) -> Path:
    """A checkpoint with the given tensors, or with random ones of plausible small shapes."""
    directory.mkdir(parents=True, exist_ok=True)
    if not isinstance(names, Mapping):
        generator = torch.Generator().manual_seed(seed)

        def shape(name: str) -> tuple[int, ...]:
            if "norm" in name.lower():
                return (width,)
            rows = vocabulary if "embed" in name or "head" in name else width
            return (rows, width)

        names = {name: torch.randn(shape(name), generator=generator).to(dtype) for name in names}
    (directory / "config.json").write_text(json.dumps(config))
    items = list(names.items())
    if shards == 1:
        save_file(dict(items), directory / "model.safetensors", {"format": "pt"})
        return directory
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(items[number::shards])
        save_file(part, directory / file, {"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def llama(directory: Path, layers: int = 4, tied: bool = False, **options: Any) -> Path:
    """A small decoder checkpoint."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": layers,
        "hidden_size": options.get("width", 8),
        "vocab_size": options.get("vocabulary", 32),
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
    }
    return write_checkpoint(directory, llama_names(layers, not tied), config, **options)


def llamas(folder: Path, names: Iterable[str], **options: Any) -> list[Path]:
    """A small decoder checkpoint in ``folder`` for each name, each with other values."""
    return [llama(folder / name, seed=seed, **options) for seed, name in enumerate(names)]


def load_tensors(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        tensors.update(load_file(path))
    return tensors


def plan_text(text: str, folder: Path, **options: Any) -> Plan:
    """The plan of a configuration whose models lie in ``folder``."""
    return make_plan(
        parse_config(text, "config.yml"), Resolver(search=[folder]), PlanOptions(**options)
    )


def made_of(tensor: TensorPlan) -> list[tuple[str, str]]:
    return [(item.model.name, item.tensor) for item in tensor.contributions]


def side_file(plan: Plan, name: str) -> Any:
    (found,) = [file for file in plan.side_files if file.name == name]
    assert isinstance(found, SideFile)
    content = b"".join(found.pieces())
    return json.loads(content) if name.endswith(".json") else content.decode()


def value(plan: Plan, tensor: str, parameter: str) -> object:
    return plan.explain(tensor).settings[parameter].value


STACK = """
slices:
  - sources: [{model: a, layer_range: [0, 3]}]
  - sources: [{model: b, layer_range: [1, 4]}]
merge_method: passthrough
"""


def two(weight_a: float = 1, weight_b: float = 1) -> str:
    return (
        f"models: [{{model: a, parameters: {{weight: {weight_a}}}}}, "
        f"{{model: b, parameters: {{weight: {weight_b}}}}}]\nmerge_method: linear\n"
    )


BOTH = "models: [{model: a}, {model: b}]\nparameters: {weight: 1}\n"
