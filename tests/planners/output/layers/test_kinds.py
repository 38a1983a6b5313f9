"""Layer kinds, judged by transformers: each layer of the output's class is what its source was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from mergeloom.planners.output.layers.rewrite import rewrite_layers
from mergeloom.planners.output.layers.stack import RestackedTower, SourceLayer
from tests.planners.output.layers.support import Config, model, ok, restacked, stacked

TEXT = "model.language_model.layers."


def kinds(config: Config, *properties: str) -> list[tuple[Any, ...]]:
    """What transformers' class makes of each layer."""
    found = CONFIG_MAPPING[config["model_type"]].from_dict(json.loads(json.dumps(config)))
    text = found.get_text_config()
    columns = []
    for name in properties:
        value = getattr(text, name)
        numbers = name in ("moe_layers", "cross_attention_layers", "mlp_only_layers")
        depth = text.num_hidden_layers
        columns.append([i in value for i in range(depth)] if numbers else value)
    return list(zip(*columns, strict=True))


def hub(family: str, **settings: Any) -> Config:
    return {"model_type": family, "num_hidden_layers": 8, **settings}


def text(family: str, **settings: Any) -> Config:
    return {"model_type": family, "text_config": hub(f"{family}_text", **settings)}


LISTED = [
    (hub("gemma2", sliding_window=4096), "layer_types"),
    (text("gemma3", sliding_window_pattern=3, sliding_window=1024), "layer_types"),
    (hub("gemma3_text"), "layer_types"),
    (hub("cohere2", sliding_window_pattern=4), "layer_types"),
    (hub("modernbert", global_attn_every_n_layers=3), "layer_types"),
    (hub("smollm3", no_rope_layer_interval=4), "no_rope_layers"),
    (hub("exaone4", sliding_window_pattern=4), "layer_types"),
    (hub("olmo3", sliding_window=4096), "layer_types"),
    (hub("gpt_oss", sliding_window=128), "layer_types"),
    (hub("qwen3_next", full_attention_interval=4), "layer_types"),
    (hub("qwen2", use_sliding_window=True, sliding_window=64, max_window_layers=5), "layer_types"),
    (hub("lfm2", full_attn_idxs=[2, 5]), "layer_types"),
    (hub("bamba", attn_layer_indices=[3]), "layers_block_type"),
    (text("llama4", interleave_moe_layer_step=2, no_rope_layer_interval=4), "moe_layers"),
    (text("llama4", no_rope_layers=[], no_rope_layer_interval=4), "no_rope_layers"),
    (text("llama4", no_rope_layers=[], no_rope_layer_interval=4), "layer_types"),
    (hub("gemma3n_text", intermediate_size=64, num_kv_shared_layers=0), "layer_types"),
    (
        hub("recurrent_gemma", block_types=["recurrent", "recurrent", "attention"]),
        "layers_block_type",
    ),
    (hub("minimax", layer_types=["full_attention", "linear_attention"] * 4), "layer_types"),
    (
        hub(
            "kimi_linear",
            linear_attn_config={
                "kda_layers": [1, 2, 3, 5, 6, 7],
                "full_attn_layers": [4, 8],
                "head_dim": 8,
                "num_heads": 2,
                "short_conv_kernel_size": 4,
            },
        ),
        "layer_types",
    ),
    (hub("glm_moe_dsa", first_k_dense_replace=3, index_topk_freq=4), "indexer_types"),
    (
        hub("granitemoehybrid", layer_types=["mamba", "mamba", "attention", "mamba"] * 2),
        "layer_types",
    ),
    (
        hub(
            "step3p5",
            num_nextn_predict_layers=2,
            moe_layers_enum="2,3,4,5,6,7",
            layer_types=["full_attention", "sliding_attention"] * 5,
        ),
        "layer_types",
    ),
]
SHIFTS = ([0, 1, 2, 3, 4, 3, 4, 5, 6, 7], [0, 1, 3, 4, 5, 7], [7, 6, 5, 4, 3, 2, 1, 0])


@pytest.mark.parametrize("origins", SHIFTS, ids=["stacked", "dropped", "reversed"])
@pytest.mark.parametrize(
    ("config", "name"), LISTED, ids=[f"{config['model_type']}-{name}" for config, name in LISTED]
)
def test_kinds_follow_their_layers(config: Config, name: str, origins: list[int]) -> None:
    prefix = TEXT if "text_config" in config else "model.layers."
    found = stacked(config, origins, prefix)
    if config["model_type"] == "minimax":
        found.warnings.clear()  # of its decay, which no list can keep
    if name == "indexer_types":
        found.warnings.clear()  # of layers whose selection of keys is another one
        found.refusals.clear()
    before, after = kinds(config, name), kinds(ok(found), name)
    assert after == [before[origin] for origin in origins]


def test_a_rule_that_fits_stays() -> None:
    gemma = hub("gemma2")
    assert ok(stacked(gemma, [0, 1, 2, 3, 2, 3, 4, 5, 6, 7])) == {**gemma, "num_hidden_layers": 10}
    qwen = hub("qwen2", use_sliding_window=False, sliding_window=131072, max_window_layers=8)
    found = ok(stacked(qwen, [0, 1, 2, 2]))
    assert found == {**qwen, "num_hidden_layers": 4, "max_window_layers": 4}


def test_layer_numbers_are_changed_in_preference_to_writing_a_list() -> None:
    dense = hub("deepseek_v3", first_k_dense_replace=3)
    assert ok(stacked(dense, [0, 2, 3, 4, 5, 4, 5, 6]))["first_k_dense_replace"] == 2
    ernie = hub(
        "ernie4_5_moe", moe_layer_start_index=1, moe_layer_end_index=7, moe_layer_interval=1
    )
    found = ok(stacked(ernie, [0, 1, 2, 3, 4, 5, 6, 7, 6, 7]))
    assert (found["moe_layer_start_index"], found["moe_layer_end_index"]) == (1, 9)
    found = ok(stacked(ernie, [1, 2, 3]))
    assert (found["moe_layer_start_index"], found["moe_layer_end_index"]) in ((0, 7), (0, 2))
    qwen = hub("qwen2", use_sliding_window=True, sliding_window=64, max_window_layers=6)
    assert ok(stacked(qwen, [0, 1, 2, 3, 2, 3, 4, 5, 6, 7]))["max_window_layers"] == 8


def test_a_period_is_changed_where_it_describes_the_stack() -> None:
    experts = {"expert_layer_period": 2, "expert_layer_offset": 1}
    jamba = hub("jamba", attn_layer_period=8, attn_layer_offset=4, **experts)
    found = ok(stacked(jamba, [1, 2, 3, 4, 5, 6, 7]))
    assert (found["attn_layer_offset"], found["expert_layer_offset"]) == (3, 0)
    found = ok(stacked(jamba, [0, 1, 2, 3, 4, 5, 2, 3, 4, 5][2:]))
    assert (found["attn_layer_period"], found["attn_layer_offset"]) == (4, 2)


def test_mixtures_of_experts_that_a_step_cannot_place_are_listed() -> None:
    """Qwen's classes read no list of kinds, but one of the layers that are no mixtures."""
    config = hub("qwen3_moe", decoder_sparse_step=2, num_experts=4, mlp_only_layers=[])
    found = ok(stacked(config, [0, 1, 1, 2, 3]))
    assert (found["decoder_sparse_step"], found["mlp_only_layers"]) == (1, [0, 3])


REFUSED: list[tuple[Config, Sequence[int], tuple[str, ...]]] = [
    (
        hub("deepseek_v3", first_k_dense_replace=3),
        [0, 1, 2, 3, 0],
        (
            "layer 4 of the output",
            "layer 0 of 'm'",
            "'dense'",
            "'sparse'",
            "first_k_dense_replace 3",
        ),
    ),
    (
        hub("jamba", attn_layer_period=4, attn_layer_offset=1, expert_layer_period=2),
        [0, 1, 1, 2],
        ("layer 2 of the output", "'full_attention'", "attn_layer_period 4"),
    ),
    (hub("afmoe", num_dense_layers=2), [0, 2, 1], ("num_dense_layers 2",)),
    (hub("blip_2_qformer", cross_attention_frequency=2), [0, 0, 1], ("cross_attention_frequency",)),
    (hub("gemma4_text"), [0, 1, 2, 3, 4, 5, 6], ("the last layer", "'sliding_attention'")),
    (hub("strange", first_k_dense_replace=1), [1, 0], ("first_k_dense_replace 1",)),
    (
        {"model_type": "switch_transformers", "num_layers": 8, "num_sparse_encoder_layers": 4},
        [0, 1, 1, 2],
        ("num_sparse_encoder_layers 4",),
    ),
    (
        {"model_type": "nllb-moe", "encoder_layers": 8, "encoder_sparse_step": 4},
        [0, 3, 1, 2],
        ("encoder_sparse_step 4",),
    ),
]


@pytest.mark.parametrize(
    ("config", "origins", "words"), REFUSED, ids=[c["model_type"] for c, _, _ in REFUSED]
)
def test_kinds_that_no_setting_can_state_are_refused(
    config: Config, origins: list[int], words: tuple[str, ...]
) -> None:
    prefix = "encoder.layers." if "encoder" in str(config) else "model.layers."
    refusal, *_ = map(str, restacked(config, {prefix: 8}, {prefix: origins}).refusals)
    for word in words:
        assert word in refusal
    assert "choose layer ranges" in refusal or "end with a layer" in refusal


def test_kinds_that_only_another_models_rule_gives_are_refused() -> None:
    """Hunyuan shares keys and values between layers where ``use_cla`` says so."""
    (donor,) = model(hub("hunyuan", use_cla=False, cla_share_factor=2), {"model.layers.": 8})
    (other,) = model(hub("hunyuan", use_cla=True, cla_share_factor=2), {"model.layers.": 8}, "b")
    made = tuple(SourceLayer(other, i) for i in range(8))
    refusals = rewrite_layers(donor.config, [RestackedTower("default", donor, made)]).refusals
    assert "which cross-layer attention the layers of 'b' have" in str(refusals[0])
    assert "that of 'm', which the output gets, has none" in str(refusals[0])


def test_layers_bring_the_window_that_the_donor_has_switched_off() -> None:
    window = {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 3}
    config = hub("qwen2", use_sliding_window=False, sliding_window=9, max_window_layers=8)
    (donor,) = model(config, {"model.layers.": 8})
    (other,) = model(hub("qwen2", **window), {"model.layers.": 8}, "b")

    def stack(layers: Sequence[int]) -> Config:
        made = (
            *(SourceLayer(donor, i) for i in range(4)),
            *(SourceLayer(other, i) for i in layers),
        )
        return ok(rewrite_layers(donor.config, [RestackedTower("default", donor, made)]))

    found = stack([2, 3, 4])
    assert found["max_window_layers"] == 5
    assert (found["use_sliding_window"], found["sliding_window"]) == (True, 64)
    assert stack([0, 1, 2])["use_sliding_window"] is False


def test_layers_with_a_window_need_one_in_the_configuration() -> None:
    """Exaone 4's layers without a window have rotary positions only if no layer has a window."""
    full = hub("exaone4", sliding_window=None, layer_types=["full_attention"] * 8)
    (donor,) = model(full, {"model.layers.": 8})
    kinds = ["sliding_attention", "full_attention"] * 4
    other_config = hub("exaone4", sliding_window=64, layer_types=kinds)
    (other,) = model(other_config, {"model.layers.": 8}, "b")
    made = (SourceLayer(donor, 0), SourceLayer(other, 1), SourceLayer(other, 2))
    (refusal,) = rewrite_layers(full, [RestackedTower("default", donor, made)]).refusals
    assert "layer 2 of the output" in refusal.cause
    assert "'sliding_window' is null" in refusal.cause
    assert refusal.remedy == "make 'b' the base model"


def test_a_list_says_more_than_a_rule_whose_family_is_not_known() -> None:
    config = hub("exaone9", sliding_window_pattern=4, layer_types=["s", "s", "s", "f"] * 2)
    found = ok(stacked(config, [0, 1, 2, 3, 2, 3]))
    assert found["layer_types"] == ["s", "s", "s", "f", "s", "f"]
    (refusal,) = map(str, stacked(hub("exaone9", sliding_window_pattern=4), [0, 2, 3]).refusals)
    assert "sliding_window_pattern 4 (as in Gemma 3)" in refusal


def test_bounds_may_be_listed_for_words_and_images() -> None:
    """Ernie 4.5 VL's class takes the outermost."""
    bounds = {"moe_layer_start_index": [1, 1], "moe_layer_end_index": [8, 7]}
    config = hub("ernie4_5_moe_vl", moe_layer_interval=1, **bounds)
    found = ok(stacked(config, [*range(8), *range(4, 8)]))
    assert (found["moe_layer_start_index"], found["moe_layer_end_index"]) == ([1, 1], [11, 11])


def test_a_list_that_the_models_own_code_may_not_read_is_warned_about() -> None:
    config = hub("bailing_hybrid", layer_group_size=4, first_k_dense_replace=0)
    assert stacked(config, [0, 1, 2, 4, 5]).warnings == []
    own = {**config, "auto_map": {"AutoConfig": "configuration_bailing.Config"}}
    assert stacked(own, [0, 1, 2, 3]).warnings == []
    (warning,) = stacked(own, [0, 1, 2, 4, 3]).warnings
    assert warning.startswith("'layer_types' is written, since layer_group_size 4 would give")


RULES: list[tuple[Config, str]] = [
    (hub("phi3small", dense_attention_every_n_layers=2), "SBSBSBSB"),
    (hub("bailing_moe_linear", layer_group_size=3), "LLFLLFFF"),
    (hub("hunyuan", use_cla=True, cla_share_factor=2), "OAOAOAOA"),
    (hub("kimi_k2", first_k_dense_replace=1, moe_layer_freq=1), "DSSSSSSS"),
    (hub("deepseek", first_k_dense_replace=1, moe_layer_freq=2), "DDSDSDSD"),
    (hub("ernie4_5_moe_vl", moe_layer_interval=2, moe_layer_start_index=2), "DDDSDSDS"),
    (hub("griffin", block_types=["recurrent", "attention"]), "RARARARA"),
    (hub("plamo2", mamba_step=4), "MMAMMMAM"),
    (hub("arctic", moe_layer_frequency=2), "DSDSDSDS"),
    (hub("nomic_bert", moe_every_n_layers=3), "DSDDSDDS"),
]


@pytest.mark.parametrize(("config", "kinds"), RULES, ids=[c["model_type"] for c, _ in RULES])
def test_rules_in_the_models_own_code_are_followed(config: Config, kinds: str) -> None:
    """As the published modelling code of each has them; one that cannot be kept is refused."""
    (description,) = model(config, {"model.layers.": 8})
    (rule,) = description.rules
    found = [str(kind) for kind in description.kinds(rule.name) or ()]
    assert [[*kinds].index(k) for k in kinds] == [found.index(kind) for kind in found]
    other = next(i for i, kind in enumerate(kinds) if kind != kinds[0])
    swapped = [{0: other, other: 0}.get(i, i) for i in range(8)]
    refusal, *_ = map(str, stacked(config, swapped).refusals)
    assert rule.from_family in refusal


def test_layers_without_keys_and_values_of_their_own_follow_their_group() -> None:
    """Hymba's groups say it, of a stack of such layers too."""
    config = hub("hymba", kv_reuse_group=[[1, 2], [4, 5]])
    found = ok(stacked(config, [0, 1, 2, 1, 2, 4, 5]))
    assert found["kv_reuse_group"] == [[1, 2], [3, 4], [5, 6]]
    (description,) = model(config, {"model.layers.": 8})
    (kinds,) = description.ruled(found, 7).values()
    assert [kind == "own" for kind in kinds] == [True, True, False, True, False, True, False]


def test_a_layer_without_the_keys_and_values_that_it_uses_is_refused_once() -> None:
    config = hub("hymba", kv_reuse_group=[[1, 2], [4, 5]])
    (refusal,) = map(str, stacked(config, [2, 3, 4, 5, 6, 7]).refusals)
    assert "uses keys and values of layer 1" in refusal


def test_layers_that_reuse_a_selection_of_keys_need_one_before() -> None:
    types = ["full", "shared", "shared", "full", "shared", "shared", "full", "shared"]
    config = hub("glm_moe_dsa", indexer_types=types, first_k_dense_replace=0)
    assert ok(stacked(config, [0, 1, 2, 3, 4, 3, 4, 5]))
    (refusal,) = map(str, stacked(config, [1, 0, 2, 3]).refusals)
    assert "layer 0 of the output's 'model.layers.' is made from layer 1 of 'm'" in refusal
    assert "uses the selection of keys of another layer" in refusal
    (warning,) = stacked(config, [0, 1, 3, 2]).warnings
    assert "uses the selection of keys of layer 3 of 'm', and did use those of layer 0" in warning


def test_which_layers_are_dense_where_nothing_is_said() -> None:
    """In Flint the first two."""
    flint = hub("flint", num_experts=4)
    assert ok(stacked(flint, range(2, 8)))["mlp_only_layers"] == []
    assert ok(stacked(flint, [0, 2, 1, 3]))["mlp_only_layers"] == [0, 2]


def test_layers_of_different_kinds_merged_into_one_are_warned_about() -> None:
    (donor,) = model(hub("gemma2"), {"model.layers.": 8})
    (other,) = model(hub("gemma2"), {"model.layers.": 8}, "other")
    made = tuple((SourceLayer(donor, i), SourceLayer(other, i + 1)) for i in range(4))
    tower = RestackedTower("default", donor, tuple(pair[0] for pair in made), made)
    (warning,) = rewrite_layers(donor.config, [tower]).warnings
    assert "layer 0 of the output" in warning
    assert "layer 1 of 'other' has 'full_attention'" in warning


def test_layers_with_other_entries_of_a_list_merged_into_one_are_warned_about() -> None:
    one, two = (hub("hunyuan_v1_moe", moe_topk=[2] * 7 + [n]) for n in (2, 1))
    (donor,), (other,) = (
        model(config, {"model.layers.": 8}, n) for n, config in (("m", one), ("b", two))
    )
    made = tuple((SourceLayer(donor, i), SourceLayer(other, i)) for i in range(8))
    tower = RestackedTower("default", donor, tuple(pair[0] for pair in made), made)
    (warning,) = rewrite_layers(donor.config, [tower]).warnings
    assert warning.startswith("layer 7 of the output's 'default' is merged from layers of differen")
    assert warning.endswith("moe_topk: layer 7 of 'm' has 2, layer 7 of 'b' has 1")


def test_entries_may_be_objects() -> None:
    """As of Nemotron's models that a search has pruned."""
    blocks = [{"ffn": {"ffn_mult": n}, "attention": {"no_op": n > 2}} for n in range(8)]
    found = ok(stacked(hub("nemotron-nas", block_configs=blocks), [0, 1, 2, 5, 5]))
    assert found["block_configs"] == [*blocks[:3], blocks[5], blocks[5]]
    (donor,) = model(hub("nemotron-nas", block_configs=blocks), {"model.layers.": 8})
    made = (SourceLayer(donor, 0), SourceLayer(donor, 1))
    tower = RestackedTower("default", donor, made[:1], (made,))
    assert "different block_configs" in rewrite_layers(donor.config, [tower]).warnings[0]


def test_one_kind_under_two_names_is_one() -> None:
    old = hub("kimi_linear", layer_types=["mamba", "attention"] * 4)
    new = hub("kimi_linear", layer_types=["linear_attention", "full_attention"] * 4)
    (donor,), (other,) = (
        model(config, {"model.layers.": 8}, name) for config, name in ((old, "old"), (new, "new"))
    )
    made = tuple((SourceLayer(donor, i), SourceLayer(other, i)) for i in range(8))
    tower = RestackedTower("default", donor, tuple(pair[0] for pair in made), made)
    assert rewrite_layers(donor.config, [tower]).warnings == []


def test_what_depends_on_the_number_of_a_layer_or_of_layers_is_said() -> None:
    for kind, origins in (
        ("beam", [0, 1, 1, 2, 3, 4, 5, 6, 5]),
        ("granite_speech_encoder", [0, 1]),
    ):
        found = stacked({"model_type": kind, "num_hidden_layers": 8}, origins)
        assert [w for w in found.warnings if "weighted by its number" in w or "middle layer" in w]
