"""The table of rules against transformers' own configuration classes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from mergeloom.planners.output.layers.families import RULES_BY_FAMILY, RULES_BY_KEY
from mergeloom.planners.output.layers.rules import Rule

SETTINGS = {
    "attn_layer_offset": 2,
    "attn_layer_period": 4,
    "dense_mlp_idx": 2,
    "first_k_dense_replace": 2,
    "full_attention_interval": 3,
    "global_attn_every_n_layers": 3,
    "index_skip_topk_offset": 1,
    "index_topk_freq": 3,
    "layer_group_size": 3,
    "local_layer_ids": [1, 2, 5],
    "max_window_layers": 5,
    "moe_layer_freq": 2,
    "no_rope_layer_interval": 3,
    "no_rope_layers": None,
    "num_hash_layers": 2,
    "sliding_window_pattern": 3,
}
"""Values that no class has by default."""

LISTED = [
    (family, rule) for family, rules in RULES_BY_FAMILY.items() for rule in rules if rule.listed
]


def of_class(family: str, settings: dict[str, Any]) -> Any:
    config = CONFIG_MAPPING[family].from_dict(settings)
    return config.get_text_config()


@pytest.mark.parametrize(
    ("family", "rule"), LISTED, ids=[f"{family}-{rule.name}" for family, rule in LISTED]
)
def test_kinds_by_rule_agree_with_the_class_in_transformers(family: str, rule: Rule) -> None:
    given = {key: SETTINGS[key] for key in rule.keys if SETTINGS.get(key) is not None}
    windows = {"use_sliding_window": True, "sliding_window": 16}
    tried = 0
    for depth in (7, 12, 25):
        for settings in ({}, given, {**given, **windows}):
            config = {"num_hidden_layers": depth, **settings}
            if "text_config" in CONFIG_MAPPING[family]().to_dict():
                config = {"text_config": {**config, "model_type": f"{family}_text"}}
            found = of_class(family, json.loads(json.dumps(config)))
            kinds = rule.of({"num_hidden_layers": depth, **settings}, depth)
            if kinds is not None:
                assert list(getattr(found, rule.name)) == kinds, settings
                tried += 1
    assert tried


@pytest.mark.parametrize("settings", [{}, {"attn_layer_period": 3, "attn_layer_offset": 1}])
def test_kinds_of_jamba_agree_with_its_class(settings: dict[str, int]) -> None:
    found = of_class("jamba", {"num_hidden_layers": 11, **settings})
    attention, experts = RULES_BY_FAMILY["jamba"]
    assert attention.of(settings, 11) == list(found.layer_types)
    dense = [kind == "dense" for kind in experts.of(settings, 11) or ()]
    assert dense == [count == 1 for count in found.layers_num_experts]


def test_every_family_of_a_rule_is_one_of_transformers() -> None:
    assert not RULES_BY_FAMILY.keys() - CONFIG_MAPPING.keys()


def test_a_key_means_the_same_as_in_the_family_it_is_known_from() -> None:
    """Families that are not in the table are read by keys."""
    kinds = {
        key: rule.of({key: 3}, 12) for key, rule in RULES_BY_KEY.items() if key != "block_types"
    }
    for key, family in (
        ("sliding_window_pattern", "gemma3_text"),
        ("global_attn_every_n_layers", "modernbert"),
        ("full_attention_interval", "qwen3_next"),
        ("no_rope_layer_interval", "smollm3"),
        ("first_k_dense_replace", "deepseek_v3"),
    ):
        rule = next(rule for rule in RULES_BY_FAMILY[family] if key in rule.keys)
        assert kinds[key] == rule.of({key: 3}, 12)
