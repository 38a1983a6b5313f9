"""Towers, modules and the weights around the layers, in models of transformers' own classes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import mergeloom
from mergeloom.engine.base.errors import CheckpointError, ConfigError
from mergeloom.planners.models.architecture import Tower
from mergeloom.planners.models.checkpoint import open_checkpoint
from mergeloom.planners.models.model import StoredModel
from tests.planners.slices.tiny import (
    LLAVA,
    MISTRAL3,
    Tensors,
    blend,
    configure,
    loaded,
    made,
    merged,
    pair,
    planned,
    renamed,
    rewrite,
    slices,
    stack,
    tensors,
    weighted,
)

LLAVA_CLASS = "LlavaForConditionalGeneration"


def towers_of(model: Path) -> tuple[Tower, ...]:
    return StoredModel("m", open_checkpoint(model)).architecture.towers


# --- what belongs to a place and not to a layer ---------------------------------------------------


def test_relative_positions_stay_in_the_first_block(tmp_path: Path) -> None:
    first, second = pair(tmp_path, "T5ForConditionalGeneration")
    other_way = slices(second, first)
    other_way[0]["sources"][0]["layer_range"] = [1, 3]
    modules = {side: {"slices": other_way} for side in ("encoder", "decoder")}
    found = merged({"merge_method": "passthrough", "modules": modules}, tmp_path / "out")
    names = [name for name in found if "relative_attention_bias" in name]
    assert len(names) == len(modules)
    for name in names:
        assert ".block.0." in name
        assert torch.equal(found[name], tensors(second)[name])
    loaded(tmp_path / "out", "T5ForConditionalGeneration")


@pytest.mark.parametrize(
    ("kind", "name", "origin"),
    [
        ("RwkvForCausalLM", "rwkv.blocks.0.pre_ln.weight", "rwkv.blocks.0.pre_ln.weight"),
        (
            "GPTNeoXJapaneseForCausalLM",
            "gpt_neox_japanese.layers.4.attention.dense_bias",
            "gpt_neox_japanese.layers.3.attention.dense_bias",
        ),
    ],
)
def test_what_only_the_first_or_last_layer_has_stays_there(
    tmp_path: Path, kind: str, name: str, origin: str
) -> None:
    first, second = pair(tmp_path, kind, intermediate_multiple_size=2)
    source = {"model": str(second), "layer_range": [1, 4]}
    parts = [{"sources": [{"model": str(first), "layer_range": [2, 4]}]}, {"sources": [source]}]
    found = merged({"merge_method": "passthrough", "slices": parts}, tmp_path / "out")
    tail = re.sub(r"^.*?\.\d+", "", name)
    assert [key for key in found if key.endswith(tail)] == [name]
    owner = first if ".0." in name else second
    assert torch.equal(found[name], tensors(owner)[origin])
    loaded(tmp_path / "out", kind)


def test_layers_that_predict_further_tokens_move_with_the_end(tmp_path: Path) -> None:
    """As DeepSeek-V3 stores them: one layer more than the configuration counts."""
    first, second = pair(tmp_path, "LlamaForCausalLM")
    for model in (first, second):

        def predict(found: Tensors) -> None:
            for name in [name for name in found if name.startswith("model.layers.3.")]:
                found[name.replace(".3.", ".4.")] = torch.randn_like(found[name])
            found["model.layers.4.eh_proj.weight"] = torch.randn(16, 32)

        rewrite(model, predict)
        configure(model, lambda config: config.update(num_nextn_predict_layers=1))
    (tower,) = towers_of(first)
    assert (tower.layers, len(tower.beyond)) == (4, 1)
    parts = [*slices(first, second), slices(first, second)[1]]
    found = merged({"merge_method": "passthrough", "slices": parts}, tmp_path / "out")
    mine, theirs = "model.layers.6.eh_proj.weight", "model.layers.4.eh_proj.weight"
    assert [key for key in found if "eh_proj" in key] == [mine]
    assert torch.equal(found[mine], tensors(second)[theirs])
    scaled = {"model": str(first), "parameters": {"scale": [{"filter": "o_proj", "value": 0.5}]}}
    (part,) = mergeloom.plan({"merge_method": "passthrough", "models": [scaled]}).plan.outlines
    assert part.parts[0].slices[0].detail == "self_attn.o_proj scaled by 0.5"


# --- shapes that follow the depth, layers that share weights --------------------------------------


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("EsmForMaskedLM", "esm.contact_head.regression.weight"),
        ("WavLMForCTC", "layer_weights"),
    ],
)
def test_weights_whose_shape_depends_on_the_depth_are_not_stacked(
    tmp_path: Path, kind: str, name: str
) -> None:
    sizes: dict[str, dict[str, Any]] = {
        "EsmForMaskedLM": {"mask_token_id": 3},
    }
    first, second = pair(tmp_path, kind, **sizes.get(kind, {}))
    if kind == "WavLMForCTC":
        for model in (first, second):
            rewrite(model, lambda found: found.update({name: torch.rand(5)}))
    with pytest.raises(CheckpointError, match=rf"config: slices.*{name}.*each of its 4 layers"):
        mergeloom.plan(stack(first, second))
    out = merged(blend(first, second), tmp_path / "out")
    expected = (tensors(first)[name] + tensors(second)[name]) / 2
    torch.testing.assert_close(out[name], expected)


def test_parts_of_layers_are_gathered_and_merged_as_the_layers_are(tmp_path: Path) -> None:
    kind = "Gemma4ForCausalLM"
    first, second = pair(
        tmp_path, kind, vocab_size_per_layer_input=64, hidden_size_per_layer_input=8
    )
    ranges = ([0, 2], [1, 4])
    parts = [
        {
            "sources": [
                {"model": str(model), "layer_range": list(layers), "parameters": {"weight": 1}}
                for model in models
            ]
        }
        for layers, models in zip(ranges, ((first, second), (second, first)), strict=True)
    ]
    found = merged({"merge_method": "linear", "slices": parts}, tmp_path / "out")
    one, other = tensors(first), tensors(second)
    for name, axis in (("embed_tokens_per_layer", 1), ("per_layer_model_projection", 0)):
        mean = (one[f"model.{name}.weight"] + other[f"model.{name}.weight"]) / 2
        chunks = mean.chunk(4, axis)
        expected = torch.cat(
            [chunks[layer] for start, stop in ranges for layer in range(start, stop)], axis
        )
        torch.testing.assert_close(found[f"model.{name}.weight"], expected)
    parts[1]["sources"].pop()
    with pytest.raises(CheckpointError, match="different numbers of sources"):
        planned({"merge_method": "linear", "slices": parts})


def test_layers_that_share_weights_are_not_stacked(tmp_path: Path) -> None:
    kinds = ["mamba", "hybrid", "mamba", "hybrid"]
    first, second = pair(
        tmp_path, "ZambaForCausalLM", layers_block_type=kinds, attn_layer_period=2,
        attn_layer_offset=1, mamba_dt_rank=4, n_mamba_heads=2,
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="share weights"):
        mergeloom.plan(stack(first, second))
    merged(blend(first, second), tmp_path / "out")
    loaded(tmp_path / "out", "ZambaForCausalLM")


# --- constants ------------------------------------------------------------------------------------


def test_constants_keep_their_type(tmp_path: Path) -> None:
    first, second = pair(tmp_path, "LlamaForCausalLM")
    name = "model.layers.1.self_attn.rotary_emb.inv_freq"
    mask = "model.layers.1.attn.bias"
    for model in (first, second):
        more = {name: 1 / torch.arange(1, 5) ** 0.37, mask: torch.ones(1, 1, 4, 4).tril()}
        rewrite(model, lambda found, more=more: found.update(more))
    found = merged(blend(first, second, dtype="bfloat16"), tmp_path / "out")
    for constant in (name, mask):
        assert torch.equal(found[constant], tensors(first)[constant])
    assert found["lm_head.weight"].dtype == torch.bfloat16
    rewrite(second, lambda found: found.update({name: torch.ones(4)}))
    plan = planned(blend(first, second, dtype="bfloat16"))
    assert any(name in warning and "differs" in warning for warning in plan.warnings)


def test_reasons_of_left_out_tensors_are_true(tmp_path: Path) -> None:
    seeing = made(tmp_path / "a", 0, LLAVA_CLASS, **LLAVA)
    reading = made(tmp_path / "b", 1, "LlamaForCausalLM")
    constant = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    rewrite(reading, lambda found: found.update(constant))
    modules = {"text_decoder": {"slices": slices(seeing, reading)}}
    plan = planned({"merge_method": "passthrough", "modules": modules})
    left = {item.reason: item for item in plan.unused if item.model == str(reading)}
    assert left.keys() == {
        "layers that no slice uses",
        "constants are not merged: another model's are copied",
        "weights before the layers come from the first slice",
    }
    assert left["layers that no slice uses"].layers == ((0, 2),)


def test_relative_positions_of_the_other_model_are_listed_as_left_out(tmp_path: Path) -> None:
    first, second = pair(tmp_path, "T5ForConditionalGeneration")
    parts = slices(first, second)
    parts[1]["sources"][0]["layer_range"] = [0, 4]
    modules = {side: {"slices": parts} for side in ("encoder", "decoder")}
    plan = planned({"merge_method": "passthrough", "modules": modules})
    reasons = {n: item.reason for item in plan.unused for n in item.names if "relative" in n}
    assert set(reasons.values()) == {"only the first or the last layer of the output has it"}


# --- one architecture under two prefixes ----------------------------------------------------------


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_gpt2_is_merged_with_and_without_its_prefix(tmp_path: Path, order: str) -> None:
    first, second = pair(tmp_path, "GPT2LMHeadModel")
    before = tensors(first), tensors(second)
    here = any(name.startswith("transformer.") for name in before[0])
    renamed(second, lambda n: n.removeprefix("transformer.") if here else f"transformer.{n}")
    assert not tensors(first).keys() & tensors(second).keys()
    models = {"a": first, "b": second}
    merged(blend(*(models[name] for name in order)), tmp_path / "out")
    state = loaded(tmp_path / "out", "GPT2LMHeadModel").transformer.state_dict()
    for name, value in before[0].items():
        expected = (value + before[1][name]) / 2
        torch.testing.assert_close(state[name.removeprefix("transformer.")], expected)


def test_bert_is_merged_with_and_without_its_prefix(tmp_path: Path) -> None:
    first = made(tmp_path / "a", 0, "BertForMaskedLM")
    second = made(tmp_path / "b", 1, "BertModel")
    plan = planned(blend(first, second))
    tensor = plan.explain("bert.encoder.layer.1.output.dense.weight")
    assert [item.stored_name for item in tensor.contributions] == [
        "bert.encoder.layer.1.output.dense.weight",
        "encoder.layer.1.output.dense.weight",
    ]
    assert any("'encoder.layer.N'" in note for note in plan.outlines[-1].notes)
    parts = {"merge_method": "passthrough", "slices": slices(first, second)}
    found = merged(parts, tmp_path / "out")
    assert found.keys() >= tensors(first).keys()
    for name, value in tensors(first).items():
        if name.startswith("cls."):  # which the last slice's model does not have
            assert torch.equal(found[name], value)


@pytest.mark.parametrize(
    ("kind", "sizes", "language", "vision"),
    [
        (LLAVA_CLASS, LLAVA, "LlamaForCausalLM", "vision_tower"),
        ("Mistral3ForConditionalGeneration", MISTRAL3, "MistralForCausalLM", "vision_tower"),
        ("Qwen2VLForConditionalGeneration", {}, "Qwen2ForCausalLM", "visual"),
        ("Qwen3VLForConditionalGeneration", {}, "Qwen3ForCausalLM", "vision_tower"),
    ],
)
def test_a_language_model_is_merged_into_a_larger_ones_tower(
    tmp_path: Path, kind: str, sizes: dict[str, Any], language: str, vision: str
) -> None:
    seeing = made(tmp_path / "a", 0, kind, **sizes, tie_word_embeddings=False)
    reading = made(tmp_path / "b", 1, language)
    modules = {
        "text_decoder": {"models": weighted(seeing, reading)},
        vision: {"models": weighted(seeing)},
    }
    found = merged({"merge_method": "linear", "modules": modules}, tmp_path / "out")
    whole, part = tensors(seeing), tensors(reading)

    def same(name: str) -> str:
        return name.replace("model.language_model.", "model.").replace("language_model.", "")

    assert {same(name) for name in whole} >= part.keys()
    for name, value in whole.items():
        other = part.get(same(name))
        torch.testing.assert_close(found[name], value if other is None else (value + other) / 2)
    loaded(tmp_path / "out", kind)


@pytest.mark.parametrize("donor", ["seeing", "reading"])
def test_a_language_model_is_compared_with_the_part_for_words_of_a_larger_one(
    tmp_path: Path, donor: str
) -> None:
    """What one configuration has at the top, the other has in ``text_config``."""
    seeing = made(tmp_path / "seeing", 0, LLAVA_CLASS, **LLAVA)
    reading = made(tmp_path / "reading", 1, "LlamaForCausalLM", rms_norm_eps=1e-3)
    slices = [
        {"sources": [{"model": str(path), "layer_range": [0, 2]}]}
        for path in ((seeing, reading) if donor == "seeing" else (reading, seeing))
    ]
    config: dict[str, Any] = {"merge_method": "passthrough", "slices": slices}
    if donor == "seeing":
        modules = {"text_decoder": {"slices": slices}, "vision_tower": {"models": [str(seeing)]}}
        config = {"merge_method": "passthrough", "modules": modules}
    where = "text_config.rms_norm_eps" if donor == "seeing" else "rms_norm_eps"
    said = mergeloom.plan(config).warnings
    assert any(str(each).startswith(f"'{where}' differs: ") for each in said), said


def test_a_language_model_without_a_module_is_not_merged_into_a_larger_one(tmp_path: Path) -> None:
    seeing = made(tmp_path / "a", 0, LLAVA_CLASS, **LLAVA)
    reading = made(tmp_path / "b", 1, "LlamaForCausalLM")
    with pytest.raises(CheckpointError, match=r"which has 'vision_tower.*'modules'"):
        mergeloom.plan(blend(seeing, reading))


def test_old_and_new_layouts_of_one_family_are_merged(tmp_path: Path) -> None:
    first, second = pair(tmp_path, LLAVA_CLASS, **LLAVA)
    before = tensors(second)
    changes = {
        "language_model.model.": "model.language_model.",
        "language_model.lm_head.": "lm_head.",
        "vision_tower.": "model.vision_tower.vision_model.",
        "multi_modal_projector.": "model.multi_modal_projector.",
    }

    def other(name: str) -> str:
        start = next(part for part in changes if name.startswith(part))
        return changes[start] + name.removeprefix(start)

    renamed(second, other)
    assert not tensors(second).keys() & tensors(first).keys()
    found = merged(blend(first, second), tmp_path / "out")
    for name, value in tensors(first).items():
        torch.testing.assert_close(found[name], (value + before[name]) / 2)
    loaded(tmp_path / "out", LLAVA_CLASS)


# --- modules --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["multi_modal_projector", "connector"])
def test_a_projector_may_have_a_module_of_its_own(tmp_path: Path, name: str) -> None:
    first, second = pair(tmp_path, LLAVA_CLASS, **LLAVA)
    modules = {
        "text_decoder": {"models": [{"model": str(first)}]},
        "vision_tower": {"models": [{"model": str(first)}]},
        name: {"models": [{"model": str(second)}]},
    }
    found = merged({"merge_method": "passthrough", "modules": modules}, tmp_path / "out")
    one, other = tensors(first), tensors(second)
    for key, value in found.items():
        assert torch.equal(value, (other if "projector" in key else one)[key]), key


def test_a_lost_projector_is_named_and_its_remedy_keeps_it(tmp_path: Path) -> None:
    seeing = made(tmp_path / "a", 0, LLAVA_CLASS, **LLAVA)
    reading = made(tmp_path / "b", 1, "LlamaForCausalLM")
    modules: dict[str, Any] = {
        "text_decoder": {"models": [str(reading)]},
        "vision_tower": {"models": [str(seeing)]},
    }
    config = {"merge_method": "passthrough", "base_model": str(seeing), "modules": modules}
    (warning,) = [each for each in mergeloom.plan(config).warnings if "lacks" in each.cause]
    assert "the output lacks 'multi_modal_projector" in warning.cause
    line = re.fullmatch(r"write '(.+)' under 'modules' to take it from there", warning.remedy)
    assert line is not None
    modules |= yaml.safe_load(line[1])
    assert not [each for each in mergeloom.plan(config).warnings if "lacks" in each.cause]


def test_modules_may_go_by_the_paths_of_layers(tmp_path: Path) -> None:
    """As in the peer's reading of a model that it does not know: ``default`` is all the rest."""
    first, second = pair(tmp_path, LLAVA_CLASS, **LLAVA)
    towers = towers_of(first)
    modules = {tower.prefix.rstrip("."): {"models": [{"model": str(first)}]} for tower in towers}
    modules["default"] = {"models": [{"model": str(second)}]}
    found = merged({"merge_method": "passthrough", "modules": modules}, tmp_path / "out")
    one, other = tensors(first), tensors(second)
    for key, value in found.items():
        inside = any(key.startswith(tower.prefix) for tower in towers)
        assert torch.equal(value, (one if inside else other)[key]), key


def test_the_plan_says_where_weights_outside_the_layers_come_from(tmp_path: Path) -> None:
    first, second = pair(tmp_path, LLAVA_CLASS, **LLAVA)
    modules = {
        "language_model": {"slices": slices(first, second)},
        "vision_tower": {"models": [{"model": str(first)}]},
    }
    plan = planned({"merge_method": "passthrough", "modules": modules})
    assert plan.warnings == ()
    around, projector = plan.outlines[-1].notes
    mine, theirs = around.split(f"; from '{second}': ")
    assert mine.startswith(f"language_model: weights outside the layers from '{first}': ")
    assert "embed_tokens, " in mine
    assert "multi_modal_projector.linear_1" in mine
    assert theirs == "lm_head, norm"
    assert "multi_modal_projector' is made like 'language_model'" in projector


@pytest.mark.parametrize("merged_by", ["passthrough", "linear"])
def test_a_tower_without_a_module_is_copied_with_a_warning(tmp_path: Path, merged_by: str) -> None:
    first, second = pair(tmp_path, LLAVA_CLASS, **LLAVA)
    models = [{"model": str(second)}] if merged_by == "passthrough" else weighted(second, first)
    config = {
        "merge_method": merged_by,
        "base_model": str(first),
        "modules": {"language_model": {"models": models}},
    }
    plan = planned(config)
    assert any("says nothing about 'vision_tower'" in warning for warning in plan.warnings)
    found = merged(config, tmp_path / "out")
    one = tensors(first)
    for name in found:
        assert torch.equal(found[name], one[name]) == ("vision_tower" in name), name


def test_an_unknown_module_is_refused_and_the_known_ones_are_named(tmp_path: Path) -> None:
    first = made(tmp_path / "a", 0, LLAVA_CLASS, **LLAVA)
    modules = {"nothing": {"models": [{"model": str(first)}]}}
    with pytest.raises(ConfigError, match=r"no module 'nothing'.*vision_tower"):
        mergeloom.plan({"merge_method": "passthrough", "modules": modules})
    modules = {"language_model": modules["nothing"], "text_decoder": modules["nothing"]}
    with pytest.raises(ConfigError, match="mean the same layers"):
        mergeloom.plan({"merge_method": "passthrough", "modules": modules})
