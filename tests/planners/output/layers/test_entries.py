from __future__ import annotations

import pytest

from mergeloom.planners.output.layers.rewrite import rewrite_layers
from mergeloom.planners.output.layers.stack import RestackedTower, RewrittenConfig, SourceLayer
from tests.planners.output.layers.support import Config, model, ok, restacked, stacked


def two(a: Config, b: Config, origins: list[tuple[int, int]]) -> RewrittenConfig:
    """A stack of layers (model, layer) of two models; the configuration is the first one's."""
    models = [
        model(config, {"model.layers.": config["num_hidden_layers"]}, name)[0]
        for config, name in ((a, "a"), (b, "b"))
    ]
    made = tuple(SourceLayer(models[number], layer) for number, layer in origins)
    return rewrite_layers(a, [RestackedTower("default", models[0], made)])


def test_each_entry_is_from_the_model_that_the_layer_is_from() -> None:
    a = {"num_hidden_layers": 4, "layer_types": ["s", "s", "s", "f"], "head_counts": [1, 2, 3, 4]}
    b = {
        "num_hidden_layers": 6,
        "layer_types": ["f", "t", "f", "t", "f", "t"],
        "head_counts": [11, 12, 13, 14, 15, 16],
    }
    found = ok(two(a, b, [(0, 0), (0, 1), (1, 4), (1, 5)]))
    assert found["layer_types"] == ["s", "s", "f", "t"]
    assert found["head_counts"] == [1, 2, 15, 16]


def test_lists_of_layer_sizes_follow_the_layers() -> None:
    """RWKV-7's class wants as many as there are layers."""
    found = ok(stacked({"num_hidden_layers": 4, "value_dim": [8, 8, 8, 16]}, [0, 1, 2, 2, 3]))
    assert found["value_dim"] == [8, 8, 8, 8, 16]


def test_equal_depth_from_another_model_is_a_change_too() -> None:
    a = {"num_hidden_layers": 2, "layer_types": ["s", "f"]}
    b = {"num_hidden_layers": 2, "layer_types": ["f", "s"]}
    assert ok(two(a, b, [(0, 0), (1, 1)]))["layer_types"] == ["s", "s"]
    assert two(a, a, [(0, 0), (0, 1)]).notes == []


def test_a_rule_of_one_model_and_a_list_of_another() -> None:
    """Gemma 2 as first published has no layer_types, as saved since it has them."""
    old = {"model_type": "gemma2", "num_hidden_layers": 4}
    listed = ["sliding_attention", "full_attention"] * 2
    new = {**old, "layer_types": listed}
    shifted = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    wanted = [*listed[:3], *listed[:2]]
    assert ok(two(old, new, shifted))["layer_types"] == wanted
    swapped = [(1 - number, layer) for number, layer in shifted]
    assert ok(two(new, old, swapped))["layer_types"] == wanted


def test_a_list_that_only_another_model_has_is_warned_about() -> None:
    a, b = {"num_hidden_layers": 2}, {"num_hidden_layers": 2, "layer_types": ["s", "f"]}
    (warning,) = two(a, b, [(0, 0), (1, 1)]).warnings
    assert "'b' lists 'layer_types'" in warning
    (warning,) = two(b, a, [(0, 0), (1, 1)]).warnings
    assert "'b' has no 'layer_types'" in warning


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("eos_token_id", [1, 2, 3, 4]),
        ("begin_suppress_tokens", [220, 50256, 7, 8]),
        ("suppress_tokens", [1, 2, 3, 0]),
        ("forced_decoder_ids", [[1, 2], [2, 3], [3, 4], [4, 5]]),
        ("architectures", ["A", "B", "C", "D"]),
        ("label_list", ["a", "b", "c", "d"]),
        ("quantiles", [0.1, 0.2, 0.3, 0.4]),
        ("conv_dim", [4, 4, 4, 4]),
        ("languages", ["a", "b", "c", "d"]),
        ("id2label", {"0": "a", "1": "b", "2": "c", "3": "d"}),
        ("label2id", {"0": 0, "1": 1, "2": 2, "3": 3}),
        ("rope_scaling", {"long_factor": [1, 2, 3, 4], "mrope_section": [1, 2, 3, 4]}),
        ("mrope_section", [1, 2, 3, 4]),
        ("bad_words_ids", [[1], [2], [3], [4]]),
        ("image_grid_pinpoints", [[1, 2], [2, 1], [3, 3], [4, 4]]),
        ("delay_pattern", [0, 1, 2, 3]),
    ],
)
def test_lists_that_happen_to_have_the_length_are_left_alone(key: str, value: object) -> None:
    found = ok(stacked({"num_hidden_layers": 4, key: value}, [0, 1, 2, 3, 3]))
    assert found == {"num_hidden_layers": 5, key: value}


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("mlp_only_layers", [1, 3], [1, 2, 4]),
        ("full_attn_idxs", [0, 2], [0, 3]),
        ("attn_layer_indices", [1], [1, 2]),
        ("cross_attention_layers", [3], [4]),
        ("window_block_indices", [0, 1, 2], [0, 1, 2, 3]),
        ("global_attn_indexes", [2], [3]),
        ("moe_layers_enum", "1,3", "1,2,4"),
        ("global_attn_idx", [0, 1, 3], [0, 1, 2, 4]),
        ("full_attention_idx", [0, 3], [0, 4]),
        ("bskcn_1", [0, 1], [0, 1, 2]),  # where Solar Pro's skip connections begin
        ("layers_from_one", [4], [5]),
        ("no_split_layers", [], []),
        ("out_features", ["a"], ["a"]),
    ],
)
def test_lists_of_layer_numbers_follow_the_layers(key: str, value: object, wanted: object) -> None:
    key = "full_attn_layers" if key == "layers_from_one" else key
    found = ok(stacked({"num_hidden_layers": 4, key: value}, [0, 1, 1, 2, 3]))
    assert found == {"num_hidden_layers": 5, key: wanted}


def test_nested_layer_numbers_count_from_one_or_zero() -> None:
    inner = {"kda_layers": [1, 2, 3], "full_attn_layers": [4], "head_dim": 4}
    config = {"num_hidden_layers": 4, "linear_attn_config": inner}
    found = ok(stacked(config, [0, 1, 2, 3, 2, 3]))["linear_attn_config"]
    assert found == {"kda_layers": [1, 2, 3, 5], "full_attn_layers": [4, 6], "head_dim": 4}
    inner = {"kda_layers": [0, 2, 3], "full_attn_layers": [1]}
    config = {"num_hidden_layers": 4, "linear_attn_config": inner}
    found = ok(stacked(config, [0, 1, 1, 2]))["linear_attn_config"]
    assert found == {"kda_layers": [0, 3], "full_attn_layers": [1, 2]}


def test_strings_with_a_letter_per_layer_follow_the_layers() -> None:
    config = {"num_hidden_layers": 4, "hybrid_override_pattern": "M-*E"}
    assert ok(stacked(config, [0, 1, 2, 2, 3]))["hybrid_override_pattern"] == "M-**E"


def test_attention_types_of_gpt_neo_follow_the_layers() -> None:
    config = {
        "model_type": "gpt_neo",
        "num_layers": 4,
        "attention_types": [[["global", "local"], 2]],
        "attention_layers": ["global", "local"] * 2,
    }
    found = ok(restacked(config, {"transformer.h.": 4}, {"transformer.h.": [0, 1, 3, 3]}))
    assert found["attention_types"] == [[["global", "local", "local", "local"], 1]]
    assert found["attention_layers"] == ["global", "local", "local", "local"]


def test_entries_of_layers_that_predict_further_tokens_stay_behind() -> None:
    config = {
        "num_hidden_layers": 4,
        "num_nextn_predict_layers": 1,
        "compress_ratios": [128, 128, 4, 128, 0],
        "mtp_base_layer_idx": 4,
    }
    found = ok(stacked(config, [0, 1, 2, 2, 3]))
    assert found["compress_ratios"] == [128, 128, 4, 4, 128, 0]
    assert (found["num_nextn_predict_layers"], found["mtp_base_layer_idx"]) == (1, 5)


def test_objects_keyed_by_layer_numbers_follow_the_layers() -> None:
    config = {"num_hidden_layers": 4, "per_layer_config": {"1": {"heads": 2}, "3": {"heads": 4}}}
    found = ok(stacked(config, [0, 1, 1, 3]))["per_layer_config"]
    assert found == {"1": {"heads": 2}, "2": {"heads": 2}, "3": {"heads": 4}}
    saved = {"num_hidden_layers": 12, "per_layer_config": {"05": {"heads": 2}, "11": {"heads": 4}}}
    found = ok(stacked(saved, [*range(12), 11]))["per_layer_config"]
    assert found == {"05": {"heads": 2}, "11": {"heads": 4}, "12": {"heads": 4}}


def test_the_lists_of_one_object_are_not_those_of_another() -> None:
    lists = {"num_hidden_layers": 2, "layer_types": ["a", "b"]}
    config = {"model_type": "m", "text_config": dict(lists), "vision_config": dict(lists)}
    towers = {"model.language_model.layers.": 2, "model.visual.blocks.": 2}
    found = ok(restacked(config, towers, {"model.visual.blocks.": [1, 1]}))
    assert found["text_config"] == lists
    assert found["vision_config"] == {"num_hidden_layers": 2, "layer_types": ["b", "b"]}
