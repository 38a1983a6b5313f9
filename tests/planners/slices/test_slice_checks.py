"""What is said about slices before their tensors are looked at."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
import yaml

import mergeloom
from mergeloom.engine.base.errors import ConfigError
from tests.planners.slices import tiny
from tests.planners.support import llamas, load_tensors, made_of, plan_text

peft = pytest.importorskip("peft", reason="it puts adapters inside a model")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    llamas(tmp_path, "abc")
    return tmp_path


def test_all_parameters_that_are_missing_are_named_at_once(models: Path) -> None:
    text = "merge_method: nearswap\nbase_model: a\nslices:\n"
    text += "- sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]\n"
    text += "- sources: [{model: a, layer_range: [2, 9]}]\n"
    with pytest.raises(ConfigError) as caught:
        plan_text(text, models)
    first, second = map(str, caught.value.findings)
    assert first.startswith("config.yml:4: slices[0]: 'nearswap' needs 't': add it under the globa")
    assert "layer_range [2, 9] is outside the model: 'a' has 4 layers" in second
    text = "merge_method: ties\nbase_model: a\nmodels: [b, c, a]"
    with pytest.raises(ConfigError) as caught:
        plan_text(text, models)
    assert [str(finding) for finding in caught.value.findings] == [
        f"config.yml:3: models[{i}]: 'ties' needs 'weight' of the model '{name}': add 'parameters: "
        "{weight: ...}'"
        for i, name in enumerate("bc")
    ]


def test_a_setting_under_a_model_is_told_where_it_belongs(models: Path) -> None:
    text = "merge_method: slerp\nbase_model: a\nmodels: [a, {model: b, parameters: {t: 0.5}}]"
    with pytest.raises(ConfigError) as caught:
        plan_text(text, models)
    assert [str(finding).partition(": write")[0] for finding in caught.value.findings] == [
        "config.yml:3: models[1].parameters.t: 't' of 'slerp' applies to all models together and "
        "has no effect under one of them",
        "config.yml:3: models: 'slerp' needs 't': add it under the global 'parameters' (0 is the "
        "base, 1 the other model)",
    ]


def test_parameters_of_the_base_have_no_effect(models: Path) -> None:
    text = "merge_method: ties\nbase_model: a\nparameters: {normalize: false}\nmodels:\n"
    text += "- {model: a, parameters: {weight: 1, density: 0.5}}\n"
    text += "- {model: b, parameters: {weight: 1}}\n"
    found = plan_text(text, models).warnings
    assert [w.partition(": the differences")[0] for w in found] == [
        f"config.yml:5: models[0].parameters.{name}: '{name}' has no effect on the base model 'a'"
        for name in ("weight", "density")
    ]


@pytest.mark.parametrize(
    ("method", "settings", "weight", "warned"),
    [
        ("task_arithmetic", "{normalize: true}", "-0.5", "-0.5 counts as 1, and the sign is lost"),
        ("ties", "{}", "0.5", "0.5 counts as 1: write 'normalize: false'"),
        ("ties", "{}", "1", None),
        ("ties", "{normalize: false}", "0.5", None),
        ("task_arithmetic", "{}", "-0.5", None),
        ("dare_ties", "{normalize: 1}", "[0, 0.5]", "0.5 counts as 1"),
    ],
)
def test_a_single_weight_that_is_normalised_is_warned_about(
    models: Path, method: str, settings: str, weight: str, warned: str | None
) -> None:
    text = f"merge_method: {method}\nbase_model: a\nparameters: {settings}\n"
    text += f"models: [{{model: b, parameters: {{weight: {weight}}}}}]"
    found = plan_text(text, models).warnings
    assert len(found) == (warned is not None)
    assert warned is None or warned in found[0]


def stack(*ranges: tuple[str, int, int]) -> str:
    lines = [f"- sources: [{{model: {m}, layer_range: [{i}, {j}]}}]\n" for m, i, j in ranges]
    return "merge_method: passthrough\nslices:\n" + "".join(lines)


def test_an_empty_slice_gives_the_weights_around_the_layers(models: Path) -> None:
    plan = plan_text(stack(("b", 0, 0), ("a", 0, 4), ("c", 2, 2), ("a", 0, 1), ("c", 4, 4)), models)
    assert plan.layers == plan.config["num_hidden_layers"] == 5
    of = {
        name: plan.explain(name).contributions[0].model.name
        for name in (
            "model.embed_tokens.weight",
            "model.layers.4.mlp.up_proj.weight",
            "model.norm.weight",
            "lm_head.weight",
        )
    }
    assert list(of.values()) == ["b", "a", "c", "c"]
    assert [warning.partition(": ")[2] for warning in plan.warnings] == [
        "slices[0]: a slice of no layers: only the weights before the layers (embeddings) "
        "are taken from its models",
        "slices[2]: a slice of no layers: it has no effect",
        "slices[4]: a slice of no layers: only the weights after the layers (final norm, "
        "head) are taken from its models",
    ]
    with pytest.raises(ConfigError, match="no slice takes any layer"):
        plan_text(stack(("a", 2, 2), ("b", 4, 4)), models)


def test_shards_of_a_few_bytes_are_warned_about(models: Path) -> None:
    text = "merge_method: passthrough\nmodels: [a]"
    (warning,) = plan_text(text, models, max_shard_bytes=5).warnings
    assert warning == "the largest shard has 5 bytes, so there are 39 files: did you mean 5GB?"
    assert plan_text(text, models, max_shard_bytes=1_000_000).warnings == ()


def test_a_misspelt_parameter_is_named_with_the_missing_one(models: Path) -> None:
    text = "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 1}}\n"
    with pytest.raises(ConfigError) as caught:
        plan_text(text + "- {model: b, parameters: {weigth: 1}}", models)
    assert str(caught.value) == (
        "config.yml:4: models[1].parameters.weigth: 'linear' has no parameter 'weigth', it is "
        "ignored: did you mean 'weight'?\n"
        "config.yml:4: models[1]: 'linear' needs 'weight' of the model 'b': add 'parameters: "
        "{weight: ...}'"
    )
    assert caught.value.code == "missing-parameter"


def test_what_only_the_last_layer_has_is_said(tmp_path: Path) -> None:
    a, b = tiny.pair(tmp_path, "GPTNeoXJapaneseForCausalLM")
    turned = {**tiny.stack(a, b), "slices": tiny.stack(a, b)["slices"][::-1]}
    (said,) = [w for w in tiny.planned(turned).warnings if "only the last" in w]
    assert f"of a model like '{b}' has 'attention.dense_bias': layer 3 of it has it no long" in said
    for right in (tiny.stack(a, b), tiny.blend(a, b)):
        assert not [w for w in tiny.planned(right).warnings if "only the last" in w]


@pytest.mark.parametrize(
    ("kind", "shared"),
    [
        ("T5EncoderModel", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
        ("MPNetModel", "encoder.relative_attention_bias.weight"),
    ],
)
def test_unused_relative_positions_are_warned_about(tmp_path: Path, kind: str, shared: str) -> None:
    a, b = tiny.pair(tmp_path, kind)
    (said,) = [w for w in tiny.planned(tiny.stack(a, b)).warnings if "attend differently" in w]
    assert f"'{shared}' holds for all layers and is made from '{a}': layers of '{b}'" in said
    assert not [w for w in tiny.planned(tiny.stack(b, b)).warnings if "attend differently" in w]
    assert not [w for w in tiny.planned(tiny.blend(a, b)).warnings if "attend differently" in w]


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_linear", "sce", "ram"])
def test_a_base_alone_in_a_slice_is_copied(models: Path, method: str) -> None:
    text = f"merge_method: {method}\nbase_model: a\nparameters: {{weight: 1}}\nslices:\n"
    text += "- sources: [{model: a, layer_range: [0, 3]}, {model: b, layer_range: [0, 3]}]\n"
    text += "- sources: [{model: a, layer_range: [3, 4]}]"
    plan = plan_text(text, models)
    last = plan.explain("model.layers.3.mlp.up_proj.weight")
    assert (made_of(last), last.copied_because) == (
        [("a", "model.layers.3.mlp.up_proj.weight")],
        "its slice has one model",
    )
    assert plan.explain("model.layers.2.mlp.up_proj.weight").copied_because is None
    assert (
        f"config.yml:6: slices[1]: '{method}' merges other models into the base model 'a', and "
        "here are none: it is copied"
    ) in plan.warnings


@pytest.mark.parametrize("method", ["karcher", "multislerp"])
def test_a_mean_of_one_model_is_that_model(models: Path, method: str) -> None:
    plan = plan_text(f"merge_method: {method}\nmodels: [a]", models)
    assert plan.explain("lm_head.weight").copied_because == "its slice has one model"


@pytest.mark.parametrize(
    ("parameters", "factor"),
    [("{weight: 0.5}", 0.5), ("{weight: 1}", 1.0), ("{}", 1.0)],
)
def test_a_weight_of_the_only_model_counts_if_it_is_not_divided_by_itself(
    models: Path, parameters: str, factor: float
) -> None:
    text = "merge_method: linear\nparameters: {normalize: false}\ndtype: float32\n"
    text += f"models: [{{model: {models / 'a'}, parameters: {parameters}}}]"
    mergeloom.merge(yaml.safe_load(text), models / "out")
    name = "model.layers.1.mlp.up_proj.weight"
    made, own = (load_tensors(models / folder)[name].float() for folder in ("out", "a"))
    assert torch.equal(made, factor * own)


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("[{value: 1}, {filter: mlp, value: 0}]", 1),
        ("[{filter: mlp, value: 1}, {filter: mlp.up, value: 0}, {value: 1}]", 1),
        ("[{filter: mlp.up, value: 1}, {filter: mlp, value: 0}, {value: 1}, {value: 0.5}]", 3),
        ("[{filter: mlp.up, value: 1}, {filter: mlp, value: 0}, {value: 1}]", None),
    ],
)
def test_a_value_after_one_for_all_its_tensors_is_said(
    models: Path, written: str, number: int | None
) -> None:
    text = f"merge_method: slerp\nmodels: [a, b]\nbase_model: a\nparameters: {{t: {written}}}"
    found = plan_text(text, models).warnings
    expected = (
        f"config.yml:4: parameters.t[{number}]: this value of 't' is never used: an earlier one "
        "takes all its tensors: put it before that one, or remove it"
    )
    assert list(found) == ([] if number is None else [expected])


def test_adapters_inside_merged_models_are_warned_about(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        path = tiny.made(tmp_path / name, seed, "LlamaForCausalLM")
        model = transformers.AutoModelForCausalLM.from_pretrained(path)
        config = peft.LoraConfig(r=2, target_modules=["q_proj"])
        peft.inject_adapter_in_model(config, model).save_pretrained(path)
    text = "merge_method: {method}\nmodels: [{{model: a}}, {{model: b}}]\nparameters: {{weight: 1}}"
    (warning,) = plan_text(text.format(method="linear"), tmp_path).warnings
    assert warning.startswith(
        "config.yml:2: models: 'model.layers.0.self_attn.q_proj.lora_A.default.weight' is "
        "a factor of an adapter inside 'a' and 'b': factors that differ are merged one by one"
    )
    assert not plan_text("merge_method: passthrough\nmodels: [a]", tmp_path).warnings
