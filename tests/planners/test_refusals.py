"""Configurations that make no sense for their models are refused, with the place and a remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergeloom.engine.base.errors import CheckpointError, ConfigError, LoomError
from tests.planners.support import (
    llama,
    llamas,
    plan_text,
    two,
    write_checkpoint,
)

REFUSED = {
    "beyond": (
        "slices: [{sources: [{model: a, layer_range: [0, 9]}]}]\nmerge_method: passthrough",
        "slices[0].sources[0]: layer_range [0, 9] is outside the model: 'a' has 4 layers",
    ),
    "reversed": (
        "slices: [{sources: [{model: a, layer_range: [3, 1]}]}]\nmerge_method: passthrough",
        "layer_range [3, 1] is reversed: 'a' has 4 layers",
    ),
    "lengths": (
        "slices: [{sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 3]}]}]\n"
        "merge_method: slerp\nbase_model: a\nparameters: {t: 0.5}",
        "'a' gives 2 ([0, 2]), 'b' 3 ([0, 3]): to stack them, give each an entry of its own",
    ),
    "method": (
        "models: [a, b]\nmerge_method: slurp",
        "config.yml:2: merge_method: unknown merge method",
    ),
    "no base": (
        "models: [a, b]\nmerge_method: slerp\nparameters: {t: 0.5}",
        "'slerp' needs a base model: write 'base_model: MODEL' at the top level",
    ),
    "too many": (
        "models: [b, c]\nmerge_method: slerp\nbase_model: a\nparameters: {t: 0.5}",
        "'slerp' merges 1 model beside the base model 'a', here are 2: to merge 'b' with 'c', "
        "write 'base_model: b', which is then one of the two",
    ),
    "too few on a base": (
        "models: [a, {model: b, parameters: {weight: 1}}]\nmerge_method: nuslerp\nbase_model: a",
        "'nuslerp' merges 2 models beside the base model 'a', here is 1",
    ),
    "no weight": (
        "models: [{model: a, parameters: {weight: 1}}, b]\nmerge_method: linear",
        "models[1]: 'linear' needs 'weight' of the model 'b': add 'parameters: {weight: ...}'",
    ),
    "absent": ("models: [nowhere/x]\nmerge_method: passthrough", "--model-dir nowhere/x=PATH"),
    "not an id": (
        "models: [./nowhere]\nmerge_method: passthrough",
        "'./nowhere' is neither a directory nor a hub id",
    ),
    "adapter": ("models: [a+some/lora]\nmerge_method: passthrough", "--model-dir some/lora=PATH"),
    "zero weights": (
        "models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: -1}}]\n"
        "merge_method: linear",
        "tensor 'model.embed_tokens.weight'",
    ),
    "module": ("modules: {text: {models: [a]}}\nmerge_method: passthrough", "no module 'text'"),
    "nameless module": (
        'modules: {"": {models: [a]}, "\\t": {models: [b]}}\nmerge_method: passthrough',
        "a module must have a name",
    ),
    "filter of a list": (
        "models: [a, b]\nmerge_method: slerp\nbase_model: a\n"
        "parameters: {t: [{filter: [mlp], value: 1}]}",
        "config.yml:4: parameters.t[0].filter: 'filter' must be part of a tensor name",
    ),
    "token that is a number": (
        "models: [a]\nmerge_method: passthrough\ntokenizer: {source: union, tokens: "
        "{x: {source: {kind: model_token, model: a, token: 7}}}}",
        "tokenizer.tokens.x.source.token: 'token' must be text, not 7: put it into quotes",
    ),
    "quantised stage": (
        "name: s\nmodels: [a]\nmerge_method: passthrough\nquantize: fp8\n---\n"
        "models: [s]\nmerge_method: passthrough",
        "config.yml:4: quantize: only the last document's output is written: remove it here",
    ),
    "base of other layers": (
        "slices: [{sources: [{model: b, layer_range: [0, 2], parameters: {weight: 1}}, "
        "{model: c, layer_range: [1, 3], parameters: {weight: 1}}]}]\n"
        "merge_method: task_arithmetic\nbase_model: a",
        "slices[0]: the base model 'a' is not among the sources, which take different layers: "
        "add it with the layer_range that is its part",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_senseless_configurations_are_refused_by_name(tmp_path: Path, case: str) -> None:
    llamas(tmp_path, "abc")
    text, expected = REFUSED[case]
    with pytest.raises(LoomError) as caught:
        plan_text(text, tmp_path)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_different_vocabularies_name_both_ways_out(tmp_path: Path) -> None:
    llama(tmp_path / "a")
    llama(tmp_path / "b", seed=1, vocabulary=40)
    text = "models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]\n"
    text += "merge_method: linear"
    with pytest.raises(CheckpointError) as caught:
        plan_text(text, tmp_path)
    message = str(caught.value)
    assert "'model.embed_tokens.weight' (32x8 in 'a', 40x8 in 'b')" in message
    assert "'lm_head.weight'" in message
    assert "'tokenizer: {source: union}'" in message
    assert "--allow-truncated-embeddings" in message
    plan = plan_text(text, tmp_path, truncate_embeddings=True)
    shapes = {write.name: write.shape for write in plan.graph.writes}
    assert shapes["model.embed_tokens.weight"] == shapes["lm_head.weight"] == (32, 8)
    assert plan.config["vocab_size"] == 32


def test_other_shape_differences_are_listed_together(tmp_path: Path) -> None:
    llama(tmp_path / "a")
    llama(tmp_path / "b", seed=1, width=12)
    text = "models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]\n"
    with pytest.raises(CheckpointError, match=r"shapes differ in 39 tensors: .*; and 35 more"):
        plan_text(text + "merge_method: linear", tmp_path)


def test_models_of_another_architecture_are_refused(tmp_path: Path) -> None:
    llama(tmp_path / "a")
    names = [f"h.{i}.{part}.weight" for i in range(4) for part in ("attn", "mlp", "norm")]
    write_checkpoint(tmp_path / "b", ["wte.weight", *names], {"n_layer": 4})
    with pytest.raises(CheckpointError, match=r"'b' .*has the layers 'h\.N'.*'model\.layers\.N'"):
        plan_text(two(), tmp_path)


def test_a_stage_without_a_name_cannot_be_used(tmp_path: Path) -> None:
    llama(tmp_path / "a")
    llama(tmp_path / "b")
    with pytest.raises(ConfigError, match="two stages have no 'name'"):
        plan_text(two() + "---\n" + two(), tmp_path)


def test_errors_of_models_say_where_they_are_named(tmp_path: Path) -> None:
    llama(tmp_path / "a")
    text = "merge_method: linear\nmodels:\n  - {model: a}\n  - {model: ./nowhere}\n"
    text += "parameters: {weight: 1}\n"
    with pytest.raises(CheckpointError, match=r"^config.yml:4: models\[1\]: './nowhere' is nei"):
        plan_text(text, tmp_path)
    text = "merge_method: slerp\nmodels: [{model: a, parameters: {t: 0.5}}]\nbase_model: b/c\n"
    with pytest.raises(CheckpointError, match=r"\nconfig.yml:3: base_model: 'b/c'"):
        plan_text(text, tmp_path)


def test_a_global_setting_under_a_model_is_an_error_that_says_where_it_belongs(
    tmp_path: Path,
) -> None:
    llamas(tmp_path, "ab")
    text = (
        "merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b, parameters: {t: 1}}]"
    )
    with pytest.raises(
        ConfigError, match=r"models\[1\].parameters.t: 't' of 'slerp' applies to all"
    ):
        plan_text(text, tmp_path)
