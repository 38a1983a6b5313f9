"""Adapters of parameters (``target_parameters``), against what PEFT makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import mergeloom
from mergeloom.engine.base.errors import CheckpointError
from tests.families.tiny import fill, make_model
from tests.mergeloom.support import merge_without_torch
from tests.planners.models.adapting import (
    adapted_copy,
    check_against_peft,
    merged,
    saved,
    stored,
)

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
MIXTRAL = {"num_local_experts": 3, "num_hidden_layers": 2}
GPT_OSS = {"num_local_experts": 3, "num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}
QWEN3 = {"num_experts": 3, "num_hidden_layers": 2, "hidden_size": 16, "moe_intermediate_size": 12}

KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "one tensor, as (n, in, out)": (
        "GptOssForCausalLM",
        GPT_OSS,
        {"target_modules": ["q_proj"], "target_parameters": EXPERTS, "use_rslora": True},
    ),
    "a bias, a router, one layer": (
        "GptOssForCausalLM",
        GPT_OSS,
        {
            "target_modules": [],
            "target_parameters": [
                "gate_up_proj_bias",
                "1.mlp.experts.down_proj",
                "1.mlp.experts.gate_up_proj",
                "router.weight",
            ],
        },
    ),
    "stored one by one": (
        "Qwen3MoeForCausalLM",
        QWEN3,
        {
            "target_modules": ["o_proj"],
            "target_parameters": ["mlp.experts.down_proj", "gate.weight", "gate_up_proj"],
            "rank_pattern": {"gate_up_proj": 2, r"layers\.1\.mlp\.experts\.down_proj": 3},
            "alpha_pattern": {"experts.down_proj": 5},
        },
    ),
    "stored one by one in another module": (
        "MixtralForCausalLM",
        MIXTRAL,
        {"target_modules": "all-linear"},
    ),
    "down alone": (
        "MixtralForCausalLM",
        MIXTRAL,
        {"target_modules": ["q_proj"], "target_parameters": ["experts.down_proj"]},
    ),
    "without a gate": (
        "NemotronHForCausalLM",
        {"num_hidden_layers": 4, "hybrid_override_pattern": "ME*E"},
        {"target_modules": [], "target_parameters": ["experts.up_proj", "experts.down_proj"]},
    ),
    "one tensor of another name": (
        "GraniteMoeForCausalLM",
        MIXTRAL,
        {"target_modules": [], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    ),
    "weights of modules": (
        "GptOssForCausalLM",
        GPT_OSS,
        {"target_modules": [], "target_parameters": ["q_proj.weight", "embed_tokens.weight"]},
    ),
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def made(name: str, sizes: dict[str, Any]) -> Any:
    model = make_model(name, sizes)
    fill(model, 0)
    return model


def save(kind: str, folder: Path) -> Any:
    name, sizes, settings = KINDS[kind]
    return saved(lambda: made(name, sizes), settings, folder)


@pytest.mark.parametrize("kind", KINDS)
def test_adapted_parameters_agree_with_peft(kind: str, tmp_path: Path) -> None:
    assert check_against_peft(save(kind, tmp_path), tmp_path)


def rewrite(folder: Path, settings: dict[str, Any], exchanged: bool) -> None:
    """Change the configuration of an adapter; ``exchanged`` writes the factors as peft did before
    0.19, with the input of each parameter for its output."""
    path, file = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    config = json.loads(path.read_text()) | settings
    path.write_text(json.dumps(config))
    if not exchanged:
        return
    tensors, rank = load_file(file), config["r"]
    for name in [name for name in tensors if ".experts." in name and "lora_A" in name]:
        other = name.replace("lora_A", "lora_B")
        a, b = tensors[name], tensors[other]
        n = len(a) // rank
        each_a, each_b = a.reshape(n, rank, -1), b.reshape(-1, rank, n)  # ΔWₑ = Bₑ·Aₑ = (A'·B')ᵀ
        tensors[name] = each_b.permute(2, 1, 0).reshape(n * rank, -1).contiguous()
        tensors[other] = each_a.permute(2, 1, 0).reshape(-1, rank * n).contiguous()
    save_file(tensors, file)


@pytest.mark.parametrize("square", [False, True])
def test_factors_of_older_versions_of_peft_are_exchanged(square: bool, tmp_path: Path) -> None:
    """Where all factors are square, the version decides."""
    sizes = {**QWEN3, "moe_intermediate_size": 16 if square else 12}
    settings = {"target_modules": [], "target_parameters": ["mlp.experts.down_proj"]}
    saved(lambda: made("Qwen3MoeForCausalLM", sizes), settings, tmp_path)
    now = merged(adapted_copy(tmp_path), tmp_path / "now")
    rewrite(tmp_path / "adapter", {"peft_version": "0.18.1"}, exchanged=True)
    then = merged(adapted_copy(tmp_path), tmp_path / "then")
    base = stored(tmp_path / "base")
    assert any(not torch.equal(now[name], base[name]) for name in base)
    for name, tensor in now.items():
        torch.testing.assert_close(then[name], tensor, msg=name)


def test_the_same_adapter_fits_experts_stored_the_other_way_round(tmp_path: Path) -> None:
    """As those of Qwen3-VL, which transformers transposes when it loads them."""
    settings = {"target_modules": [], "target_parameters": EXPERTS}
    saved(lambda: made("GptOssForCausalLM", GPT_OSS), settings, tmp_path)
    straight = merged(adapted_copy(tmp_path), tmp_path / "straight")

    def turned(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            name: tensor.mT.contiguous() if tensor.ndim == 3 else tensor
            for name, tensor in tensors.items()
        }

    file = tmp_path / "base" / "model.safetensors"
    save_file(turned(load_file(file)), file, {"format": "pt"})
    found = merged(adapted_copy(tmp_path), tmp_path / "turned")
    for name, tensor in turned(straight).items():
        torch.testing.assert_close(found[name], tensor, msg=name)


def test_square_experts_that_tell_nothing_of_their_layout_are_refused(tmp_path: Path) -> None:
    """As down projections of gpt-oss, of 2880 x 2880; its gate and up projection tell it."""
    square = {**GPT_OSS, "hidden_size": 16, "intermediate_size": 16}
    settings = {"target_modules": [], "target_parameters": ["experts.down_proj"]}
    saved(lambda: made("GptOssForCausalLM", square), settings, tmp_path)
    with pytest.raises(CheckpointError, match=r"square experts of .* in two ways"):
        mergeloom.plan(adapted_copy(tmp_path))
    (tmp_path / "two").mkdir()
    adapted = saved(
        *(lambda: made("GptOssForCausalLM", square), {**settings, "target_parameters": EXPERTS}),
        tmp_path / "two",
    )
    assert check_against_peft(adapted, tmp_path / "two")


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (
            *("down alone", {"target_parameters": ["mlp.experts.up_proj"]}),
            "does not store in a known way",
        ),
        ("one tensor of another name", {"r": 3}, "do not fit the model's"),
    ],
)
def test_parameters_that_the_model_lacks_or_of_another_size_are_refused(
    kind: str, settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    save(kind, tmp_path)
    rewrite(tmp_path / "adapter", settings, exchanged=False)
    with pytest.raises(CheckpointError, match=words):
        mergeloom.plan(adapted_copy(tmp_path))


@pytest.mark.parametrize("kind", ["one tensor, as (n, in, out)", "stored one by one"])
def test_adapted_parameters_are_merged_without_torch_and_at_the_smallest_budget(
    kind: str, tmp_path: Path
) -> None:
    save(kind, tmp_path)
    config = adapted_copy(tmp_path)
    free = merged(config, tmp_path / "free", ram="2GiB", threads=2)
    smallest = mergeloom.plan(config, ram="2GiB").schedule.minimum_bytes
    tight = merged(config, tmp_path / "tight", ram=smallest, threads=1)
    assert all(torch.equal(free[name], tight[name]) for name in free)
    (tmp_path / "config.yml").write_text(json.dumps(config))
    merge_without_torch(tmp_path / "config.yml", tmp_path / "out")
