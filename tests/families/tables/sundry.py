"""Models with an unusual division into towers: several levels, lists side by side, codebooks."""

from __future__ import annotations

from typing import Any

import torch

from tests.families.family import Family, Stack, encoder, encoder_decoder, pixels, text, tokens
from tests.families.tables.vision import SIGLIP

MIXED = ["sliding_attention", "full_attention"] * 2
LISTS = tuple(f"transformer.{part}" for part in ("ffns", "layer_norm1", "layer_norm2"))


def codebooks(model: Any) -> Any:
    """Four codebooks of sound for a text."""
    codes = tokens(6).expand(4, 6)
    return model(input_ids=tokens(), decoder_input_ids=codes, use_cache=False)


def channels(model: Any) -> Any:
    """Nine channels of sound for a text."""
    codes = tokens(6)[..., None].expand(1, 6, 9) % 40
    return model(input_ids=tokens(), decoder_input_ids=codes, use_cache=False)


def siglip(model: Any) -> Any:
    return model.model.vision_tower(pixels(1, 3, 16, 16))


SUNDRY = (
    Family(
        "blt",
        "BltForCausalLM",
        text,
        (
            Stack(
                "model.local_decoder.layers",
                module="local_decoder",
                parts=("model.local_decoder.cross_attn_layers",),
            ),
            Stack(
                "model.local_encoder.layers",
                module="local_encoder",
                root="model.local_encoder",
                from_first=("patch_embedding", "cross_attn"),
            ),
        ),
        {
            "encoder_hash_byte_group_vocab": 11,
            "encoder_hash_byte_group_size": [3, 5],
            "patch_size": 2,
            "encoder_config": {"hidden_size_global": 32, "num_key_value_heads": 2},
            "decoder_config": {"hidden_size_global": 32, "num_key_value_heads": 2},
            "global_config": {"hidden_size": 32, "num_key_value_heads": 2},
            "patcher_config": {"num_key_value_heads": 2},
        },
    ),
    Family(
        "hrm",
        "HrmTextForCausalLM",
        text,
        (Stack("model.L_module.layers", parts=("model.H_module.layers",)),),
    ),
    Family(
        "xlm",
        "XLMWithLMHeadModel",
        encoder,
        (Stack("transformer.attentions", parts=LISTS),),
        {"emb_dim": 16},
    ),
    Family(
        "musicgen",
        "MusicgenForConditionalGeneration",
        codebooks,
        (
            Stack("decoder.model.decoder.layers", module="decoder"),
            Stack("text_encoder.encoder.block", module="text_encoder", root="text_encoder"),
        ),
        {
            "text_encoder": {"model_type": "t5"},
            "audio_encoder": {
                "model_type": "encodec",
                "num_filters": 2,
                "hidden_size": 8,
                "codebook_size": 16,
                "upsampling_ratios": [2, 2],
                "num_lstm_layers": 1,
            },
            "decoder": {"pad_token_id": 63},
        },
    ),
    Family(
        "dia",
        "DiaForConditionalGeneration",
        channels,
        (
            Stack("model.encoder.layers", module="encoder", root="model.encoder"),
            Stack("model.decoder.layers", module="decoder"),
        ),
        {
            "encoder_config": {"num_key_value_heads": 2},
            "decoder_config": {
                "cross_num_attention_heads": 2,
                "cross_head_dim": 8,
                "cross_num_key_value_heads": 2,
                "cross_hidden_size": 16,
                "pad_token_id": 60,
                "eos_token_id": 61,
                "bos_token_id": 62,
            },
        },
    ),
    Family(
        "t5gemma2",
        "T5Gemma2ForConditionalGeneration",
        encoder_decoder,
        (
            Stack("model.encoder.text_model.layers", module="encoder.layers", root="model.encoder"),
            Stack("model.decoder.layers", module="decoder"),
        ),
        {
            "image_token_index": 60,
            "eoi_token_index": 61,
            "encoder": {
                "text_config": {"layer_types": MIXED, "vocab_size": 64},
                "vision_config": SIGLIP,
                "mm_tokens_per_image": 4,
                "boi_token_index": 59,
                "eoi_token_index": 61,
                "image_token_index": 60,
            },
            "decoder": {"layer_types": MIXED},
        },
    ),
)


def kosmos(model: Any) -> Any:
    """An image in place of the first four tokens."""
    place = (torch.arange(12) < 4)[None].long()
    image = pixels(1, 3, 16, 16)
    return model(
        pixel_values=image, input_ids=tokens(), image_embeds_position_mask=place, use_cache=False
    )


def waves(model: Any) -> Any:
    return model(input_values=pixels(1, 2000), decoder_input_ids=tokens(6), use_cache=False)


def conformer(model: Any) -> Any:
    return model.model.encoder(pixels(1, 40, 160))


def codes_of_a_frame(model: Any) -> Any:
    """What the depth decoder makes of one frame of sound."""
    return model.depth_decoder(input_ids=tokens(4) % 16, backbone_last_hidden_state=pixels(1, 16))


MORE = (
    Family(
        "granite4_vision",
        "Granite4VisionForConditionalGeneration",
        text,
        (
            Stack("model.language_model.layers", module="language_model"),
            Stack(
                "model.vision_tower.encoder.layers",
                module="vision_tower",
                root="model.vision_tower",
                run=siglip,
            ),
        ),
        {
            "vision_config": {**SIGLIP, "hidden_size": 64},
            "deepstack_layer_map": [[-2, 2], [-1, 0]],
            "spatial_target_layers": [0, 1, 2, 3],
            "downsample_rate": "1/2",
            "image_token_index": 60,
        },
    ),
    Family(
        "longcat_flash",
        "LongcatFlashForCausalLM",
        text,
        (Stack("model.layers"),),
        {
            "kv_lora_rank": 8,
            "q_lora_rank": 8,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 4,
            "v_head_dim": 8,
            "head_dim": 4,
            "num_key_value_heads": 2,
            "ffn_hidden_size": 24,
            "expert_ffn_hidden_size": 16,
            "zero_expert_num": 2,
        },
    ),
    Family(
        "reformer",
        "ReformerModelWithLMHead",
        lambda model: model(input_ids=tokens(16)),
        (Stack("reformer.encoder.layers"),),
        {
            "is_decoder": True,
            "attn_layers": ["local", "lsh"] * 2,
            "attention_head_size": 8,
            "axial_pos_shape": [8, 8],
            "axial_pos_embds_dim": [8, 8],
            "feed_forward_size": 24,
            "local_attn_chunk_length": 4,
            "lsh_attn_chunk_length": 4,
            "num_buckets": 2,
            "hash_seed": 1,
        },
    ),
    Family(
        "xmod",
        "XmodForMaskedLM",
        encoder,
        (Stack("roberta.encoder.layer"),),
        {"languages": ["en_XX", "de_DE"], "default_language": "en_XX"},
    ),
    Family(
        "mobilebert",
        "MobileBertForMaskedLM",
        encoder,
        (Stack("mobilebert.encoder.layer"),),
        {"embedding_size": 16, "intra_bottleneck_size": 16},
    ),
    Family("jina v3", "JinaEmbeddingsV3ForMaskedLM", encoder, (Stack("roberta.layers"),)),
    Family(
        "kosmos2",
        "Kosmos2ForConditionalGeneration",
        kosmos,
        (
            Stack("text_model.model.layers", module="text_model", from_first=("image_to_text",)),
            Stack("vision_model.model.encoder.layers", module="vision_model", root="vision_model"),
        ),
        {"text_config": {"attention_heads": 2, "ffn_dim": 24}, "latent_query_num": 4},
    ),
    Family(
        "moonshine",
        "MoonshineForConditionalGeneration",
        waves,
        (
            Stack("model.encoder.layers", module="encoder", root="model.encoder"),
            Stack("model.decoder.layers", module="decoder"),
        ),
        {"encoder_num_attention_heads": 2, "decoder_num_attention_heads": 2},
    ),
    Family(
        "parakeet",
        "ParakeetForCTC",
        lambda model: model(input_features=pixels(1, 64, 80)),
        (Stack("encoder.layers"),),
        {
            "encoder_config": {"subsampling_conv_channels": 4, "layerdrop": 0.0},
            "pad_token_id": 63,
        },
    ),
    Family(
        "granite_speech",
        "GraniteSpeechForConditionalGeneration",
        text,
        (
            Stack("model.language_model.layers", module="language_model"),
            Stack("model.encoder.layers", module="encoder", root="model.encoder", run=conformer),
        ),
        {
            "text_config": {"model_type": "granite"},
            "encoder_config": {
                "hidden_dim": 16,
                "num_heads": 2,
                "dim_head": 8,
                "output_dim": 12,
                "context_size": 20,
                "conv_kernel_size": 3,
                "max_pos_emb": 32,
            },
            "projector_config": {
                "model_type": "blip_2_qformer",
                "encoder_hidden_size": 16,
                "hidden_size": 16,
            },
            "audio_token_index": 60,
            "window_size": 4,
            "downsample_rate": 2,
        },
    ),
    Family(
        "csm",
        "CsmForConditionalGeneration",
        lambda model: model(input_ids=tokens(6)[..., None].expand(1, 6, 4) % 16),
        (
            Stack("backbone_model.layers", module="backbone_model"),
            Stack(
                "depth_decoder.model.layers",
                module="depth_decoder",
                root="depth_decoder",
                run=codes_of_a_frame,
            ),
        ),
        {
            "vocab_size": 20,
            "text_vocab_size": 64,
            "num_codebooks": 4,
            "codebook_pad_token_id": 18,
            "codebook_eos_token_id": 0,
            "audio_token_id": 60,
            "audio_eos_token_id": 61,
            "codec_config": {
                "model_type": "mimi",
                "num_filters": 4,
                "codebook_size": 16,
                "codebook_dim": 8,
                "vector_quantization_hidden_dimension": 8,
                "upsampling_ratios": [4, 2],
                "upsample_groups": 4,
                "num_quantizers": 4,
                "num_key_value_heads": 2,
            },
            "depth_decoder_config": {
                "backbone_hidden_size": 16,
                "num_codebooks": 4,
                "vocab_size": 20,
                "max_position_embeddings": 8,
            },
        },
    ),
)
"""Families of usual towers, judged only if every family is asked for."""
