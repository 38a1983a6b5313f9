"""Values that decide what layers compute are named where models disagree about them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from mergeloom.planners.models.class_defaults import class_defaults
from mergeloom.planners.models.differences import config_differences
from scripts.fixtures.class_defaults import defaults_of

EFFECT = "the output uses the first, also for layers of the others"


def found(a: dict[str, Any], b: dict[str, Any], **more: dict[str, Any]) -> list[str]:
    return [difference.text for difference in config_differences("a", {"a": a, "b": b, **more})]


def test_values_that_layers_compute_with_are_reported() -> None:
    one = {"rope_theta": 1e4, "rms_norm_eps": 1e-6, "hidden_act": "silu", "num_key_value_heads": 8}
    other = {"rope_theta": 1e6, "rms_norm_eps": 1e-5, "hidden_act": "gelu"}
    assert found(one, one) == []
    assert found(one, {**other, "num_key_value_heads": 2}) == [
        f"'rope_theta' differs: 10000.0 in 'a', 1000000.0 in 'b': {EFFECT}",
        f"'rms_norm_eps' differs: 1e-06 in 'a', 1e-05 in 'b': {EFFECT}",
        f"'hidden_act' differs: silu in 'a', gelu in 'b': {EFFECT}",
        f"'num_key_value_heads' differs: 8 in 'a', 2 in 'b': {EFFECT}",
    ]


def test_constants_of_any_family_are_reported() -> None:
    """Keys that no list of keys can foresee: numbers that are not whole, windows, multipliers."""
    one = {
        "swiglu_limit": 7.0,
        "residual_multiplier": 1,
        "altup_coef_clip": 120.0,
        "local_attention": 128,
        "window_size": 256,
        "attention_chunk_size": 8192,
        "use_qk_norm": False,
        "ssm_multipliers": [0.35, 0.25],
        "time_step_limit": [0.0, 1.0],
    }
    other = {
        "swiglu_limit": 1,
        "residual_multiplier": 0.22,
        "altup_coef_clip": 1.0,
        "local_attention": 64,
        "window_size": 128,
        "attention_chunk_size": 4096,
        "use_qk_norm": True,
        "ssm_multipliers": [0.35, 0.5],
        "time_step_limit": [0.0, 2.0],
    }
    assert [line.partition("'")[2].partition("'")[0] for line in found(one, other)] == [*one]
    assert found(one, one) == []


def test_heads_are_as_wide_as_their_part_where_no_width_is_written() -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 4}
    assert found({**sizes, "head_dim": None}, {**sizes, "head_dim": 16}) == []
    assert found({**sizes, "head_dim": None}, {**sizes, "head_dim": 32}) == [
        f"'head_dim' differs: 16 in 'a', 32 in 'b': {EFFECT}"
    ]


def test_values_of_training_and_sampling_are_not_reported() -> None:
    assert len(found({"norm_topk_prob": True}, {"norm_topk_prob": False})) == 1
    keys = (
        *("initializer_range", "attention_dropout", "router_aux_loss_coef", "router_jitter_noise"),
        *("temperature", "repetition_penalty", "top_p", "mask_time_prob", "time_step_floor"),
    )
    assert found(dict.fromkeys(keys, 0.1), dict.fromkeys(keys, 0.2)) == []
    tasks = ({"task_specific_params": {"summarization": {"length_penalty": n}}} for n in (1.0, 2.0))
    assert found(*tasks) == []
    layers = ({"activation_sparsity_pattern": [n, 0.0]} for n in (0.5, 0.95))
    assert found(*layers) == []


def test_values_without_influence_are_not_reported() -> None:
    one = {"bos_token_id": 1, "use_cache": True, "torch_dtype": "float32", "num_hidden_layers": 4}
    other = {"bos_token_id": 2, "use_cache": False, "torch_dtype": "float16"}
    assert found(one, {**other, "num_hidden_layers": 8}) == []


def test_a_missing_value_of_an_unknown_class_is_not_compared() -> None:
    assert found({"head_dim": 128}, {}) == []
    assert found({"use_sliding_window": False}, {"use_sliding_window": None}) == []


def test_a_missing_value_counts_as_the_default_of_its_known_class() -> None:
    """Llama 2's files write no rotary base, those of models for longer contexts do."""
    short, long = {"model_type": "llama"}, {"model_type": "llama", "rope_theta": 1e6}
    assert found(short, long) == [
        "'rope_theta' differs: 10000.0 (the default of its class) in 'a', 1000000.0 in 'b': "
        f"{EFFECT}"
    ]
    assert found(short, {"model_type": "llama", "rope_theta": 10000.0}) == []
    new = {"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 10000}}
    assert found(short, new) == []
    text = {"text_config": {"model_type": "clip_text_model"}}
    (line,) = found(text, {"text_config": {**text["text_config"], "hidden_act": "gelu"}})
    assert line.startswith(
        "'text_config.hidden_act' differs: quick_gelu (the default of its class) in 'a'"
    )


@pytest.mark.parametrize(
    "family", ["llama", "mistral", "qwen2", "gemma2", "gpt2", "t5", "whisper", "bert", "phi3"]
)
def test_defaults_of_classes_agree_with_transformers(family: str) -> None:
    assert class_defaults(family) == defaults_of(CONFIG_MAPPING[family])


def test_a_value_of_one_model_is_compared_with_the_default_of_the_others_class() -> None:
    mixtral = {"model_type": "mixtral"}
    assert found(mixtral, {**mixtral, "sliding_window": 4096, "rope_theta": 1e6}) == [
        f"'sliding_window' differs: None (the default of its class) in 'a', 4096 in 'b': {EFFECT}"
    ]
    whisper = {"model_type": "whisper", "scale_embedding": False}
    assert found({"model_type": "whisper"}, whisper) == []
    (line,) = found({**whisper, "scale_embedding": True}, {"model_type": "whisper"})
    assert line.startswith(
        "'scale_embedding' differs: True in 'a', False (the default of its class)"
    )
    text = {"text_config": {"model_type": "llama"}, "model_type": "llava"}
    (line,) = found(text, {**text, "text_config": {"model_type": "llama", "rms_norm_eps": 1e-5}})
    assert line.startswith(
        "'text_config.rms_norm_eps' differs: 1e-06 (the default of its class) in 'a'"
    )
    assert found({"model_type": "llama"}, {"model_type": "llama", "head_dim": 64}) == []


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gpt_oss"},
        {"model_type": "falcon_h1"},
        {"model_type": "gemma", "hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"},
        {
            "model_type": "phi3",
            "hidden_size": 32,
            "num_attention_heads": 4,
            "original_max_position_embeddings": 64,
            "rope_scaling": {
                "type": "longrope",
                "long_factor": [1.0] * 4,
                "short_factor": [1.0] * 4,
            },
        },
    ],
    ids=lambda config: config["model_type"],
)
def test_a_configuration_and_what_transformers_saves_of_it_agree(config: dict[str, Any]) -> None:
    whole = CONFIG_MAPPING[config["model_type"]](**config)
    saved = json.loads(whole.to_json_string(use_diff=False))
    assert found(config, saved) == []
    assert found(saved, config) == []


def test_a_value_that_is_written_once_in_classes_that_are_not_known_is_named() -> None:
    own = {"model_type": "house_blend"}
    assert found(own, {**own, "rope_theta": 1e6}) == [
        "'rope_theta' is 1000000.0 in 'b' and is not written in 'a', whose class is not known "
        "here: check that its default is the same"
    ]
    two = found(own, {**own, "logit_scale": 2.0}, c={**own, "logit_scale": 3.0})
    assert two == [
        "'logit_scale' differs: 2.0 in 'b', 3.0 in 'c': the output's config.json, from 'a', does "
        "not set it"
    ]
    usual = {"rope_theta": 1e4, "scale_embedding": False, "sliding_window": None}
    assert found(own, {**own, **usual, "head_dim": 64, "resid_pdrop": 0.1}) == []


def test_a_window_that_is_not_used_is_not_compared() -> None:
    wide, narrow = ({"sliding_window": n, "use_sliding_window": False} for n in (32768, 131072))
    assert found(wide, narrow) == []
    assert len(found({"sliding_window": 4096}, {"sliding_window": None})) == 1


def test_both_spellings_of_rotary_settings_are_one() -> None:
    old = {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    new = {"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}}
    assert found(old, new) == []
    plain = {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}
    assert found({"rope_theta": 5e5}, plain) == []
    partly = {"rope_theta": 5e5, "partial_rotary_factor": 0.5}
    assert found(partly, {"rope_parameters": {**partly, "rope_type": "default"}}) == []
    (line,) = found(old, plain)
    assert line.startswith("'rope_scaling' differs: {'rope_type': 'linear', 'factor': 2.0} in 'a'")
    assert "None in 'b'" in line


def test_nested_values_have_their_paths() -> None:
    one = {"text_config": {"rms_norm_eps": 1e-6}}
    (line,) = found(one, {"text_config": {"rms_norm_eps": 1e-5}})
    assert line.startswith("'text_config.rms_norm_eps' differs")


def test_values_adjusted_for_the_output_do_not_differ() -> None:
    """MiniCPM's scale_depth follows the depth; a window is taken from the model that has one."""
    one, other = {"scale_depth": 1.4, "sliding_window": None}, {"scale_depth": 1.4}
    adjusted = {"scale_depth": 1.6, "sliding_window": 64}

    def named(other: dict[str, Any]) -> list[str]:
        return [d.text for d in config_differences("a", {"a": one, "b": other}, adjusted)]

    assert named({**other, "sliding_window": 64}) == []
    (line,) = named({"scale_depth": 1.2, "sliding_window": 64})
    assert line.startswith("'scale_depth' differs: 1.4 in 'a', 1.2 in 'b'")
    (line,) = named({"scale_depth": 1.4, "sliding_window": 32})
    assert line.startswith("'sliding_window' differs: None in 'a', 32 in 'b'")
    layers = ({"ffn_multipliers": [0.5, n]} for n in (1.0, 2.0))
    assert found(*layers) == []


def test_classes_are_named() -> None:
    llama, mistral = ({"architectures": [f"{n}ForCausalLM"]} for n in ("Llama", "Mistral"))
    assert found(llama, llama, c=mistral) == [
        "the class differs: LlamaForCausalLM in 'a', 'b', MistralForCausalLM in 'c': the output "
        "is loaded as the first of them"
    ]


def test_values_that_split_weights_differently_are_reported() -> None:
    def cuts(a: dict[str, Any], b: dict[str, Any]) -> list[bool]:
        return [
            difference.is_incompatible for difference in config_differences("a", {"a": a, "b": b})
        ]

    assert cuts({"num_attention_heads": 8}, {"num_attention_heads": 4}) == [True]
    assert cuts({"n_head": 8}, {"n_head": 4}) == [True]
    assert cuts({"num_key_value_heads": None}, {"num_key_value_heads": 4}) == [False]
    assert cuts({"rope_theta": 1e4}, {"rope_theta": 1e6}) == [False]
    seen, read = ({part: {"num_attention_heads": n} for part in parts} for n, parts in (
        (8, ("vision_config", "text_config")), (4, ("vision_config", "text_config")),
    ))  # fmt: skip
    assert cuts(seen, read) == [False, True]
