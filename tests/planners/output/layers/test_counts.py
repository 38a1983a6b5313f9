from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tests.planners.output.layers.support import Config, ok, restacked, stacked

MORE = [0, 1, 2, 3, 2, 3]


@pytest.mark.parametrize(
    "key",
    [
        "num_hidden_layers",
        "n_layer",
        "num_layers",
        "n_layers",
        "num_transformer_layers",
        "layers",
        "num_blocks",
        "num_layers_per_stack",
        "depth",
    ],
)
def test_a_depth_is_found_under_any_key(key: str) -> None:
    config = {"model_type": "x", key: 4, "hidden_size": 4, "num_attention_heads": 4}
    found = ok(restacked(config, {"model.layers.": 4}, {"model.layers.": MORE}))
    assert found == {**config, key: 6}


def test_numbers_of_other_layers_are_left_alone() -> None:
    others = {
        "num_feat_extract_layers": 4,
        "num_conv_layers": 4,
        "num_adapter_layers": 4,
        "max_depth": 4,
        "num_residual_layers": 4,
        "block_size": 4,
        "num_nextn_predict_layers": 4,
        "classifier_num_layers": 4,
    }
    config = {"model_type": "wav2vec2", "num_hidden_layers": 4, **others}
    prefix = "wav2vec2.encoder.layers."
    found = restacked(config, {prefix: 4}, {prefix: MORE}).config
    assert found == {**config, "num_hidden_layers": 6}


def test_a_count_may_be_named_after_its_tower() -> None:
    config = {"model_type": "x", "num_hidden_layers": 4, "conf_num_hidden_layers": 4}
    towers = {"model.layers.": 4, "model.conformer.": 4}
    found = ok(restacked(config, towers, {"model.conformer.": MORE}))
    assert found == {**config, "conf_num_hidden_layers": 6}
    found = ok(restacked(config, towers, {"model.layers.": MORE}))
    assert found == {**config, "num_hidden_layers": 6}


def test_a_part_that_nothing_counts_is_not_made_longer() -> None:
    config = {"model_type": "vits", "num_hidden_layers": 6, "prior_encoder_num_wavenet_layers": 4}
    towers = {"text_encoder.encoder.layers.": 6, "flow.flows.": 4}
    (refusal,) = map(str, restacked(config, towers, {"flow.flows.": MORE}).refusals)
    assert "keep all its layers" in refusal


def test_a_count_is_not_written_for_a_class_that_may_not_read_it() -> None:
    """DeepSeek-VL's vision model has the depth of the model that its settings name."""
    vision = {"model_type": "vision", "params": {"model_name": "siglip_large_patch16_384"}}
    language = {"model_type": "llama", "num_hidden_layers": 2}
    config = {"model_type": "multi_modality", "language_config": language, "vision_config": vision}
    towers = {"language_model.model.layers.": 2, "vision_model.vision_tower.blocks.": 4}
    stack = {"vision_model.vision_tower.blocks.": MORE}
    (refusal,) = map(str, restacked(config, towers, stack).refusals)
    assert "no key of the config.json of 'm' counts the 4 layers of 'vision_model" in refusal


BART = {
    "model_type": "bart",
    "d_model": 16,
    "encoder_layers": 4,
    "decoder_layers": 4,
    "num_hidden_layers": 4,
}
SIDES = {"model.encoder.layers.": 4, "model.decoder.layers.": 4}


def test_the_second_count_of_an_encoder_decoder_is_the_encoders() -> None:
    """In transformers num_hidden_layers is another name of encoder_layers, and wins over it."""
    found = ok(restacked(BART, SIDES, {"model.encoder.layers.": MORE}))
    assert found == {**BART, "encoder_layers": 6, "num_hidden_layers": 6}
    found = ok(restacked(BART, SIDES, {"model.decoder.layers.": MORE}))
    assert found == {**BART, "decoder_layers": 6}


def test_a_decoder_without_encoder_has_its_own_count() -> None:
    decoder = {"model.decoder.layers.": 4}
    found = ok(restacked(BART, decoder, {"model.decoder.layers.": MORE}))
    assert found == {**BART, "decoder_layers": 6}
    trocr = {"model_type": "trocr", "decoder_layers": 4, "num_hidden_layers": 4}
    found = ok(restacked(trocr, decoder, {"model.decoder.layers.": MORE}))
    assert found == {**trocr, "decoder_layers": 6, "num_hidden_layers": 6}


T5 = {"model_type": "t5", "num_layers": 4}
BLOCKS = {"encoder.block.": 4, "decoder.block.": 4}


@pytest.mark.parametrize(
    ("origins", "wanted"),
    [
        ({"encoder.block.": MORE}, {"num_layers": 6, "num_decoder_layers": 4}),
        ({"decoder.block.": MORE}, {"num_layers": 4, "num_decoder_layers": 6}),
        (
            {"encoder.block.": MORE, "decoder.block.": [0, 1]},
            {"num_layers": 6, "num_decoder_layers": 2},
        ),
    ],
)
@pytest.mark.parametrize("given", [{}, {"num_decoder_layers": 4}])
def test_t5s_decoder_has_the_encoders_count_unless_it_is_given(
    given: Config, origins: Mapping[str, list[int]], wanted: Config
) -> None:
    found = ok(restacked({**T5, **given}, BLOCKS, origins))
    assert found == {"model_type": "t5", **wanted}


def test_an_image_encoder_beside_the_main_tower_has_its_own_count() -> None:
    config = {"model_type": "x", "num_hidden_layers": 4, "vision_n_layers": 2, "kinds": [*"abcd"]}
    towers = {"model.layers.": 4, "vision.encoder.layers.": 2}
    found = ok(restacked(config, towers, {"model.layers.": MORE}))
    assert found == {**config, "num_hidden_layers": 6, "kinds": [*"abcdcd"]}
    found = ok(restacked(config, towers, {"vision.encoder.layers.": [0, 1, 1]}))
    assert found == {**config, "vision_n_layers": 3}


def test_a_count_that_may_be_of_either_tower_is_refused() -> None:
    config = {"model_type": "mimi", "num_hidden_layers": 4}
    sides = {"encoder.layers.": 4, "decoder.layers.": 4}
    (refusal,) = map(str, restacked(config, sides, {"encoder.layers.": MORE}).refusals)
    assert "give both the same number of layers" in refusal
    both = restacked(config, sides, {"encoder.layers.": MORE, "decoder.layers.": MORE})
    assert ok(both) == {**config, "num_hidden_layers": 6}


def test_stacks_in_step_are_counted_by_one_key() -> None:
    config = {"model_type": "flaubert", "n_layers": 4}
    step = {"transformer.attentions.": 4, "transformer.ffns.": 4}
    (refusal,) = map(str, restacked(config, step, {"transformer.ffns.": MORE}).refusals)
    assert "give both the same number of layers" in refusal
    assert ok(restacked(config, step, dict.fromkeys(step, MORE))) == {**config, "n_layers": 6}


LLAVA = {
    "model_type": "llava",
    "text_config": {"model_type": "llama", "hidden_size": 16},
    "vision_config": {"model_type": "clip_vision_model", "num_hidden_layers": 4},
    "vision_feature_layer": -2,
}
TEXT, VISION = "model.language_model.layers.", "model.vision_tower.vision_model.encoder.layers."


def test_a_count_that_is_left_to_the_class_is_written_where_it_reads_it() -> None:
    """LLaVA-1.5's text_config says nothing of its 32 layers."""
    found = ok(restacked(LLAVA, {TEXT: 4, VISION: 4}, {TEXT: MORE}))
    assert found["text_config"] == {**LLAVA["text_config"], "num_hidden_layers": 6}
    assert found["vision_config"] == LLAVA["vision_config"]


def test_towers_of_one_depth_keep_their_own_counts() -> None:
    config = {
        "model_type": "qwen2_5_vl",
        "num_hidden_layers": 4,
        "vision_config": {"model_type": "qwen2_5_vl", "depth": 4},
    }
    flat = {"model.layers.": 4, "visual.blocks.": 4}
    found = ok(restacked(config, flat, {"model.layers.": MORE}))
    assert (found["num_hidden_layers"], found["vision_config"]["depth"]) == (6, 4)
    found = ok(restacked(config, flat, {"visual.blocks.": [0, 1]}))
    assert (found["num_hidden_layers"], found["vision_config"]["depth"]) == (4, 2)


def test_a_count_written_twice_is_changed_twice() -> None:
    """Qwen 2.5-VL as saved by transformers 4.53 repeats the text's settings at the top."""
    text = {"num_hidden_layers": 4, "layer_types": ["a", "b", "a", "b"], "max_window_layers": 4}
    config = {
        "model_type": "qwen2_5_vl",
        **text,
        "text_config": {"model_type": "qwen2_5_vl_text", **text},
        "vision_config": {"depth": 2},
    }
    towers = {TEXT: 4, "model.visual.blocks.": 2}
    found = ok(restacked(config, towers, {TEXT: [0, 1, 1, 2, 3]}))
    new = {"num_hidden_layers": 5, "layer_types": ["a", "b", "b", "a", "b"], "max_window_layers": 5}
    assert {key: found[key] for key in new} == new
    assert {key: found["text_config"][key] for key in new} == new


def test_counts_in_nested_objects_are_changed() -> None:
    config = {
        "model_type": "qwen2_5_omni",
        "thinker_config": {
            "text_config": {"num_hidden_layers": 4},
            "audio_config": {"encoder_layers": 4, "num_hidden_layers": 4},
            "vision_config": {"depth": 4},
        },
        "talker_config": {"num_hidden_layers": 4},
    }
    towers = {
        "thinker.model.layers.": 4,
        "thinker.audio_tower.layers.": 4,
        "thinker.visual.blocks.": 4,
        "talker.model.layers.": 4,
    }
    expected: list[tuple[str, tuple[str, ...], dict[str, int]]] = [
        ("thinker.model.layers.", ("thinker_config", "text_config"), {"num_hidden_layers": 6}),
        (
            "thinker.audio_tower.layers.",
            ("thinker_config", "audio_config"),
            {"encoder_layers": 6, "num_hidden_layers": 6},
        ),
        ("thinker.visual.blocks.", ("thinker_config", "vision_config"), {"depth": 6}),
        ("talker.model.layers.", ("talker_config",), {"num_hidden_layers": 6}),
    ]
    for prefix, path, wanted in expected:
        found: Any = ok(restacked(config, towers, {prefix: MORE}))
        changed = {key: value for key, value in _leaves(found) if value == 6}
        assert changed == {".".join((*path, key)): value for key, value in wanted.items()}


def _leaves(config: Any, path: str = "") -> list[tuple[str, Any]]:
    if not isinstance(config, dict):
        return [(path, config)]
    return [
        leaf for key, value in config.items() for leaf in _leaves(value, f"{path}.{key}".strip("."))
    ]


def test_a_list_with_an_entry_per_layer_may_be_the_only_count() -> None:
    """Nemotron-H as saved by transformers 5 has no num_hidden_layers."""
    kinds = ["linear_attention", "moe", "full_attention", "mlp"]
    config = {"model_type": "nemotron_h", "layers_block_type": kinds}
    found = ok(restacked(config, {"model.layers.": 4}, {"model.layers.": [0, 1, 2, 3, 3]}))
    assert found == {**config, "layers_block_type": [*kinds, "mlp"]}


def test_a_new_depth_that_no_key_can_state_is_refused() -> None:
    contradicted = {"model_type": "llama", "num_hidden_layers": 5}
    (refusal,) = map(
        str, restacked(contradicted, {"model.layers.": 4}, {"model.layers.": MORE}).refusals
    )
    assert "4 layers" in refusal
    assert "keep all its layers" in refusal
    unknown = {"hidden_size": 4}
    (refusal,) = map(
        str, restacked(unknown, {"model.layers.": 4}, {"model.layers.": MORE}).refusals
    )
    assert "no key" in refusal


def test_changes_of_the_configuration_are_listed() -> None:
    found = stacked({"num_hidden_layers": 4, "max_window_layers": 4}, [0, 1])
    assert found.notes == ["num_hidden_layers: 4 -> 2", "max_window_layers: 4 -> 2"]
    assert stacked({"num_hidden_layers": 4}, range(4)).notes == []


def test_one_refusal_names_all_stacks_that_one_key_counts() -> None:
    config = {"model_type": "xlm", "n_layers": 4}
    lists = dict.fromkeys((f"transformer.{part}." for part in ("attentions", "ffns", "norms")), 4)
    (refusal,) = map(str, restacked(config, lists, {"transformer.ffns.": MORE}).refusals)
    assert "'transformer.ffns.' and of 'transformer.norms.': give all the same number" in refusal


def test_passes_through_layers_follow_their_number() -> None:
    """HRM passes eight times through the layers of both levels, and counts them too."""
    config = {"model_type": "hrm_text", "num_hidden_layers": 32, "num_layers_per_stack": 4}
    levels = {"model.L_module.layers.": 4, "model.H_module.layers.": 4}
    found = ok(restacked(config, levels, dict.fromkeys(levels, MORE)))
    assert found == {**config, "num_hidden_layers": 48, "num_layers_per_stack": 6}
