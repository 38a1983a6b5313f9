"""Values that decide what layers compute are named where models disagree about them."""

from __future__ import annotations

from typing import Any

from mergeloom.planners.models.differences import differences

EFFECT = "the output computes with the first, for layers of the others too"


def found(a: dict[str, Any], b: dict[str, Any], **more: dict[str, Any]) -> list[str]:
    return [difference.text for difference in differences("a", {"a": a, "b": b, **more})]


def test_values_that_layers_compute_with_are_named() -> None:
    one = {"rope_theta": 1e4, "rms_norm_eps": 1e-6, "hidden_act": "silu", "num_key_value_heads": 8}
    other = {"rope_theta": 1e6, "rms_norm_eps": 1e-5, "hidden_act": "gelu"}
    assert found(one, one) == []
    assert found(one, {**other, "num_key_value_heads": 2}) == [
        f"'rope_theta' differs: 10000.0 in 'a', 1000000.0 in 'b': {EFFECT}",
        f"'rms_norm_eps' differs: 1e-06 in 'a', 1e-05 in 'b': {EFFECT}",
        f"'hidden_act' differs: silu in 'a', gelu in 'b': {EFFECT}",
        f"'num_key_value_heads' differs: 8 in 'a', 2 in 'b': {EFFECT}",
    ]


def test_values_without_influence_are_not() -> None:
    one = {"bos_token_id": 1, "use_cache": True, "torch_dtype": "float32", "num_hidden_layers": 4}
    other = {"bos_token_id": 2, "use_cache": False, "torch_dtype": "float16"}
    assert found(one, {**other, "num_hidden_layers": 8}) == []


def test_a_value_that_one_leaves_to_its_class_is_not_compared() -> None:
    assert found({"head_dim": 128}, {}) == []
    assert found({"use_sliding_window": False}, {"use_sliding_window": None}) == []


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
    (line,) = found(old, plain)
    assert line.startswith("'rope_scaling' differs: {'rope_type': 'linear', 'factor': 2.0} in 'a'")
    assert "None in 'b'" in line


def test_nested_values_have_their_paths() -> None:
    one = {"text_config": {"rms_norm_eps": 1e-6}}
    (line,) = found(one, {"text_config": {"rms_norm_eps": 1e-5}})
    assert line.startswith("'text_config.rms_norm_eps' differs")


def test_classes_are_named() -> None:
    llama, mistral = ({"architectures": [f"{n}ForCausalLM"]} for n in ("Llama", "Mistral"))
    assert found(llama, llama, c=mistral) == [
        "the class differs: LlamaForCausalLM in 'a', 'b', MistralForCausalLM in 'c': the output "
        "is loaded as the first of them"
    ]


def test_values_that_cut_weights_another_way() -> None:
    def cuts(a: dict[str, Any], b: dict[str, Any]) -> list[bool]:
        return [difference.cuts for difference in differences("a", {"a": a, "b": b})]

    assert cuts({"num_attention_heads": 8}, {"num_attention_heads": 4}) == [True]
    assert cuts({"n_head": 8}, {"n_head": 4}) == [True]
    assert cuts({"num_key_value_heads": None}, {"num_key_value_heads": 4}) == [False]
    assert cuts({"rope_theta": 1e4}, {"rope_theta": 1e6}) == [False]
    seen, read = ({part: {"num_attention_heads": n} for part in parts} for n, parts in (
        (8, ("vision_config", "text_config")), (4, ("vision_config", "text_config")),
    ))  # fmt: skip
    assert cuts(seen, read) == [False, True]
