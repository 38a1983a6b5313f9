"""Sizes that a configuration states, against the tensors that transformers' class makes of it.

That no class is accused falsely is judged with every family (`tests/families`).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from mergeloom.planners.models.architecture import infer_architecture
from mergeloom.planners.output.layers.described import describe
from mergeloom.planners.output.layers.stated_sizes import size_contradictions

SIZES = {
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
EXPERTS = {"moe_intermediate_size": 10, "num_experts_per_tok": 2}
MLA = {"q_lora_rank": 10, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4}
BART = {"d_model": 24, "vocab_size": 40, "encoder_layers": 2, "decoder_layers": 2}
SEQ2SEQ = {
    f"{side}_{key}": n
    for key, n in (("attention_heads", 4), ("ffn_dim", 36))
    for side in ("encoder", "decoder")
}

MODELS: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "qwen3": {**SIZES, "head_dim": 10},
    "phi3": {**SIZES, "pad_token_id": 0, "head_dim": 6},
    "qwen3_moe": {**SIZES, **EXPERTS, "head_dim": 6, "num_experts": 5},
    "mixtral": {**SIZES, "num_local_experts": 5, "head_dim": 6},
    "deepseek_v3": {
        **SIZES,
        **EXPERTS,
        **MLA,
        "n_routed_experts": 8,
        "num_key_value_heads": 4,
        "v_head_dim": 8,
        "n_group": 1,
        "topk_group": 1,
    },
    "bart": {**BART, **SEQ2SEQ},
}


def found(family: str, **changed: int) -> list[str]:
    """What is said of a model of a family if its configuration is ``changed``."""
    config = CONFIG_MAPPING[family](**MODELS[family])
    auto: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    written = config.to_dict() | changed
    towers = infer_architecture(shapes, written).towers
    said = (
        size_contradictions(each, shapes.__getitem__) for each in describe("m", written, towers)
    )
    return [line.removeprefix("the config.json of 'm' says ") for lines in said for line in lines]


@pytest.mark.parametrize("family", MODELS)
def test_what_a_class_makes_of_its_configuration_contradicts_nothing(family: str) -> None:
    assert found(family) == []


@pytest.mark.parametrize(
    ("family", "changed", "said"),
    [
        (
            "llama",
            {"num_key_value_heads": 1},
            "num_attention_heads 4, num_key_value_heads 1, head_dim 6, "
            "'model.layers.1.self_attn.k_proj.weight' has 12 rows",
        ),
        (
            "qwen3",
            {"head_dim": 12},
            "num_attention_heads 4, num_key_value_heads 2, head_dim 12, "
            "'model.layers.1.self_attn.q_proj.weight' has 40 rows",
        ),
        (
            "qwen3",
            {"num_attention_heads": 3},
            "num_attention_heads 3, num_key_value_heads 2, head_dim 10, "
            "'model.layers.1.self_attn.q_proj.weight' has 40 rows",
        ),
        (
            "phi3",
            {"num_key_value_heads": 1},
            "num_attention_heads 4, num_key_value_heads 1, head_dim 6, "
            "'model.layers.1.self_attn.qkv_proj.weight' has 48 rows",
        ),
        (
            "llama",
            {"intermediate_size": 37},
            "intermediate_size 37, 'model.layers.1.mlp.gate_proj.weight' has 36x24",
        ),
        (
            "mixtral",
            {"num_local_experts": 7},
            "num_local_experts 7, 'model.layers.1.mlp.experts.gate_up_proj' has 5 experts",
        ),
        (
            "deepseek_v3",
            {"qk_rope_head_dim": 6},
            "num_attention_heads 4, num_key_value_heads 4, head_dim 4, "
            "qk_head_dim 12, qk_nope_head_dim 8, qk_rope_head_dim 6, v_head_dim 8, "
            "'model.layers.1.self_attn.q_b_proj.weight' has 48 rows",
        ),
        (
            "bart",
            {"decoder_ffn_dim": 12},
            "decoder_ffn_dim 12, 'model.decoder.layers.1.fc1.weight' has 36x24",
        ),
    ],
)
def test_a_size_that_contradicts_the_tensors_is_named(
    family: str, changed: dict[str, int], said: str
) -> None:
    (line,) = found(family, **changed)
    assert {*line.split(", ")} == {*said.split(", ")}


def test_experts_with_tensors_of_their_own_are_counted() -> None:
    experts = {f"model.layers.0.block_sparse_moe.experts.{i}.w1.weight": (36, 24) for i in range(3)}
    config = {**SIZES, "model_type": "mixtral", "num_hidden_layers": 1, "num_local_experts": 2}
    (tower,) = describe("m", config, infer_architecture(experts, config).towers)
    (line,) = size_contradictions(tower, experts.__getitem__)
    assert line.endswith(
        "says num_local_experts 2, 'model.layers.0.block_sparse_moe.experts.0.w1.weight' has 2 "
        "other experts beside it"
    )
