from __future__ import annotations

import math

import pytest

from mergeloom.planners.models.architecture import infer_architecture
from mergeloom.planners.output.layers.described import describe
from mergeloom.planners.output.layers.rewrite import rewrite_layers
from mergeloom.planners.output.layers.stack import RestackedTower, SourceLayer
from tests.planners.output.layers.support import BLOCK, Config, model, ok, restacked, stacked

VISION, TEXT = "model.visual.blocks.", "model.language_model.layers."


def with_vision(vision: Config, origins: list[int], **top: object) -> Config:
    config = {
        "model_type": "m",
        "text_config": {"num_hidden_layers": 2},
        "vision_config": {"depth": 6, **vision},
        **top,
    }
    return ok(restacked(config, {TEXT: 2, VISION: 6}, {VISION: origins}))


def test_layers_whose_outputs_go_elsewhere_keep_their_number_of_entries() -> None:
    """Each entry of Qwen 3-VL's list has a merger of its own."""
    taps = {"deepstack_visual_indexes": [1, 3, 5]}
    found = with_vision(taps, [0, 1, 2, 3, 2, 3, 4, 5])
    assert found["vision_config"]["deepstack_visual_indexes"] == [1, 5, 7]
    members = {"fullatt_block_indexes": [1, 3]}
    found = with_vision(members, [0, 1, 2, 3, 2, 3, 4, 5])
    assert found["vision_config"]["fullatt_block_indexes"] == [1, 3, 5]


def test_layer_outputs_may_be_counted_from_the_embedding_or_the_end() -> None:
    found = with_vision({"out_indices": [0, 2, 6]}, [0, 1, 1, 2, 3, 4, 5])
    assert found["vision_config"]["out_indices"] == [0, 3, 7]
    found = with_vision({}, [0, 1, 2, 3, 3, 4, 5], vision_feature_layer=-2)
    assert found["vision_feature_layer"] == -2
    found = with_vision({}, [0, 1, 2, 3, 4, 5, 5], vision_feature_layer=[-2, 1])
    assert found["vision_feature_layer"] == [-3, 1]


def test_the_number_of_an_output_counts_in_the_model_that_the_layer_is_from() -> None:
    """The last but one of four layers is another than that of six."""
    config = {
        "model_type": "m",
        "text_config": {"num_hidden_layers": 2},
        "vision_feature_layer": -2,
    }
    four, six = (
        model({**config, "vision_config": {"depth": n}}, {TEXT: 2, VISION: n}, str(n))
        for n in (4, 6)
    )
    layers = [
        *(SourceLayer(six[1], i) for i in range(3)),
        *(SourceLayer(four[1], i) for i in (1, 2)),
    ]
    tower = RestackedTower(VISION, six[1], tuple(layers))
    text = RestackedTower(TEXT, six[0], tuple(SourceLayer(six[0], i) for i in range(2)))
    found = rewrite_layers(six[0].config, [text, tower])
    assert found.refusals == []
    assert found.config["vision_feature_layer"] == -1


def test_an_output_beyond_the_last_layer_is_left_as_it_is() -> None:
    taps = {"deepstack_visual_indexes": [1, 8, 16]}
    found = with_vision(taps, [0, 0, 1, 2, 3, 4, 5])
    assert found["vision_config"]["deepstack_visual_indexes"] == [2, 8, 16]


def test_numbers_of_a_default_beyond_the_last_layer_name_none() -> None:
    members = {"fullatt_block_indexes": [2, 7, 15]}
    found = with_vision(members, [0, 2, 2, 3, 4, 5])
    assert found["vision_config"]["fullatt_block_indexes"] == [1, 2]


def test_pairs_of_layers_follow_the_tower_of_images() -> None:
    """Granite Vision 4 takes images of vision layers, most counted from the end."""
    pairs = {"deepstack_layer_map": [[-3, 1], [2, 0], [-1, 0]], "spatial_vision_layer": -2}
    found = with_vision({}, [0, 1, 2, 3, 4, 4, 5], **pairs)
    assert found["deepstack_layer_map"] == [[-4, 1], [2, 0], [-1, 0]]
    assert found["spatial_vision_layer"] == -2


def test_the_talker_keeps_its_layer_of_the_thinker() -> None:
    thinker = {"text_config": {"num_hidden_layers": 6}}
    talker = {"accept_hidden_layer": 4, "text_config": {"num_hidden_layers": 4}}
    config = {"model_type": "m", "thinker_config": thinker, "talker_config": talker}
    depths = {"thinker.model.layers.": 6, "talker.model.layers.": 4}
    found = ok(restacked(config, depths, {"thinker.model.layers.": [0, 1, 1, 2, 3, 4, 5]}))
    assert found["talker_config"]["accept_hidden_layer"] == 5
    found = ok(restacked(config, depths, {"talker.model.layers.": [0, 0, 1, 2, 3]}))
    assert found["talker_config"]["accept_hidden_layer"] == 4


def test_the_layer_that_an_inserted_part_follows() -> None:
    """MiniCPM-V says it twice, beside the vision model's settings and among them."""
    found = with_vision({"insert_layer_id": 3}, [0, 1, 1, 2, 3, 4, 5], insert_layer_id=3)
    assert found["insert_layer_id"] == found["vision_config"]["insert_layer_id"] == 4


@pytest.mark.parametrize(
    ("places", "where"),
    [
        ({"vision_config": {"depth": 6, "deepstack_visual_indexes": [1, 3]}}, "0, 1"),
        ({"spatial_target_layers": [1]}, "1"),
        ({"deepstack_layer_map": [[-1, 0], [3, 1]]}, "0, 1"),
    ],
)
def test_layers_of_words_at_which_images_are_added(places: Config, where: str) -> None:
    vision = {"vision_config": {"depth": 6}}
    config = {"model_type": "m", "text_config": {"num_hidden_layers": 4}, **vision, **places}
    depths = {TEXT: 4, VISION: 6}
    assert ok(restacked(config, depths, {TEXT: [0, 1, 2, 2, 3]}))
    (warning,) = restacked(config, depths, {TEXT: [0, 2, 3]}).warnings
    assert f"are added at layers {where} of '{TEXT}', and layer 1 of the output" in warning


def test_the_output_of_the_last_layer_is_that_of_any_last_layer() -> None:
    for origins in ([0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 4]):
        assert with_vision({}, origins, select_layer=-1)["select_layer"] == -1


def test_outputs_named_by_stage_follow_the_layers() -> None:
    stages = ["stem", "stage1", "stage2", "stage3", "stage4"]
    config = {"num_hidden_layers": 4, "out_features": ["stage2", "stage4"], "stage_names": stages}
    found = ok(stacked(config, [0, 1, 1, 2, 3]))
    assert found["out_features"] == ["stage3", "stage5"]
    assert found["stage_names"] == [*stages, "stage5"]


def test_outputs_named_without_tower_belong_to_the_tower_with_the_plain_count() -> None:
    """Mllama's vision model has global layers of their own behind the others."""
    vision = {"num_hidden_layers": 4, "num_global_layers": 2, "intermediate_layers_indices": [1, 4]}
    config = {"model_type": "m", "text_config": {"num_hidden_layers": 2}, "vision_config": vision}
    towers = {
        TEXT: 2,
        "model.vision_model.global_transformer.layers.": 2,
        "model.vision_model.transformer.layers.": 4,
    }
    local = {"model.vision_model.transformer.layers.": [0, 0, 1, 2, 3]}
    found = ok(restacked(config, towers, local))["vision_config"]
    assert found == {**vision, "num_hidden_layers": 5, "intermediate_layers_indices": [2, 5]}
    several = {"model.vision_model.global_transformer.layers.": [0, 1, 1]}
    found = ok(restacked(config, towers, several))["vision_config"]
    assert found == {**vision, "num_global_layers": 3}


def test_a_layer_whose_output_is_needed_must_be_there() -> None:
    config = {"num_hidden_layers": 6, "extract_layers": [2, 4]}
    (refusal,) = map(str, stacked(config, [0, 1, 3, 4, 5]).refusals)
    assert "takes the output of layer 2" in refusal
    assert "keep that layer" in refusal


def test_layers_that_reuse_keys_and_values_keep_their_source() -> None:
    config = {"num_hidden_layers": 4, "kv_source_layers": [0, 0, 2, 2]}
    found = ok(stacked(config, [0, 1, 1, 2, 3]))
    assert found["kv_source_layers"] == [0, 0, 0, 3, 3]
    (refusal,) = map(str, stacked(config, [1, 2, 3]).refusals)
    assert "keys and values of layer 0" in refusal
    assert "keep both" in refusal
    hymba = {"num_hidden_layers": 4, "kv_reuse_group": [[0, 1], [2, 3]]}
    found = ok(stacked(hymba, [0, 1, 1, 2, 3]))
    assert found["kv_reuse_group"] == [[0, 1, 2], [3, 4]]


def test_a_factor_that_follows_the_depth_stays_what_it_was() -> None:
    """MiniCPM multiplies what a layer adds by scale_depth / sqrt(num_hidden_layers)."""
    config = {"model_type": "minicpm3", "num_hidden_layers": 4, "scale_depth": 1.4}
    found = stacked(config, [0, 1, 2, 3, 3])
    assert math.isclose(ok(found)["scale_depth"] / math.sqrt(5), 1.4 / math.sqrt(4))
    assert "scale_depth: 1.4 -> 1.56525" in found.notes[1]


def test_the_same_factor_is_another_in_a_model_of_another_depth() -> None:
    made = []
    for name, depth in (("m", 4), ("b", 9)):
        config = {"model_type": "minicpm3", "num_hidden_layers": depth, "scale_depth": 1.4}
        made.append(*model(config, {"model.layers.": depth}, name))
    (donor, other) = made
    layers = (SourceLayer(donor, 0), SourceLayer(donor, 1), SourceLayer(other, 8))
    found = rewrite_layers(donor.config, [RestackedTower("default", donor, layers)])
    assert ["which is 4 in 'm' and 9 in 'b'" in line for line in found.warnings] == [True]


def test_layers_scaled_by_the_depth_of_another_model_are_warned_about() -> None:
    """The output is as deep as the first model, and not as the second."""
    three, four = (
        model({"model_type": "esmc", "num_hidden_layers": n}, {"layers.": n}, str(n))[0]
        for n in (3, 4)
    )
    layers = (*(SourceLayer(four, i) for i in range(3)), SourceLayer(three, 2))
    found = rewrite_layers(four.config, [RestackedTower("default", four, layers)])
    assert ["square root of the number of layers" in line for line in found.warnings] == [True]


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (
            {"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True},
            "scale_attn_by_inverse_layer_idx",
        ),
        ({"model_type": "diffllama"}, "lambda"),
        ({"model_type": "big_bird"}, "random blocks"),
        ({"model_type": "minimax", "layer_types": ["full_attention"] * 4}, "decay"),
        ({"model_type": "bailing_moe_linear", "layer_group_size": 1}, "decay"),
        ({"model_type": "minicpm", "head_multi": True, "start_layer": 2}, "a head for each layer"),
        (
            {"model_type": "chatglm", "position_encoding_2d": True, "inner_hidden_size": 8},
            "twice the number of layers",
        ),
        (
            {
                "model_type": "openelm",
                "qkv_multipliers": [0.5, 1.0],
                "num_query_heads": [1, 1, 2, 2],
            },
            "qkv_multipliers",
        ),
    ],
)
def test_constants_that_depend_on_the_layers_number_are_warned_about(
    config: Config, word: str
) -> None:
    config = {**config, "num_hidden_layers": 4}
    (warning,) = stacked(config, [0, 1, 2, 2, 3]).warnings
    assert word in warning
    assert "'m'" in warning
    assert stacked(config, range(4)).warnings == []


def test_constants_that_depend_on_the_depth_are_warned_about() -> None:
    config = {
        "model_type": "minimax",
        "num_hidden_layers": 4,
        "layer_types": ["full_attention"] * 4,
    }
    (warning,) = stacked(config, [0, 1]).warnings
    assert "decay" in warning


def test_a_count_that_counts_within_each_layer_too_cannot_change() -> None:
    """SAM 2's mask decoder has feed-forward networks of as many layers as it has blocks."""
    config = {"mask_decoder_config": {"model_type": "sam2_mask_decoder", "num_hidden_layers": 2}}
    parts = ("mlp.proj_in.weight", "mlp.proj_out.weight", "attn.weight", "norm.weight")
    names = [f"mask_decoder.transformer.layers.{i}.{part}" for i in range(2) for part in parts]
    (donor,) = describe(
        "m", config, infer_architecture(dict.fromkeys(names, (8, 8)), config).towers
    )
    layers = tuple(SourceLayer(donor, i) for i in (0, 1, 1))
    (refusal,) = rewrite_layers(config, [RestackedTower("default", donor, layers)]).refusals
    assert "within each feed-forward network" in refusal.cause
    assert not rewrite_layers(config, [RestackedTower("default", donor, layers[:2])]).refusals


def test_stages_of_several_widths_are_not_stacked() -> None:
    config = {"model_type": "swin", "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]}
    swin = {"encoder.layers.": 4}
    refusal, *_ = map(str, restacked(config, swin, {"encoder.layers.": [0, 1, 1, 2, 3]}).refusals)
    assert "stages of several widths ('depths' of config.json)" in refusal
    assert ok(restacked(config, swin, {"encoder.layers.": range(4)})) == config
    wav2vec = {
        "model_type": "wav2vec2",
        "num_hidden_layers": 4,
        "num_feat_extract_layers": 4,
        "conv_dim": [8, 8, 8, 8],
    }
    towers = {"encoder.layers.": 4, "feature_extractor.conv_layers.": 4}
    several = {"feature_extractor.conv_layers.": [0, 1, 1, 2, 3]}
    (refusal,) = map(str, restacked(wav2vec, towers, several).refusals)
    assert "'conv_dim' of config.json" in refusal
    assert ok(restacked(wav2vec, towers, {"encoder.layers.": [0, 1, 2, 3, 3]}))["conv_dim"]


def uneven(origins: list[int], **settings: object) -> list[str]:
    """Refusals for a model whose layers 2 and 3 have a tensor more than layers 0 and 1."""
    return _refusals(origins, {2, 3}, settings)


def _refusals(origins: list[int], more: set[int], settings: dict[str, object]) -> list[str]:
    config = {"num_hidden_layers": 4, **settings}
    names = [f"model.layers.{i}{part}" for i in range(4) for part in BLOCK]
    names += [f"model.layers.{i}.mlp.experts.0.weight" for i in more]
    (donor,) = describe(
        "m", config, infer_architecture(dict.fromkeys(names, (8, 8)), config).towers
    )
    made = tuple(SourceLayer(donor, layer) for layer in origins)
    return [
        str(each)
        for each in rewrite_layers(config, [RestackedTower("default", donor, made)]).refusals
    ]


def test_layers_that_differ_without_a_setting_cannot_move() -> None:
    (refusal,) = uneven([0, 1, 2, 2, 3])
    assert "mlp.experts.0.weight" in refusal
    assert "keep every layer at its number" in refusal
    assert uneven([0, 1, 2, 3]) == []
    assert uneven([0, 1, 2, 2, 3], mlp_only_layers=[0, 1]) == []
    assert uneven([0, 1, 2, 2, 3], some_kinds=["d", "d", "s", "s"]) == []
    assert uneven([0, 1, 2, 2, 3], some_kinds=["d", "d", "d", "s"]) != []


def test_tensors_of_only_the_first_or_last_layer_stay_in_place() -> None:
    """It is no part of the layers, which are all alike then."""
    for section in (0, 3):
        assert _refusals([0, 1, 0, 2, 3], {section}, {}) == []
        assert _refusals([1, 2, 3], {section}, {}) == []
    assert _refusals([0, 3, 1, 2], {1}, {}) != []


SHARING_KEYS: Config = {
    "model_type": "gemma3n_text",
    "num_hidden_layers": 6,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
}
"""Layer 4 uses the keys and values of layer 3, and layer 5 those of layer 2."""


def test_layers_that_reuse_keys_and_values_find_the_same_ones() -> None:
    assert ok(stacked(SHARING_KEYS, [0, 2, 3, 4, 5]))["num_kv_shared_layers"] == 2
    assert ok(stacked(SHARING_KEYS, [0, 1, 2, 3]))["num_kv_shared_layers"] == 0
    (warning,) = stacked(SHARING_KEYS, [0, 1, 2, 4, 5]).warnings
    assert warning.startswith("layer 3 of the output's 'model.layers.', made from layer 4 of 'm'")
    assert "keys and values of layer 1 of 'm', and did use those of layer 3" in warning
    (refusal,) = stacked(SHARING_KEYS, [0, 1, 3, 4, 5]).refusals
    assert "layer 4 of the output" in refusal.cause
    assert "no layer of its kind before it has any" in refusal.cause


def test_layers_that_share_within_groups() -> None:
    config = {"num_hidden_layers": 8, "use_cla": True, "cla_share_factor": 2}
    assert ok(stacked(config, [0, 1, 4, 5]))["cla_share_factor"] == 2
    (warning,) = stacked(config, [0, 1, 2, 5]).warnings
    assert "keys and values of layer 2 of 'm', and did use those of layer 4" in warning
