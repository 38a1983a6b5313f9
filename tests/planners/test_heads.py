"""Output heads: tied to the embedding or separate, left out, and written once."""

from __future__ import annotations

from pathlib import Path

from tests.planners.support import (
    BOTH,
    LLAMA_LAYER,
    STACK,
    llama,
    llama_names,
    load_tensors,
    made_of,
    plan_text,
    two,
    write_checkpoint,
)

NEOX = ("attention.dense.weight", "mlp.dense.weight", "input_layernorm.weight")


def test_tied_inputs_give_a_tied_output(tmp_path: Path) -> None:
    llama(tmp_path / "a", tied=True)
    llama(tmp_path / "b", tied=True, seed=1)
    plan = plan_text(two(), tmp_path)
    assert "lm_head.weight" not in {write.name for write in plan.graph.writes}
    assert plan.config["tie_word_embeddings"] is True


def test_a_tied_embedding_stands_in_for_a_head(tmp_path: Path) -> None:
    llama(tmp_path / "a", tied=True)
    llama(tmp_path / "b", seed=1)
    plan = plan_text(two(), tmp_path)
    assert plan.config["tie_word_embeddings"] is False
    assert made_of(plan.explain("lm_head.weight")) == [
        ("a", "model.embed_tokens.weight"),
        ("b", "lm_head.weight"),
    ]


def test_what_else_a_class_ties_stays_tied(tmp_path: Path) -> None:
    """CSM's head has other rows than its embedding: the key ties two embeddings of it, and that of
    its codec something else."""
    llama(tmp_path / "a")
    tensors = load_tensors(tmp_path / "a")
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:20].clone()
    config = {"num_hidden_layers": 4, "tie_word_embeddings": True}
    codec = {"codec_config": {"tie_word_embeddings": True}}
    for stored, expected in ((tensors, True), (load_tensors(tmp_path / "a"), False)):
        write_checkpoint(tmp_path / "b", stored, {**config, **codec})
        plan = plan_text("models: [b]\nmerge_method: passthrough", tmp_path)
        assert plan.config["tie_word_embeddings"] is expected
        assert plan.config["codec_config"] == {"tie_word_embeddings": True}


def test_a_stored_head_of_a_tied_model_is_named_as_left_out(tmp_path: Path) -> None:
    config = {"num_hidden_layers": 2, "tie_word_embeddings": True}
    write_checkpoint(tmp_path / "a", llama_names(2), config)
    tensors = load_tensors(tmp_path / "a")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    write_checkpoint(tmp_path / "a", tensors, config)
    plan = plan_text("models: [a]\nmerge_method: passthrough", tmp_path)
    (left,) = plan.unused
    assert left.names == ("lm_head.weight",)
    assert left.reason == "its bytes are the embedding's, 'model.embed_tokens.weight'"


def test_a_head_that_is_called_embedding_is_written_once(tmp_path: Path) -> None:
    names = [f"gpt_neox.layers.{i}.{name}" for i in range(3) for name in NEOX]
    names = ["gpt_neox.embed_in.weight", *names, "embed_out.weight"]
    for seed, name in enumerate("ab"):
        write_checkpoint(tmp_path / name, names, {"num_hidden_layers": 3}, seed=seed)
    plan = plan_text("merge_method: linear\n" + BOTH, tmp_path)
    assert sorted(write.name for write in plan.graph.writes) == sorted(names)
    stacked = plan_text(STACK.replace("4", "3"), tmp_path)
    assert made_of(stacked.explain("embed_out.weight")) == [("b", "embed_out.weight")]


def test_the_head_of_a_vision_language_model_is_written_once(tmp_path: Path) -> None:
    vision = [f"vision_tower.layers.{i}.{name}" for i in range(6) for name in LLAMA_LAYER]
    names = [*vision, *(f"language_model.{name}" for name in llama_names(3))]
    config = {"text_config": {"num_hidden_layers": 3}, "vision_config": {"num_hidden_layers": 6}}
    for seed, name in enumerate("ab"):
        write_checkpoint(tmp_path / name, names, config, seed=seed)
    plan = plan_text("merge_method: linear\n" + BOTH, tmp_path)
    assert sorted(write.name for write in plan.graph.writes) == sorted(names)
    assert plan.layers == 3
