from __future__ import annotations

from pathlib import Path

import pytest

from mergeloom.engine.base.dtypes import BF16, F32
from mergeloom.engine.base.errors import ConfigError
from mergeloom.planners.output.config_json import rewrite_config
from tests.planners.support import llama_names, plan_text, write_checkpoint


def test_dtype_tying_and_vocabulary_size_are_rewritten() -> None:
    config = {"torch_dtype": "bfloat16", "tie_word_embeddings": True, "vocab_size": 100}
    found = rewrite_config(config, F32, False, (100, 90))
    assert found == {"torch_dtype": "float32", "tie_word_embeddings": False, "vocab_size": 90}
    assert rewrite_config({}, BF16, False, None) == {
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
    }
    nested = {"text_config": {"dtype": "float16", "vocab_size": 100}, "vocab_size": 7}
    assert rewrite_config(nested, BF16, None, (100, 90)) == {
        "text_config": {"dtype": "bfloat16", "vocab_size": 90},
        "vocab_size": 7,
        "torch_dtype": "bfloat16",
    }


def gemma(directory: Path, layers: int) -> None:
    """A model whose even layers have windows, and no list that says so."""
    config = {"model_type": "gemma2", "num_hidden_layers": layers, "tie_word_embeddings": True}
    write_checkpoint(directory, llama_names(layers, head=False), config)


STACK = """
slices:
  - sources: [{model: a, layer_range: [0, 3]}]
  - sources: [{model: b, layer_range: [2, 5]}]
merge_method: passthrough
"""


def test_a_plan_lists_changes_of_layer_settings(tmp_path: Path) -> None:
    gemma(tmp_path / "a", 4)
    gemma(tmp_path / "b", 6)
    plan = plan_text(STACK, tmp_path)
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    assert plan.config["layer_types"] == [*kinds, "sliding_attention", "full_attention", kinds[0]]
    assert plan.config["num_hidden_layers"] == 6
    assert plan.config_changes[0] == "num_hidden_layers: 4 -> 6"
    assert plan.config_changes[1].startswith("layer_types: given layer by layer, as a rule")
    whole = plan_text(
        "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}]", tmp_path
    )
    assert whole.config_changes == ()


def test_a_plan_lists_changes_of_a_stage(tmp_path: Path) -> None:
    for name in ("a", "b"):
        gemma(tmp_path / name, 6)
    whole = "merge_method: linear\nmodels: [{model: deep, parameters: {weight: 1}}]"
    plan = plan_text(f"name: deep\n{STACK}---\n{whole}", tmp_path)
    assert plan.config_changes[0].startswith("stage 'deep': layer_types: given")
    assert len(plan.config["layer_types"]) == plan.config["num_hidden_layers"] == 6


def test_layers_that_predict_further_tokens_keep_their_count(tmp_path: Path) -> None:
    """They come from the last slice, whatever the model that the configuration is from has."""
    predictor = [name.replace("layers.0", "layers.6") for name in llama_names(1)[1:-2]]
    for name, extra in (("a", 0), ("b", 1)):
        config = {"model_type": "glm4_moe", "num_hidden_layers": 6, "first_k_dense_replace": 6}
        config |= {"num_nextn_predict_layers": 1} if extra else {}
        write_checkpoint(tmp_path / name, llama_names(6) + predictor * extra, config)
    plan = plan_text(STACK, tmp_path)
    assert plan.config["num_nextn_predict_layers"] == 1
    assert {w.name for w in plan.graph.writes if ".layers.6." in w.name} == set(predictor)
    swapped = STACK.replace("model: a", "model: c").replace("model: b", "model: a")
    plan = plan_text(swapped.replace("model: c", "model: b"), tmp_path)
    assert plan.config["num_nextn_predict_layers"] == 0
    assert not [w.name for w in plan.graph.writes if ".layers.6." in w.name]


def test_a_stack_that_no_configuration_describes_is_refused(tmp_path: Path) -> None:
    config = {"model_type": "deepseek_v3", "num_hidden_layers": 6, "first_k_dense_replace": 1}
    for name in ("a", "b"):
        write_checkpoint(tmp_path / name, llama_names(6), config)
    text = STACK.replace("[2, 5]", "[0, 5]")
    with pytest.raises(ConfigError, match=r"config\.yml:2: layer 3 .*layer 0 of 'b'.*'dense'"):
        plan_text(text, tmp_path)
