"""Models of images, and of images and text, with configurations as transformers saves them."""

from __future__ import annotations

from typing import Any

from tests.families.family import Family, Run, Stack, image, image_and_text, pixels, text, tokens

CLIP = {"model_type": "clip_vision_model"}
SIGLIP = {"model_type": "siglip_vision_model"}
PIXTRAL = {"model_type": "pixtral"}
IMAGE_TOKEN = {"image_token_index": 60}
QWEN_TOKENS = {
    "image_token_id": 60,
    "video_token_id": 61,
    "vision_start_token_id": 62,
    "vision_end_token_id": 63,
}
SECTIONS = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
}
QWEN_VISION = {"hidden_size": 16, "out_hidden_size": 16, "num_heads": 2}
FROM_FIRST = (
    *(
        "projector",
        "merger",
        "connector",
        "qformer",
        "language_projection",
        "adapter",
        "downsample",
    ),
    *("post_tile_positional_embedding", "global_transformer"),  # act between Mllama's two towers
)


def seen(model: Any) -> Any:
    """Features of an image."""
    return model.get_image_features(pixel_values=pixels(1, 3, 16, 16))


def seen_patches(model: Any) -> Any:
    """Features of an image of 4 x 4 patches, given as a list of patches."""
    return model.get_image_features(
        pixel_values=pixels(16, 3 * 2 * 8 * 8), image_grid_thw=tokens(1).new_tensor([[1, 4, 4]])
    )


def mllama_run(model: Any) -> Any:
    """A forward pass in which the layers that look at the image run too."""
    ids = tokens()
    return model(
        input_ids=ids,
        pixel_values=pixels(1, 1, 2, 3, 16, 16),
        aspect_ratio_ids=ids.new_tensor([[1]]),
        aspect_ratio_mask=ids.new_tensor([[[1, 0]]]),
        cross_attention_mask=ids.new_ones(1, ids.shape[1], 1, 2),
        use_cache=False,
    )


def both(
    name: str,
    cls: str,
    language: Stack,
    vision: Stack,
    **sizes: Any,
) -> Family:
    """A vision-language model, either of whose towers is stacked."""
    return Family(name, cls, text, (language, vision), sizes)


def language(module: str, path: str = "model.language_model.layers") -> Stack:
    return Stack(path, module=module)


def vision(module: str, path: str, run: Run = seen) -> Stack:
    root = path.replace(".encoder.", ".").replace(".transformer.", ".").rpartition(".")[0]
    root = root.removesuffix(".model")
    return Stack(path, module=module, root=root, from_first=FROM_FIRST, run=run)


LLAVA_VISION = vision("vision_tower", "model.vision_tower.encoder.layers")
VISUAL = vision("visual", "model.visual.blocks", seen_patches)

VISION = (
    both(
        "llava",
        "LlavaForConditionalGeneration",
        language("language_model"),
        LLAVA_VISION,
        vision_config=CLIP,
        text_config={"model_type": "llama"},
        **IMAGE_TOKEN,
    ),
    both(
        "llava_onevision",
        "LlavaOnevisionForConditionalGeneration",
        language("language_model"),
        vision(
            "vision_tower",
            "model.vision_tower.encoder.layers",
            lambda m: m.model.vision_tower(pixels(1, 3, 16, 16)),
        ),
        vision_config=SIGLIP,
        text_config={"model_type": "qwen2"},
        **IMAGE_TOKEN,
    ),
    both(
        "pixtral in llava",
        "LlavaForConditionalGeneration",
        language("language_model"),
        vision(
            "vision_tower",
            "model.vision_tower.transformer.layers",
            lambda m: m.model.vision_tower(pixels(1, 3, 16, 16), image_sizes=[(16, 16)]),
        ),
        vision_config=PIXTRAL,
        text_config={"model_type": "mistral"},
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        **IMAGE_TOKEN,
    ),
    both(
        "mistral3",
        "Mistral3ForConditionalGeneration",
        language("language_model"),
        vision(
            "vision_tower",
            "model.vision_tower.transformer.layers",
            lambda m: m.model.vision_tower(pixels(1, 3, 16, 16), image_sizes=[(16, 16)]),
        ),
        vision_config=PIXTRAL,
        text_config={"model_type": "mistral"},
        **IMAGE_TOKEN,
    ),
    Family(
        "pixtral",
        "PixtralVisionModel",
        lambda m: m(pixels(1, 3, 16, 16), image_sizes=[(16, 16)]),
        (Stack("transformer.layers"),),
    ),
    both(
        "qwen2_vl",
        "Qwen2VLForConditionalGeneration",
        language("model"),
        VISUAL,
        text_config=SECTIONS,
        vision_config={"embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 2},
        **QWEN_TOKENS,
    ),
    both(
        "qwen2_5_vl",
        "Qwen2_5_VLForConditionalGeneration",
        language("model"),
        VISUAL,
        text_config=SECTIONS,
        vision_config={**QWEN_VISION, "fullatt_block_indexes": [1, 3], "window_size": 32},
        **QWEN_TOKENS,
    ),
    both(
        "qwen3_vl",
        "Qwen3VLForConditionalGeneration",
        language("language_model"),
        vision("visual", "model.visual.blocks", seen_patches),
        text_config=SECTIONS,
        vision_config={
            **QWEN_VISION,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1, 2],
        },
        **QWEN_TOKENS,
    ),
    both(
        "glm4v",
        "Glm4vForConditionalGeneration",
        language("language_model"),
        vision("visual", "model.visual.blocks", seen_patches),
        text_config={
            "rope_parameters": {**SECTIONS["rope_parameters"], "partial_rotary_factor": 1.0}
        },
        vision_config={"out_hidden_size": 16, "num_heads": 2},
        image_token_id=60,
        video_token_id=61,
    ),
    both(
        "mllama",
        "MllamaForConditionalGeneration",
        Stack("model.language_model.layers", module="language_model", run=mllama_run),
        vision(
            "vision_model.transformer",
            "model.vision_model.transformer.layers",
            lambda m: m.model.vision_model(
                pixels(1, 1, 2, 3, 16, 16),
                tokens(1).new_tensor([[1]]),
                tokens(1).new_tensor([[[1, 0]]]),
            ),
        ),
        text_config={
            "cross_attention_layers": [1, 3],
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
        vision_config={
            "num_global_layers": 2,
            "attention_heads": 2,
            "intermediate_layers_indices": [1, 2],
            "vision_output_dim": 48,
            "max_num_tiles": 2,
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
        },
        **IMAGE_TOKEN,
    ),
    both(
        "idefics3",
        "Idefics3ForConditionalGeneration",
        language("text_model", "model.text_model.layers"),
        vision(
            "vision_model",
            "model.vision_model.encoder.layers",
            lambda m: m.model.vision_model(pixels(1, 3, 16, 16)),
        ),
        text_config={"model_type": "llama", "pad_token_id": 0},
        image_token_id=60,
        pad_token_id=0,
    ),
    both(
        "paligemma",
        "PaliGemmaForConditionalGeneration",
        language("language_model"),
        vision("vision_tower", "model.vision_tower.encoder.layers"),
        vision_config=SIGLIP,
        text_config={"model_type": "gemma"},
        projection_dim=16,
        **IMAGE_TOKEN,
    ),
    both(
        "gemma3 with images",
        "Gemma3ForConditionalGeneration",
        language("language_model"),
        vision("vision_tower", "model.vision_tower.encoder.layers"),
        vision_config=SIGLIP,
        text_config={"layer_types": ["sliding_attention", "full_attention"] * 2},
        boi_token_index=61,
        eoi_token_index=62,
        mm_tokens_per_image=4,
        **IMAGE_TOKEN,
    ),
    both(
        "llama4",
        "Llama4ForConditionalGeneration",
        language("language_model", "language_model.model.layers"),
        vision(
            "vision_model",
            "vision_model.model.layers",
            lambda m: m.vision_model(pixels(1, 3, 16, 16)),
        ),
        text_config={"intermediate_size_mlp": 24, "moe_layers": [1, 3], "attention_chunk_size": 4},
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 64,
            "vision_output_dim": 16,
            "projector_input_dim": 16,
            "projector_output_dim": 16,
            "pixel_shuffle_ratio": 0.5,
        },
    ),
    both(
        "internvl",
        "InternVLForConditionalGeneration",
        language("language_model"),
        vision("vision_tower", "model.vision_tower.encoder.layer"),
        text_config={"model_type": "qwen2"},
        vision_config={"image_size": [16, 16], "patch_size": [8, 8]},
        image_token_id=60,
        downsample_ratio=0.5,
    ),
    both(
        "blip",
        "BlipForConditionalGeneration",
        Stack("text_decoder.bert.encoder.layer", module="text_decoder", run=image_and_text),
        vision(
            "vision_model",
            "vision_model.encoder.layers",
            lambda m: m.vision_model(pixels(1, 3, 16, 16)),
        ),
    ),
    both(
        "blip2",
        "Blip2ForConditionalGeneration",
        Stack(
            "language_model.model.decoder.layers",
            module="language_model",
            run=lambda m: m.language_model(tokens()),
        ),
        vision(
            "vision_model",
            "vision_model.encoder.layers",
            lambda m: m.vision_model(pixels(1, 3, 16, 16)),
        ),
        text_config={"model_type": "opt", "word_embed_proj_dim": 16},
        qformer_config={"encoder_hidden_size": 16, "cross_attention_frequency": 2},
        num_query_tokens=4,
        **IMAGE_TOKEN,
    ),
    Family(
        "clip",
        "CLIPModel",
        image_and_text,
        (
            Stack(
                "text_model.encoder.layers",
                module="text_model",
                root="text_model",
                from_last=("text_projection",),
            ),
            Stack(
                "vision_model.encoder.layers",
                module="vision_model",
                root="vision_model",
                from_last=("visual_projection",),
            ),
        ),
        {"projection_dim": 16},
    ),
    Family(
        "siglip",
        "SiglipModel",
        image_and_text,
        (
            Stack("text_model.encoder.layers", module="text_model", root="text_model"),
            Stack("vision_model.encoder.layers", module="vision_model", root="vision_model"),
        ),
    ),
    Family("vit", "ViTForImageClassification", image, (Stack("vit.layers"),)),
    Family("dinov2", "Dinov2Model", image, (Stack("encoder.layer"),)),
    Family(
        "yolos",
        "YolosForObjectDetection",
        image,
        (Stack("vit.encoder.layer", refused="a part for each"),),
        {"image_size": [16, 16], "num_detection_tokens": 3},
    ),
    Family(
        "mobilenet-v2",
        "MobileNetV2Model",
        image,
        (Stack("layer", refused="no key"),),
        {"image_size": 16},
    ),
)
