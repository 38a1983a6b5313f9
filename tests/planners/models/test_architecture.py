from __future__ import annotations

import random
from typing import Any

import pytest

from mergeloom.planners.models import architecture
from mergeloom.planners.models.architecture import Architecture
from mergeloom.planners.models.roles import output_head, token_embedding
from tests.planners.support import llama_names


def names(prefix: str, layers: int, *suffixes: str) -> list[str]:
    return [f"{prefix}{i}.{suffix}" for i in range(layers) for suffix in suffixes]


def infer(names: list[str], config: dict[str, Any]) -> Architecture:
    """The architecture of matrices with these names."""
    return architecture.infer_architecture(dict.fromkeys(names, (32, 8)), config)


BLOCK = ("attn.q.weight", "attn.k.weight", "mlp.weight", "norm.weight")


def test_a_decoder_is_one_tower_of_layers() -> None:
    found = names("model.layers.", 12, *BLOCK)
    around = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    shuffled = [*found, *around]
    random.Random(3).shuffle(shuffled)
    (tower,) = infer(shuffled, {"num_hidden_layers": 12}).towers
    assert (tower.name, tower.prefix, tower.layers) == ("default", "model.layers.", 12)
    assert tower.before == ("model.embed_tokens.weight",)
    assert set(tower.after) == {"model.norm.weight", "lm_head.weight"}
    assert set(tower.names()) == set(shuffled)
    assert len(list(tower.names())) == len(shuffled)


def test_numbered_weights_beside_the_layers_belong_to_these() -> None:
    found = infer(
        [
            *names("encoder.blocks.", 6, *BLOCK),
            *names("encoder.norms.", 6, "weight"),
            *names("encoder.heads.", 3, "weight"),
            *names("prompts.", 6, "weight"),
        ],
        {},
    )
    assert list(architecture.beside_layers(found.main)) == ["encoder.norms."]
    queries = [
        f"llm.attn_res.{kind}.{i}" for kind in ("attn", "mlp") for i in range(kind == "attn", 6)
    ]
    (tower,) = infer([*names("llm.layers.", 6, *BLOCK), *queries], {"num_hidden_layers": 6}).towers
    assert set(architecture.beside_layers(tower)) == {"llm.attn_res.mlp."}
    between = names("layers.", 4, *BLOCK) + names("conv_layers.", 3, "norm.weight")
    assert list(architecture.beside_layers(infer(between, {}).main)) == ["conv_layers."]
    assert not list(architecture.beside_layers(infer(names("layers.", 4, *BLOCK), {}).main))


def test_names_of_gpt2_and_bert_are_known() -> None:
    gpt2 = [*names("h.", 3, *BLOCK), "wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias"]
    (tower,) = infer(gpt2, {"n_layer": 3}).towers
    assert (tower.prefix, tower.layers) == ("h.", 3)
    assert tower.before == ("wte.weight", "wpe.weight")
    assert tower.after == ("ln_f.weight", "ln_f.bias")
    bert = [
        "embeddings.word_embeddings.weight",
        "embeddings.LayerNorm.weight",
        *names("encoder.layer.", 6, *BLOCK),
        "pooler.dense.weight",
    ]
    (tower,) = infer(bert, {"num_hidden_layers": 6}).towers
    assert tower.before == ("embeddings.word_embeddings.weight", "embeddings.LayerNorm.weight")
    assert tower.after == ("pooler.dense.weight",)


def test_experts_belong_to_the_name_within_a_layer() -> None:
    experts = [f"block_sparse_moe.experts.{e}.w{k}.weight" for e in range(8) for k in (1, 2, 3)]
    found = [*names("model.layers.", 4, *BLOCK, *experts), "model.embed_tokens.weight"]
    (tower,) = infer(found, {"num_hidden_layers": 4}).towers
    assert tower.layers == 4
    assert all(len(layer) == len(BLOCK) + 24 for layer in tower.suffixes)
    assert tower.layer_name(2, tower.suffixes[2][-1]) in found


def test_an_encoder_decoder_has_two_towers() -> None:
    found = [
        "shared.weight",
        *names("encoder.block.", 3, "layer.0.q.weight", "layer.1.wi.weight", "layer.1.wo.weight"),
        "encoder.final_layer_norm.weight",
        *names("decoder.block.", 4, "layer.0.q.weight", "layer.1.q.weight", "layer.2.wo.weight"),
        "decoder.final_layer_norm.weight",
        "lm_head.weight",
    ]
    architecture = infer(found, {"num_layers": 3, "num_decoder_layers": 4})
    assert [tower.name for tower in architecture.towers] == ["decoder", "encoder"]
    decoder, encoder = architecture.towers
    assert encoder.after == ("encoder.final_layer_norm.weight",)
    assert decoder.before == ("shared.weight",)
    assert decoder.after == ("decoder.final_layer_norm.weight", "lm_head.weight")
    assert {name for tower in architecture.towers for name in tower.names()} == set(found)


@pytest.mark.parametrize(
    "head", ["lm_head.weight", "logits_dense.weight", "lm_head.out_proj.weight"]
)
def test_a_head_is_the_decoders_where_the_encoder_has_the_embedding(head: str) -> None:
    """Byte Latent Transformers, Dia and T5Gemma 2: the encoder is the tower of the tokens."""
    found = ["model.encoder.embed_tokens.weight", head]
    found += names("model.encoder.layers.", 3, *BLOCK) + names("model.decoder.layers.", 4, *BLOCK)
    encoder, decoder = infer(found, {"encoder_layers": 3, "decoder_layers": 4}).towers
    assert (encoder.name, encoder.after) == ("encoder", ())
    assert (decoder.name, decoder.after) == ("decoder", (head,))


def test_a_projection_of_images_that_is_compared_with_text_is_the_last_of_its_tower() -> None:
    text, images = names("text_model.layers.", 3, *BLOCK), names("vision_model.layers.", 4, *BLOCK)
    projections = ["text_projection.weight", "visual_projection.weight"]
    both = infer([*text, *images, "text_model.token_embedding.weight", *projections], {})
    assert [tower.after for tower in both.towers] == [(name,) for name in projections]
    (alone,) = infer([*images, "visual_projection.weight"], {}).towers
    assert alone.after == ("visual_projection.weight",)


def test_projections_of_images_for_a_language_model_act_before_its_layers() -> None:
    """GIT's has CLIP's name; those of Granite Vision 4 have a whole transformer inside."""
    between = ["git.visual_projection.0.weight", "git.projectors.0.qformer.output.dense.weight"]
    found = names("git.image_encoder.layers.", 3, *BLOCK) + names("git.encoder.layer.", 4, *BLOCK)
    text, images = infer([*found, "git.embeddings.word_embeddings.weight", *between], {}).towers
    assert {*between} <= {*text.before, *images.before}


def test_a_vision_language_model_has_a_tower_for_each() -> None:
    found = [
        "vision_tower.vision_model.embeddings.patch_embedding.weight",
        *names("vision_tower.vision_model.encoder.layers.", 3, *BLOCK),
        "multi_modal_projector.linear_1.weight",
        *[f"language_model.{name}" for name in llama_names(4)],
    ]
    config = {"text_config": {"num_hidden_layers": 4}, "vision_config": {"num_hidden_layers": 3}}
    architecture = infer(found, config)
    language, vision = architecture.towers
    assert (language.name, language.layers) == ("language_model", 4)
    assert (vision.name, vision.layers) == ("vision_tower", 3)
    assert "multi_modal_projector.linear_1.weight" in language.before
    assert vision.before == ("vision_tower.vision_model.embeddings.patch_embedding.weight",)


def test_numbered_parts_of_a_small_network_are_no_layers() -> None:
    found = [*llama_names(4), "projector.0.weight", "projector.1.weight", "score.0.bias"]
    (tower,) = infer(found, {"num_hidden_layers": 4}).towers
    assert tower.layers == 4
    assert {"projector.0.weight", "projector.1.weight"} <= set(tower.before)
    assert "score.0.bias" in tower.after


def test_parts_of_a_tower_that_happen_to_be_as_many_as_layers_are_no_stack() -> None:
    """Qwen 3-Omni's mergers and the heads of its code predictor."""
    found = names("visual.blocks.", 4, *BLOCK)
    found += names("visual.merger_list.", 3, "ln_q.weight", "mlp.0.weight", "mlp.2.weight")
    found += names("model.layers.", 3, *BLOCK) + names("lm_head.", 3, "weight")
    found += ["model.embed_tokens.weight"]
    config = {"num_hidden_layers": 3, "vision_config": {"depth": 4}}
    assert [tower.prefix for tower in infer(found, config).towers] == [
        "model.layers.",
        "visual.blocks.",
    ]


def test_a_checkpoint_without_layers_has_no_tower() -> None:
    (tower,) = infer(["embed.weight", "head.weight"], {}).towers
    assert tower.layers == 0
    assert list(tower.names()) == ["embed.weight", "head.weight"]


def test_one_layer_is_a_stack_where_the_configuration_says_so() -> None:
    (tower,) = infer(llama_names(1), {"num_hidden_layers": 1}).towers
    assert tower.layers == 1


@pytest.mark.parametrize("head", ["lm_head.weight", "embed_out.weight", "output.weight"])
def test_heads_and_embeddings_are_found_by_name_and_shape(head: str) -> None:
    embedding = "model.embed_tokens.weight"
    shapes = {"a.weight": (8, 8), embedding: (32, 8), head: (32, 8), "score.weight": (1, 8)}
    assert output_head(shapes, embedding) == head
    assert token_embedding(shapes, {}) == embedding
    del shapes[head]
    assert output_head(shapes, embedding) is None
    assert token_embedding({"embeddings.position_embeddings.weight": (32, 8)}, {}) is None


def test_the_embedding_is_the_one_with_a_row_for_each_token() -> None:
    shapes = {"talker.embed_tokens.weight": (90, 8), "thinker.embed_tokens.weight": (32, 8)}
    assert token_embedding(shapes, {"vocab_size": 90}) == "talker.embed_tokens.weight"
    assert token_embedding(shapes, {"t": {"vocab_size": 32}}) == "thinker.embed_tokens.weight"


def test_an_embedding_with_adapters_for_tasks() -> None:
    """Jina v3's, as its own code stores it."""
    root = "roberta.embeddings"
    end = "parametrizations.weight"
    shapes = {
        f"{root}.word_embeddings.{end}.original": (32, 8),
        f"{root}.word_embeddings.{end}.0.lora_A": (4, 32),
        f"{root}.token_type_embeddings.{end}.original": (1, 8),
    }
    found = token_embedding(shapes, {"vocab_size": 32})
    assert found == f"{root}.word_embeddings.{end}.original"


def test_a_head_of_an_unknown_name_has_the_embeddings_shape() -> None:
    shapes = {"embed.weight": (32, 8), "talk.weight": (32, 8), "pooler.dense.weight": (32, 8)}
    assert output_head(shapes, "embed.weight") == "talk.weight"


def test_an_embedding_may_be_a_bare_parameter() -> None:
    """Molmo's, whose head is called like a part of its layers."""
    model = "model.transformer"
    embedding, head = f"{model}.wte.embedding", f"{model}.ff_out.weight"
    shapes = dict.fromkeys(names(f"{model}.blocks.", 4, "att_proj", "ff_out", "ff_norm"), (8, 8))
    around = {embedding: (32, 8), f"{model}.wte.new_embedding": (4, 8), head: (32, 8)}
    found = infer({**shapes, **around, f"{model}.ln_f.weight": (8,)}, {"num_hidden_layers": 4})
    assert (found.embedding, found.head) == (embedding, head)


MTP = ["mtp.layers.0.fc", "mtp.fc", "model.mtp.fc", "model.mtp_block.0.fc"]
MEDUSA = [f"medusa_head.{i}.{part}" for i in range(3) for part in ("0.linear", "0.norm", "1")]
ARMO = ["regression_layer", "gating.layers.0"]
COLBERT = ["linear", "custom_text_proj"]
CLIP = ["text_projection"]
NEOMME = ["unembedding_projection"]


@pytest.mark.parametrize(
    "parts",
    [MTP, MEDUSA, ARMO, COLBERT, CLIP, NEOMME],
    ids=["mtp", "medusa", "rm", "col", "clip", "neomme"],
)
def test_parts_that_act_after_the_layers_are_recognised(parts: list[str]) -> None:
    """What predicts further tokens, rewards, or a vector for each token."""
    found = [f"{part}.weight" for part in parts]
    (tower,) = infer([*llama_names(4), *found], {"num_hidden_layers": 4}).towers
    assert set(found) <= set(tower.after)


def test_the_embedding_of_words_is_told_from_that_of_sounds() -> None:
    """CSM's, whose head predicts sounds."""
    shapes = {"embed_text_tokens.weight": (32, 8), "depth_decoder.embed_tokens.weight": (48, 8)}
    sizes = {"vocab_size": 16, "text_vocab_size": 32}
    assert token_embedding(shapes, sizes) == "embed_text_tokens.weight"
    head = {"lm_head.weight": (16, 8)}
    assert output_head({**shapes, **head}, "embed_text_tokens.weight") == "lm_head.weight"


def test_a_head_that_is_called_embedding_stands_after_the_layers() -> None:
    around = ["gpt_neox.embed_in.weight", "gpt_neox.final_layer_norm.weight", "embed_out.weight"]
    found = [*names("gpt_neox.layers.", 4, *BLOCK), *around]
    (tower,) = infer(found, {"num_hidden_layers": 4}).towers
    assert tower.before == ("gpt_neox.embed_in.weight",)
    assert "embed_out.weight" in tower.after


@pytest.mark.parametrize(
    ("vision", "embedding", "language"),
    [
        ("visual.blocks.", "model.embed_tokens.weight", "model.layers."),
        (
            "model.visual.blocks.",
            "model.language_model.embed_tokens.weight",
            "model.language_model.layers.",
        ),
    ],
)
def test_the_tower_of_the_tokens_is_the_main_one(
    vision: str, embedding: str, language: str
) -> None:
    """Even where the other one has more tensors: the head follows it."""
    found = [
        *names(vision, 6, *BLOCK, "more.weight", "still_more.weight"),
        "visual.patch_embed.proj.weight",
        *names(language, 3, *BLOCK),
        embedding,
        "lm_head.weight",
    ]
    main, other = infer(found, {"num_hidden_layers": 3, "vision_config": {"depth": 6}}).towers
    assert (main.prefix, other.prefix) == (language, vision)
    assert "lm_head.weight" in main.after
    assert embedding in main.before


def test_towers_inside_the_embedding_are_not_the_main_one() -> None:
    """Phi-4 Multimodal's, of which that for sounds has most tensors."""
    extend = "model.embed_tokens_extend"
    found = [
        *names(f"{extend}.audio_embed.encoder.encoders.", 6, *BLOCK, "a.weight", "b.weight"),
        *names(f"{extend}.image_embed.img_processor.encoder.layers.", 6, *BLOCK, "a.weight"),
        *names("model.layers.", 3, *BLOCK),
        *("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"),
    ]
    main, *_ = infer(found, {"num_hidden_layers": 3}).towers
    assert main.prefix == "model.layers."
    assert {"model.norm.weight", "lm_head.weight"} <= set(main.after)


def test_a_projection_of_embeddings_may_act_after_the_layers() -> None:
    name = "embedding_projection.weight"
    for kind, after in (("neomme", False), ("embedding_gemma2_text", True)):
        config = {"num_hidden_layers": 4, "model_type": kind}
        (tower,) = infer([*names("layers.", 4, *BLOCK), name], config).towers
        assert (name in tower.after) is after


def test_a_final_norm_with_the_name_of_one_before_the_layers() -> None:
    norm = "model.decoder.layernorm_embedding.weight"
    found = [*names("model.decoder.layers.", 4, *BLOCK), norm]
    for kind, after in (("bart", False), ("bigbird_pegasus", True)):
        (tower,) = infer(found, {"num_hidden_layers": 4, "model_type": kind}).towers
        assert (norm in tower.after) is after


def test_equal_names_are_analysed_once() -> None:
    found = dict.fromkeys([*names("layers.", 3, *BLOCK), "embed_tokens.weight"], (32, 8))
    config = {"num_hidden_layers": 3, "text_config": {"vocab_size": 32}, "_name_or_path": "a"}
    inferred = architecture.ArchitectureCache()
    first = inferred(found, config)
    assert first == architecture.infer_architecture(found, config)
    assert inferred(dict(found), config | {"_name_or_path": "b", "rope_theta": 1.0}) is first
    others: list[tuple[dict[str, tuple[int, ...]], dict[str, Any]]] = [
        (dict(reversed(found.items())), config),
        (found | {"embed_tokens.weight": (33, 8)}, config),
        (found, config | {"num_hidden_layers": 2}),
        (found, config | {"text_config": {"vocab_size": True}}),
        (found, config | {"num_nextn_predict_layers": 1, "num_hidden_layers": 2}),
    ]
    for shapes, settings in others:
        again = inferred(shapes, settings)
        assert again is not first
        assert again == architecture.infer_architecture(shapes, settings)


def test_splitting_names_in_a_row_is_splitting_each() -> None:
    found = [
        *("a.0.w", "a.1.w", "a.01.w", "a.12", "a.b.3.w", "a.3b.w", "a.1234567.w", "a.2.0.w"),
        *("0.w", "1.2.w", "b", "a.٣.w", "a.²", "a..1", "a.", "a.5", "ab.6.w", "7", "0.v", "a.1.v"),
    ]
    for order in (found, found[::-1], sorted(found)):
        expected: dict[str, dict[int, list[str]]] = {}
        for parts in filter(None, map(architecture._split_name, order)):
            expected.setdefault(parts.prefix, {}).setdefault(parts.layer, []).append(parts.suffix)
        numbered = architecture._numbered_names(order)
        assert {prefix: run.layers for prefix, run in numbered.items()} == expected
        whole = [name for name in order if architecture._split_name(name) is not None]
        assert sorted(name for run in numbered.values() for name in run.names) == sorted(whole)


def test_the_main_tower_is_not_that_of_codebooks() -> None:
    """CSM's head acts after its backbone, though its depth decoder may have as many layers."""
    towers = (
        "backbone_model.layers.",
        "codec_model.encoder.layers.",
        "depth_decoder.model.layers.",
    )
    stored = [name for prefix in towers for name in names(prefix, 4, *BLOCK)]
    found = infer([*stored, "embed_text_tokens.weight", "lm_head.weight"], {})
    assert found.main.prefix == "backbone_model.layers."
    assert found.main.after == ("lm_head.weight",)
