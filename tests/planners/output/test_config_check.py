"""Every tensor of an output is one that its configuration accounts for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mergeloom.planners.output.config_check import (
    ConfigCheck,
    DescribedModel,
    Layer,
    check_config,
    sort_by_tower,
)

FULL: Layer = {".attn.q.weight": (8, 8), ".mlp.up.weight": (16, 8)}
CONV: Layer = {".conv.weight": (8, 3), ".mlp.up.weight": (16, 8)}
AROUND = {"embed.weight": (32, 8), "norm.weight": (8,)}


def model(layers: list[Layer], config: dict[str, Any], **around: tuple[int, ...]) -> DescribedModel:
    shapes = {
        f"layers.{i}{s}": shape for i, layer in enumerate(layers) for s, shape in layer.items()
    }
    shapes |= AROUND | {name.replace("_", "."): shape for name, shape in around.items()}
    return DescribedModel("m", config, sort_by_tower(shapes, {"layers.": len(layers)}))


def verdict(donor: DescribedModel, output: DescribedModel) -> ConfigCheck:
    def origin(prefix: str, layer: int, suffix: str | None) -> str:
        return f"layer {layer} of 'b'"

    return check_config(donor, output, origin, frozenset({"embed.weight"}))


def depth(count: int, **more: Any) -> dict[str, Any]:
    return {"num_hidden_layers": count, **more}


def test_layers_that_the_configuration_describes_are_accounted_for() -> None:
    donor = model([FULL] * 4, depth(4))
    assert verdict(donor, model([FULL] * 6, depth(6))) == ConfigCheck()
    assert verdict(donor, model([FULL] * 2, depth(2))) == ConfigCheck()


def test_a_new_depth_must_be_visible_in_the_configuration() -> None:
    donor = model([FULL] * 4, depth(4))
    refused = verdict(donor, model([FULL] * 6, depth(4))).refusals
    assert [str(each) for each in refused] == [
        "the output has 6 layers 'layers.N', which its config.json cannot state, because no key of "
        "'m' counts its 4 layers: keep all layers"
    ]
    listed = model([FULL] * 4, {"layer_types": ["full"] * 4})
    assert verdict(listed, model([FULL] * 5, {"layer_types": ["full"] * 5})) == ConfigCheck()
    nested = model([FULL] * 4, {"text_config": {"model_type": "llama"}})
    counted = {"text_config": {"model_type": "llama", "num_hidden_layers": 5}}
    assert verdict(nested, model([FULL] * 5, counted)) == ConfigCheck()


def test_layers_of_another_size_are_refused() -> None:
    wide = FULL | {".attn.q.weight": (16, 16)}
    donor = model([FULL] * 4, depth(4))
    found = verdict(donor, model([FULL, FULL, wide], depth(3)))
    assert [str(each) for each in found.refusals] == [
        "layer 2 of the output, from layer 2 of 'b', has 'attn.q.weight' of 16x16, where a layer "
        "of 'm', whose config.json the output gets, has 8x8: take layers from models of one size"
    ]


def test_a_layer_with_other_tensors_is_named() -> None:
    donor = model([FULL] * 4, depth(4))
    found = verdict(donor, model([FULL, FULL | {".attn.q.bias": (8,)}], depth(2)))
    assert found.overridable == [
        "layer 1 of the output has 'attn.q.bias' from layer 1 of 'b', unlike layer 1 of a model "
        "with the config.json that the output gets from 'm'"
    ]
    lacking = verdict(donor, model([FULL, {".attn.q.weight": (8, 8)}], depth(2)))
    assert "from layer 1 of 'b', lacks 'mlp.up.weight'" in lacking.overridable[0]


def test_lists_tell_the_kind_of_each_layer() -> None:
    types = ["conv", "full", "conv", "conv"]
    donor = model([CONV, FULL, CONV, CONV], depth(4, layer_types=types))
    stacked = [CONV, FULL, CONV, CONV, FULL]
    right = depth(5, layer_types=["conv", "full", "conv", "conv", "full"])
    assert verdict(donor, model(stacked, right)) == ConfigCheck()
    wrong = depth(5, layer_types=["conv", "full", "conv", "conv", "conv"])
    assert (
        "layer 4 of the output has 'attn.q.weight'"
        in (verdict(donor, model(stacked, wrong)).overridable[0])
    )


def test_lists_of_layer_numbers_tell_the_kind_of_each_layer() -> None:
    donor = model([CONV, FULL, CONV, CONV], depth(4, full_attn_idxs=[1]))
    stacked = model([CONV, FULL, CONV, FULL, CONV], depth(5, full_attn_idxs=[1, 3]))
    assert verdict(donor, stacked) == ConfigCheck()
    enumerated = model([CONV, FULL, CONV, CONV], depth(4, moe_layers_enum="1"))
    stacked = model([CONV, FULL, CONV, FULL, CONV], depth(5, moe_layers_enum="1,3"))
    assert verdict(enumerated, stacked) == ConfigCheck()
    unchanged = model([CONV, FULL, CONV, FULL, CONV], depth(5, full_attn_idxs=[1]))
    assert verdict(donor, unchanged).overridable


def test_kinds_by_a_period_must_keep_their_places() -> None:
    donor = model([CONV, FULL] * 2, depth(4, period=2))
    assert verdict(donor, model([CONV, FULL] * 3, depth(6, period=2))) == ConfigCheck()
    shifted = verdict(donor, model([CONV, FULL, CONV, CONV, FULL], depth(5, period=2)))
    assert "layer 3 of the output has 'conv.weight'" in shifted.overridable[0]


def test_a_rule_that_was_rewritten_is_trusted() -> None:
    donor = model([CONV, FULL] * 2, depth(4, period=2))
    moved = [CONV, FULL, CONV, CONV, FULL]
    types = ["conv", "full", "conv", "conv", "full"]
    assert verdict(donor, model(moved, depth(5, period=2, layer_types=types))) == ConfigCheck()
    assert verdict(donor, model(moved, depth(5, period=2, layer_types=["conv"] * 5))).overridable
    dense = model([CONV, FULL, FULL, FULL], depth(4, first_k_dense=1))
    assert verdict(dense, model([CONV, CONV, FULL], depth(3, first_k_dense=2))) == ConfigCheck()


def test_several_known_rules_together_tell_the_kinds() -> None:
    """None of the donor's lists and places tell its kinds apart, nor does a rule alone."""
    wide = {".attn.q.weight": (8, 8), ".experts.up.weight": (4, 16, 8)}

    def ruled(layers: list[Layer], attention: list[bool], experts: list[bool]) -> DescribedModel:
        kinds = {"layers.": {"attention": attention, "experts": experts}}
        return replace(model(layers, depth(len(layers))), kinds=kinds)

    donor = ruled([CONV, FULL, wide], [False, True, True], [False, False, True])
    attention, experts = [False, True, True, False, True], [False, False, True, False, False]
    stacked = [CONV, FULL, wide, CONV, FULL]
    assert verdict(donor, ruled(stacked, attention, experts)) == ConfigCheck()
    assert verdict(donor, ruled([*stacked[:4], wide], attention, experts)).overridable
    assert verdict(donor, model(stacked, depth(5))).overridable


def test_kinds_by_their_distance_from_an_end_must_keep_it() -> None:
    first = model([CONV, FULL, FULL, FULL], depth(4, first_k_dense=1))
    assert verdict(first, model([CONV, *[FULL] * 5], depth(6, first_k_dense=1))) == ConfigCheck()
    assert verdict(first, model([CONV, FULL, CONV, FULL], depth(4, first_k_dense=1))).overridable
    last = model([FULL, FULL, FULL, CONV], depth(4))
    assert verdict(last, model([*[FULL] * 5, CONV], depth(6))) == ConfigCheck()
    assert verdict(last, model([FULL, CONV, FULL, CONV], depth(4))).overridable
    both = model([CONV, FULL, FULL, CONV], depth(4))
    assert verdict(both, model([CONV, *[FULL] * 5, CONV], depth(7))) == ConfigCheck()


def test_layers_of_several_sizes_are_no_kinds_that_could_be_repeated() -> None:
    narrow, wide = FULL | {".attn.q.weight": (8, 4)}, FULL | {".attn.q.weight": (8, 16)}
    donor = model([narrow, FULL, FULL, wide], depth(4))
    assert verdict(donor, model([narrow, FULL, FULL, wide], depth(4))) == ConfigCheck()
    doubled = verdict(donor, model([narrow, FULL, FULL, wide] * 2, depth(8)))
    assert doubled.overridable[0].startswith("layer 4 of the output has 'attn.q.weight' and 1 more")
    dropped = verdict(donor, model([narrow, FULL, wide], depth(3)))
    assert "layer 2 of the output" in dropped.refusals[0].cause
    repeated = model([narrow, FULL] * 2, depth(4))
    assert verdict(repeated, model([narrow, FULL] * 3, depth(6))) == ConfigCheck()


def test_buffers_that_classes_compute_do_not_count() -> None:
    old = FULL | {".attn.rotary_emb.inv_freq": (4,), ".attn.bias": (1, 1, 9, 9)}
    donor = model([FULL] * 2, depth(2))
    assert verdict(donor, model([old, FULL], depth(2))) == ConfigCheck()


def test_weights_outside_the_layers_are_compared() -> None:
    donor = model([FULL] * 2, depth(2), score_weight=(2, 8))
    more = verdict(donor, model([FULL] * 2, depth(2), value_weight=(1, 8)))
    assert more.warnings == [
        "'value.weight': not in 'm', whose config.json the output gets: its class may ignore it",
    ]
    assert more.lost == ["score.weight"]
    other = verdict(donor, model([FULL] * 2, depth(2), score_weight=(2, 16)))
    assert [str(each) for each in other.refusals] == [
        "'score.weight' has 2x16, in 'm', whose config.json the output gets, 2x8: take layers from "
        "models of one size"
    ]


def test_rows_of_the_vocabulary_may_be_others() -> None:
    donor = model([FULL] * 2, depth(2), head_bias=(32,))
    assert verdict(donor, model([FULL] * 2, depth(2), head_bias=(40,))) == ConfigCheck()


def test_a_weight_with_a_part_per_layer_follows_the_depth() -> None:
    donor = model([FULL] * 2, depth(2), gates_weight=(2 * 4, 8))
    assert verdict(donor, model([FULL] * 3, depth(3), gates_weight=(3 * 4, 8))) == ConfigCheck()
    assert verdict(donor, model([FULL] * 3, depth(3), gates_weight=(3 * 5, 8))).refusals


def test_layers_are_sorted_by_number_however_it_is_written() -> None:
    shapes = {"layers.0.w": (1,), "layers.01.w": (2,), "layers.2.w": (3,), "layers.x.w": (4,)}
    found = sort_by_tower(shapes, {"layers.": 2})
    assert found.towers == {"layers.": [{".w": (1,)}, {".w": (2,)}]}
    assert found.around == {"layers.x.w": (4,)}
