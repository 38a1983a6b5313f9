"""Tied or not, by what is stored and by the class; heads and embeddings by any name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mergeloom.planners.models.token_weights import has_token_head, is_declared_tied
from tests.planners.slices.tiny import (
    LLAVA,
    Tensors,
    blend,
    configure,
    loaded,
    made,
    merged,
    pair,
    planned,
    rewrite,
    tensors,
)

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.mark.parametrize("kind", ["Llama", "Gemma", "Qwen2"])
def test_a_head_trained_by_itself_is_kept_whatever_the_flag_says(tmp_path: Path, kind: str) -> None:
    first, second = pair(tmp_path, f"{kind}ForCausalLM", tie_word_embeddings=True)
    own = torch.randn_like(tensors(first)[EMBEDDING])
    rewrite(first, lambda found: found.update({HEAD: own}))
    found = merged(blend(first, second), tmp_path / "out")
    expected = (own + tensors(second)[EMBEDDING]) / 2
    torch.testing.assert_close(found[HEAD], expected)
    model = loaded(tmp_path / "out", f"{kind}ForCausalLM")
    torch.testing.assert_close(model.lm_head.weight.data, expected)
    assert model.config.tie_word_embeddings is False
    changes = planned(blend(first, second)).config_changes
    assert changes == ("tie_word_embeddings: false, since the head is not the embedding",)


def test_passthrough_keeps_a_stored_head(tmp_path: Path) -> None:
    first, _ = pair(tmp_path, "LlamaForCausalLM", tie_word_embeddings=True)
    own = torch.randn_like(tensors(first)[EMBEDDING])
    rewrite(first, lambda found: found.update({HEAD: own}))
    config = {"merge_method": "passthrough", "models": [str(first)]}
    assert torch.equal(merged(config, tmp_path / "out")[HEAD], own)


def test_a_stored_head_equal_to_the_embedding_is_tied_if_declared(tmp_path: Path) -> None:
    """It is written once more, as it was stored: a class may read it."""
    first, second = pair(tmp_path, "LlamaForCausalLM", tie_word_embeddings=True)
    rewrite(first, lambda found: found.update({HEAD: found[EMBEDDING].clone()}))
    method = {"merge_method": "dare_linear", "base_model": str(first)}
    config = {**blend(first, second), **method, "parameters": {"density": 0.5}}
    found = merged(config, tmp_path / "out")
    assert torch.equal(found[HEAD], found[EMBEDDING])
    assert not torch.equal(found[HEAD], tensors(first)[EMBEDDING])
    assert loaded(tmp_path / "out", "LlamaForCausalLM").config.tie_word_embeddings is True


def test_a_stored_head_equal_to_the_embedding_is_written_unless_is_declared_tied(
    tmp_path: Path,
) -> None:
    """The class may not tie them by itself."""
    first = made(tmp_path / "a", 0, "LlamaForCausalLM", tie_word_embeddings=True)
    rewrite(first, lambda found: found.update({HEAD: found[EMBEDDING].clone()}))
    configure(first, lambda config: config.pop("tie_word_embeddings"))
    second = made(tmp_path / "b", 1, "LlamaForCausalLM")
    method = {"merge_method": "dare_linear", "base_model": str(second)}
    config = {**blend(first, second), **method, "parameters": {"density": 0.5}}
    found = merged(config, tmp_path / "out")
    assert HEAD in found
    assert not torch.equal(found[HEAD], found[EMBEDDING])
    alone = merged({"merge_method": "passthrough", "models": [str(first)]}, tmp_path / "alone")
    assert torch.equal(alone[HEAD], alone[EMBEDDING])
    loaded(tmp_path / "alone", "LlamaForCausalLM")


def test_a_tied_weight_may_be_stored_under_the_heads_name(tmp_path: Path) -> None:
    first, second = pair(tmp_path, "LlamaForCausalLM", tie_word_embeddings=True)
    rewrite(first, lambda found: found.update({HEAD: found.pop(EMBEDDING)}))
    found = merged(blend(first, second), tmp_path / "out")
    expected = (tensors(first)[HEAD] + tensors(second)[EMBEDDING]) / 2
    torch.testing.assert_close(found[EMBEDDING], expected)
    assert HEAD not in found
    alone = merged({"merge_method": "passthrough", "models": [str(first)]}, tmp_path / "alone")
    assert torch.equal(alone[HEAD], tensors(first)[HEAD])


@pytest.mark.parametrize("kind", ["LlamaForSequenceClassification", "LlamaModel"])
@pytest.mark.parametrize("flag", [True, False, None])
def test_a_model_without_a_head_is_not_tied(tmp_path: Path, kind: str, flag: bool | None) -> None:
    first = made(tmp_path / "a", 0, kind, tie_word_embeddings=bool(flag))
    if flag is None:
        configure(first, lambda config: config.pop("tie_word_embeddings", None))
    plan = planned(blend(first, first))
    assert not plan.tied
    assert plan.config == json.loads((first / "config.json").read_text())


def test_a_reward_model_gives_nothing_to_another_ones_head(tmp_path: Path) -> None:
    first = made(tmp_path / "a", 0, "LlamaForCausalLM")
    second = made(tmp_path / "b", 1, "LlamaForSequenceClassification", num_labels=1)
    found = merged(blend(first, second), tmp_path / "out")
    assert torch.equal(found[HEAD], tensors(first)[HEAD])
    plan = planned(blend(second, first))
    assert HEAD not in {write.name for write in plan.graph.writes}
    assert any(HEAD in warning and "left out" in warning for warning in plan.warnings)


def test_the_outermost_tying_declaration_counts(tmp_path: Path) -> None:
    kind = "LlavaForConditionalGeneration"
    first, second = pair(tmp_path, kind, **LLAVA, tie_word_embeddings=False)

    def inner(config: dict[str, Any]) -> None:
        config["tie_word_embeddings"] = False
        config["text_config"]["tie_word_embeddings"] = True

    configure(first, inner)
    (head,) = (name for name in tensors(first) if name.endswith(HEAD))
    found = merged(blend(first, second), tmp_path / "out")
    expected = (tensors(first)[head] + tensors(second)[head]) / 2
    torch.testing.assert_close(found[head], expected)
    model = loaded(tmp_path / "out", kind)
    torch.testing.assert_close(model.get_output_embeddings().weight.data, expected)


def test_tying_and_heads_are_read_from_the_configuration() -> None:
    tied = {"tie_word_embeddings": True}
    assert is_declared_tied({"tie_word_embeddings": False, "text_config": tied}) is False
    assert is_declared_tied({"thinker_config": {"text_config": tied}}) is True
    assert is_declared_tied({"vision_config": tied}) is None
    headless = ["LlamaModel", "Qwen2ForRewardModel", "T5EncoderModel", "BertForTokenClassification"]
    talking = ["GPT2LMHeadModel", "OpenAIGPTDoubleHeadsModel", "T5ForConditionalGeneration", None]
    for name in [*headless, *talking]:
        assert has_token_head({"architectures": name and [name]}) is (name in talking), name
    llm = {"architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True}
    assert has_token_head({"architectures": ["InternVLChatModel"], "llm_config": llm})


@pytest.mark.parametrize(
    ("kind", "embedding", "head"),
    [
        ("RwkvForCausalLM", "rwkv.embeddings.weight", "head.weight"),
        ("MambaForCausalLM", "backbone.embeddings.weight", "lm_head.weight"),
        ("CTRLLMHeadModel", "transformer.w.weight", "lm_head.weight"),
        ("XLNetLMHeadModel", "transformer.word_embedding.weight", "lm_loss.weight"),
        ("OpenAIGPTLMHeadModel", "tokens_embed.weight", "lm_head.weight"),
        ("BertForMaskedLM", "word_embeddings.weight", "cls.predictions.decoder.weight"),
        ("ElectraForMaskedLM", "word_embeddings.weight", "generator_lm_head.weight"),
        ("DistilBertForMaskedLM", "word_embeddings.weight", "vocab_projector.weight"),
        ("BioGptForCausalLM", "biogpt.embed_tokens.weight", "output_projection.weight"),
        ("WhisperForConditionalGeneration", "model.decoder.embed_tokens.weight", "proj_out.weight"),
        ("XLMWithLMHeadModel", "transformer.embeddings.weight", "pred_layer.proj.weight"),
    ],
)  # fmt: skip
def test_heads_and_embeddings_are_found_under_any_name(
    tmp_path: Path, kind: str, embedding: str, head: str
) -> None:
    """A tied model and one with a head of its own: the output has both, each from the right one."""
    sizes: dict[str, Any] = {"embedding_size": 16} if "Electra" in kind else {}
    if "XLM" in kind:
        sizes = {"emb_dim": 16, "n_words": 64, "pad_index": 0}
    tied = made(tmp_path / "a", 0, kind, **sizes, tie_word_embeddings=True)
    rewrite(tied, lambda found: found.pop(head, None))
    untied = made(tmp_path / "b", 1, kind, **sizes, tie_word_embeddings=False)
    (where,) = (name for name in tensors(untied) if name.endswith(embedding))
    found = merged(blend(tied, untied), tmp_path / "out")
    one, other = tensors(tied)[where], tensors(untied)
    torch.testing.assert_close(found[where], (one + other[where]) / 2)
    expected = (one + other[head]) / 2
    torch.testing.assert_close(found[head], expected)
    model = loaded(tmp_path / "out", kind)
    torch.testing.assert_close(model.get_output_embeddings().weight.data, expected)


@pytest.mark.parametrize("all_names", [True, False])
def test_a_weight_under_several_names_is_merged_once(tmp_path: Path, all_names: bool) -> None:
    """T5 as older programs store it, with a model that stores the weight once only."""
    kind = "T5ForConditionalGeneration"
    sides = ("encoder", "decoder")
    first, second = pair(tmp_path, kind)
    base = made(tmp_path / "base", 5, kind)

    def repeat(found: Tensors) -> None:
        for side in sides:
            found[f"{side}.embed_tokens.weight"] = found["shared.weight"].clone()

    for model in (first, base, *([second] if all_names else [])):
        rewrite(model, repeat)
    method = {"merge_method": "dare_linear", "base_model": str(base)}
    config = {**blend(first, second), **method, "parameters": {"density": 0.5}}
    plan = planned(config)
    assert plan.explain("encoder.embed_tokens.weight").same_as == "shared.weight"
    found = merged(config, tmp_path / "out")
    for side in sides:
        assert torch.equal(found[f"{side}.embed_tokens.weight"], found["shared.weight"])
    loaded(tmp_path / "out", kind)


def test_what_luke_ties_is_no_head_over_tokens() -> None:
    assert is_declared_tied({"model_type": "luke", "tie_word_embeddings": True}) is None
