"""Plans of merges: slices, base models, filters, stages, modules, shards."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergeloom.engine.base.errors import ConfigError
from tests.engine.support import source_name
from tests.planners.support import (
    BOTH,
    LLAMA_LAYER,
    STACK,
    llama,
    llamas,
    made_of,
    plan_text,
    side_file,
    two,
    value,
    write_checkpoint,
)


def test_slices_are_stacked(tmp_path: Path) -> None:
    llamas(tmp_path, "ab")
    plan = plan_text(STACK, tmp_path)
    assert plan.layers == 6
    assert plan.config["num_hidden_layers"] == 6
    layers = [
        made_of(plan.explain(f"model.layers.{i}.self_attn.q_proj.weight"))[0] for i in range(6)
    ]
    assert layers == [
        (model, f"model.layers.{i}.self_attn.q_proj.weight")
        for model, i in [("a", 0), ("a", 1), ("a", 2), ("b", 1), ("b", 2), ("b", 3)]
    ]
    assert made_of(plan.explain("model.embed_tokens.weight"))[0][0] == "a"
    assert made_of(plan.explain("model.norm.weight"))[0][0] == "b"
    assert made_of(plan.explain("lm_head.weight"))[0][0] == "b"
    assert len(plan.graph.writes) == 6 * len(LLAMA_LAYER) + 3


def test_everything_left_out_is_named_with_its_reason(tmp_path: Path) -> None:
    llamas(tmp_path, "ab")
    plan = plan_text(STACK, tmp_path)
    left = {(item.model, item.reason): (item.layers, len(item.names)) for item in plan.unused}
    assert left == {
        ("a", "layers that no slice uses"): (((3, 4),), len(LLAMA_LAYER)),
        ("a", "weights after the layers come from the last slice"): ((), 2),
        ("b", "layers that no slice uses"): (((0, 1),), len(LLAMA_LAYER)),
        ("b", "weights before the layers come from the first slice"): ((), 1),
    }
    used = {(source_name(load), load.name) for load in plan.graph.loads}
    tensors = sum(len(model.tensors) for model in plan.models.values())
    assert len(used) + sum(len(item.names) for item in plan.unused) == tensors


def test_sources_of_a_slice_are_merged_with_gradients_over_its_layers(tmp_path: Path) -> None:
    llama(tmp_path / "a", layers=6)
    llama(tmp_path / "b", layers=6, seed=1)
    plan = plan_text(
        """
        slices:
          - sources: [{model: a, layer_range: [0, 5]}, {model: b, layer_range: [1, 6]}]
            parameters: {t: [{filter: norm, value: 0.125}]}
        merge_method: slerp
        base_model: a
        parameters:
          t:
            - {filter: self_attn, value: [0, 1]}
            - {filter: mlp, value: [1, 0.5, 0]}
            - value: [0.3, 0.9]
        """,
        tmp_path,
    )
    assert plan.layers == 5
    layer = plan.explain("model.layers.3.self_attn.q_proj.weight")
    assert made_of(layer) == [
        ("a", "model.layers.3.self_attn.q_proj.weight"),
        ("b", "model.layers.4.self_attn.q_proj.weight"),
    ]
    assert layer.contributions[0].is_base
    assert value(plan, "model.layers.3.self_attn.q_proj.weight", "t") == 0.75
    assert value(plan, "model.layers.1.mlp.up_proj.weight", "t") == 0.75
    assert value(plan, "model.layers.4.mlp.up_proj.weight", "t") == 0.0
    assert value(plan, "model.layers.4.input_layernorm.weight", "t") == 0.125
    assert value(plan, "model.embed_tokens.weight", "t") == 0.3
    assert value(plan, "lm_head.weight", "t") == 0.3


def test_per_model_filters_see_the_input_name_and_global_ones_the_output_name(
    tmp_path: Path,
) -> None:
    llama(tmp_path / "a", layers=4)
    llama(tmp_path / "b", layers=4, seed=1)
    plan = plan_text(
        """
        slices:
          - sources:
              - {model: a, layer_range: [0, 2], parameters: {weight: 1}}
              - model: b
                layer_range: [2, 4]
                parameters: {weight: [{filter: layers.2., value: 5}, {value: 7}]}
        merge_method: linear
        parameters:
          normalize: [{filter: layers.0., value: false}, {value: true}]
        """,
        tmp_path,
    )
    first = plan.explain("model.layers.0.mlp.up_proj.weight")
    second = plan.explain("model.layers.1.mlp.up_proj.weight")
    assert [item.parameters["weight"].value for item in first.contributions] == [1.0, 5.0]
    assert [item.parameters["weight"].value for item in second.contributions] == [1.0, 7.0]
    assert first.settings["normalize"].value is False
    assert second.settings["normalize"].value is True


def test_a_model_may_be_merged_with_itself_at_other_layers(tmp_path: Path) -> None:
    llama(tmp_path / "a", layers=4)
    plan = plan_text(
        """
        slices:
          - sources:
              - {model: a, layer_range: [0, 2], parameters: {weight: 1}}
              - {model: a, layer_range: [2, 4], parameters: {weight: 3}}
        merge_method: linear
        """,
        tmp_path,
    )
    tensor = plan.explain("model.layers.1.mlp.up_proj.weight")
    assert made_of(tensor) == [
        ("a", "model.layers.1.mlp.up_proj.weight"),
        ("a", "model.layers.3.mlp.up_proj.weight"),
    ]


def test_repeated_layers_are_read_once_and_written_twice(tmp_path: Path) -> None:
    llama(tmp_path / "a", layers=4)
    plan = plan_text(
        """
        slices:
          - sources: [{model: a, layer_range: [0, 3]}]
          - sources: [{model: a, layer_range: [1, 4]}]
        merge_method: passthrough
        """,
        tmp_path,
    )
    counts = plan.graph.counts()
    assert counts["write"] == 6 * len(LLAMA_LAYER) + 3
    assert counts["load"] == 4 * len(LLAMA_LAYER) + 3


def test_the_base_is_added_where_it_is_not_among_the_models(tmp_path: Path) -> None:
    llamas(tmp_path, "abc")
    text = "merge_method: ties\nbase_model: c\nmodels:\n"
    text += "".join(f"- {{model: {m}, parameters: {{weight: 1}}}}\n" for m in "ab")
    tensor = plan_text(text, tmp_path).explain("model.norm.weight")
    assert [(item.model.name, item.is_base) for item in tensor.contributions] == [
        ("c", True),
        ("a", False),
        ("b", False),
    ]


@pytest.mark.parametrize("method", ["nuslerp", "multislerp"])
def test_two_models_are_merged_on_a_base_if_there_is_one(tmp_path: Path, method: str) -> None:
    llamas(tmp_path, "abc")
    text = two(1, 2).replace("linear", method)
    for base, inputs in (("", 2), ("base_model: c", 3)):
        plan = plan_text(text + base, tmp_path)
        tensors = list(plan.tensor_plans())
        assert {len(tensor.contributions) for tensor in tensors} == {inputs}


def test_a_linear_merge_takes_no_weights_from_its_base_model(tmp_path: Path) -> None:
    llamas(tmp_path, "abc")
    text = "merge_method: linear\nbase_model: c\nmodels:\n"
    text += "".join(f"- {{model: {m}, parameters: {{weight: 1}}}}\n" for m in "ab")
    plan = plan_text(text, tmp_path)
    assert [m for m, _ in made_of(plan.explain("model.norm.weight"))] == ["a", "b"]
    assert [(item.model, item.reason) for item in plan.unused] == [
        ("c", "the output uses nothing of it")
    ]


def test_stages_feed_each_other(tmp_path: Path) -> None:
    llamas(tmp_path, "abc")
    text = two() + "name: first\n---\nmerge_method: slerp\nbase_model: first\nmodels: [first, c]\n"
    plan = plan_text(text + "parameters: {t: 0.5}", tmp_path)
    counts = plan.graph.counts()
    assert counts["merge"] == 2 * counts["write"]
    assert counts["load"] == 3 * counts["write"]
    assert made_of(plan.explain("model.norm.weight"))[0] == ("first", "model.norm.weight")


def test_modules_are_merged_each_in_their_own_way(tmp_path: Path) -> None:
    block = ("q.weight", "k.weight", "norm.weight")
    names = [
        f"{side}.block.{i}.{part}"
        for side in ("encoder", "decoder")
        for i in range(4)
        for part in block
    ]
    config = {"num_layers": 4, "num_decoder_layers": 4, "vocab_size": 8}
    for seed, name in enumerate("ab"):
        write_checkpoint(tmp_path / name, ["shared.weight", *names], config, seed=seed)
    text = """
    merge_method: passthrough
    modules:
      encoder: {slices: [{sources: [{model: a, layer_range: [0, 2]}]}]}
      decoder:
        slices:
          - sources: [{model: b, layer_range: [0, 4]}]
          - sources: [{model: a, layer_range: [3, 4]}]
    """
    plan = plan_text(text, tmp_path)
    assert {part.name: part.layers for part in plan.outlines[-1].parts} == {
        "encoder": 2,
        "decoder": 5,
    }
    assert (plan.config["num_layers"], plan.config["num_decoder_layers"]) == (2, 5)
    with pytest.raises(ConfigError, match="has 2 towers of layers"):
        plan_text(STACK.replace("[1, 4]", "[0, 1]"), tmp_path)
    part = plan_text("merge_method: passthrough\nmodules: {decoder: {models: [a]}}", tmp_path)
    (warning,) = part.warnings
    assert warning.endswith("'modules' says nothing about 'encoder': it is copied from 'a'")


def test_shards_index_and_side_files(tmp_path: Path) -> None:
    llama(tmp_path / "a", shards=3)
    for name in ("tokenizer.json", "generation_config.json", "chat_template.jinja", "LICENSE"):
        (tmp_path / "a" / name).write_text(name)
    (tmp_path / "a" / "training.log").write_text("no")
    text = "models: [a]\nmerge_method: passthrough # as it is\n"
    plan = plan_text(text, tmp_path, max_shard_bytes=4000)
    names = [file.name for file in plan.graph.files]
    assert len(names) > 2
    assert names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    index = side_file(plan, "model.safetensors.index.json")
    assert set(index["weight_map"].values()) == set(names)
    assert index["metadata"]["total_size"] == sum(write.nbytes for write in plan.graph.writes)
    found = {file.name for file in plan.side_files}
    assert {"tokenizer.json", "generation_config.json", "chat_template.jinja", "LICENSE"} <= found
    assert "training.log" not in found
    assert side_file(plan, "mergeloom_config.yml") == text
    assert text.rstrip() in side_file(plan, "README.md")


def test_the_fingerprint_covers_what_the_output_depends_on(tmp_path: Path) -> None:
    llamas(tmp_path, "ab")
    original = plan_text(two(), tmp_path)
    assert plan_text(two(), tmp_path).fingerprint == original.fingerprint
    assert plan_text(two(2), tmp_path).fingerprint != original.fingerprint
    assert plan_text(two(), tmp_path, max_shard_bytes=4000).fingerprint != original.fingerprint
    llama(tmp_path / "b", seed=2)
    changed = plan_text(two(), tmp_path)
    assert changed.fingerprint != original.fingerprint
    differing = [k for k, v in changed.identity.items() if original.identity[k] != v]
    assert differing == ["'model.safetensors' of model 'b'"]


def test_a_base_beside_the_models_is_merged_by_methods_that_need_none(tmp_path: Path) -> None:
    llamas(tmp_path, "abc")
    plan = plan_text("merge_method: linear\nbase_model: c\n" + BOTH, tmp_path)
    assert [name for name, _ in made_of(plan.explain("model.norm.weight"))] == ["c", "a", "b"]
    assert plan.warnings == ()
    own = "models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 2}}]\n"
    plan = plan_text("merge_method: linear\nbase_model: c\n" + own, tmp_path)
    assert [name for name, _ in made_of(plan.explain("model.norm.weight"))] == ["a", "b"]
    (warning,) = plan.warnings
    assert "base_model: 'c' gives configuration and tokenizer only" in warning


def test_filters_that_match_no_name_are_warned_about(tmp_path: Path) -> None:
    llamas(tmp_path, "ab")
    t = "parameters: {t: [{filter: self_atn, value: 0}, {filter: mlp, value: 1}, {value: 0.5}]}\n"
    plan = plan_text(
        "merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}]\n" + t, tmp_path
    )
    (warning,) = plan.warnings
    assert warning.startswith("config.yml:4: parameters.t[0]: no tensor's name contains 'self_atn'")


def test_a_single_filter_may_be_written_without_a_list(tmp_path: Path) -> None:
    llamas(tmp_path, "ab")
    t = "parameters: {t: {filter: norm, value: 0.25}}\n"
    text = "merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}]\n" + t
    with pytest.raises(ConfigError, match="'t' has no value for tensor"):
        plan_text(text, tmp_path)
    text = text.replace("norm", "'*'")
    assert value(plan_text(text, tmp_path), "model.norm.weight", "t") == 0.25
