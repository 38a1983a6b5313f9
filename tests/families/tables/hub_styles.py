"""Configurations with the keys that published files have, where transformers saves others.

They are the keys that its configuration classes turn into what they save: a rule in place of the
list of layers' kinds, counts beside the one that counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.families.family import Family, Run, Stack, drop, encoder, encoder_decoder, text
from tests.families.tables.decoders import LATENT
from tests.families.tables.encoders import BLOCKS, MODEL, two, whisper_run
from tests.families.tables.vision import CLIP, IMAGE_TOKEN, QWEN_TOKENS, SECTIONS, VISUAL

LAYERS = "model.layers"


def styled(
    name: str,
    cls: str,
    change: Callable[[dict[str, Any]], Any],
    *stacks: Stack,
    run: Run = text,
    tensors: Callable[[dict[str, torch.Tensor]], Any] | None = None,
    **sizes: Any,
) -> Family:
    """A family with a changed configuration; ``tensors`` adds a layer that predicts a token."""
    stacks = stacks or (Stack(LAYERS),)
    return Family(name, cls, run, stacks, sizes, change, tensors, tensors is not None)


def flat(config: dict[str, Any]) -> None:
    """Write the language model's values beside the vision model's, as Qwen2-VL's files do."""
    for key, value in config.pop("text_config").items():
        config.setdefault(key, value)


def predictor(tensors: dict[str, torch.Tensor]) -> None:
    """Add a layer that predicts one more token, as DeepSeek-V3 and GLM-4.5 have it at the end."""
    own = {n: t for n, t in tensors.items() if n.startswith("model.layers.3.")}
    for name, tensor in own.items():
        tensors[name.replace(".3.", ".4.", 1)] = tensor + 1
    for name in ("enorm", "hnorm", "shared_head.norm"):
        tensors[f"model.layers.4.{name}.weight"] = tensors["model.norm.weight"] + 1
    width = len(tensors["model.norm.weight"])
    tensors["model.layers.4.eh_proj.weight"] = torch.ones(width, 2 * width)
    tensors["model.layers.4.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.4.shared_head.head.weight"] = tensors["lm_head.weight"].clone()


HUB_STYLES = (
    styled("gemma2, as published", "Gemma2ForCausalLM", drop("layer_types")),
    styled(
        "gemma3, as published",
        "Gemma3ForCausalLM",
        drop("layer_types", sliding_window_pattern=2),
    ),
    styled(
        "gemma3, no pattern",
        "Gemma3ForCausalLM",
        drop("layer_types"),
        Stack(LAYERS, (("A", 0, 7), ("B", 4, 8))),
        num_hidden_layers=8,
    ),
    styled(
        "cohere2, as published", "Cohere2ForCausalLM", drop("layer_types", sliding_window_pattern=2)
    ),
    styled(
        "qwen2, windows by a number",
        "Qwen2ForCausalLM",
        drop("layer_types"),
        use_sliding_window=True,
        max_window_layers=2,
    ),
    styled(
        "qwen2, as published",
        "Qwen2ForCausalLM",
        drop("layer_types", use_sliding_window=False, max_window_layers=4, sliding_window=8),
    ),
    styled(
        "modernbert, as published",
        "ModernBertForMaskedLM",
        drop("layer_types", global_attn_every_n_layers=3),
        run=encoder,
    ),
    styled(
        "smollm3, by interval",
        "SmolLM3ForCausalLM",
        drop("layer_types", "no_rope_layers", no_rope_layer_interval=2),
    ),
    styled(
        "smollm3, list of rope",
        "SmolLM3ForCausalLM",
        drop("layer_types"),
        no_rope_layers=[1, 0, 1, 0],
    ),
    styled("exaone4, pattern", "Exaone4ForCausalLM", drop("layer_types", sliding_window_pattern=2)),
    styled(
        "olmo3, by rule",
        "Olmo3ForCausalLM",
        drop("layer_types"),
        Stack(LAYERS, (("A", 0, 3), ("B", 1, 4))),
    ),
    styled("gpt_oss, by rule", "GptOssForCausalLM", drop("layer_types")),
    styled(
        "qwen3_next, as published",
        "Qwen3NextForCausalLM",
        drop("layer_types", full_attention_interval=2),
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        layer_types=["linear_attention", "full_attention"] * 2,
    ),
    styled(
        "lfm2, as published",
        "Lfm2ForCausalLM",
        drop("layer_types", full_attn_idxs=[1]),
        layer_types=["conv", "full_attention", "conv", "conv"],
    ),
    styled(
        "llama4, by interval",
        "Llama4ForCausalLM",
        drop(
            "layer_types",
            "moe_layers",
            "no_rope_layers",
            no_rope_layer_interval=2,
            interleave_moe_layer_step=2,
        ),
        intermediate_size_mlp=24,
        moe_layers=[1, 3],
        attention_chunk_size=4,
        no_rope_layers=[1, 0, 1, 0],
    ),
    styled(
        "nemotron_h, as published",
        "NemotronHForCausalLM",
        drop(
            "layers_block_type", "layer_types", hybrid_override_pattern="M*M-", num_hidden_layers=4
        ),
        layers_block_type=["mamba", "attention", "mamba", "mlp"],
        mamba_num_heads=4,
        mamba_head_dim=8,
        ssm_state_size=8,
        n_groups=2,
        use_mamba_kernels=False,
        moe_latent_size=None,
    ),
    styled(
        "deepseek_v3 with a predictor",
        "DeepseekV3ForCausalLM",
        drop(num_nextn_predict_layers=1),
        tensors=predictor,
        first_k_dense_replace=1,
        **LATENT,
    ),
    styled(
        "glm4_moe with a predictor",
        "Glm4MoeForCausalLM",
        drop(num_nextn_predict_layers=1),
        tensors=predictor,
        first_k_dense_replace=1,
    ),
    styled(
        "gpt_neo, pairs only",
        "GPTNeoForCausalLM",
        drop("attention_layers"),
        Stack("transformer.h"),
        attention_types=[[["global", "local"], 2]],
    ),
    styled(
        "mamba, two counts",
        "MambaForCausalLM",
        drop(n_layer=4, d_model=16),
        Stack("backbone.layers"),
    ),
    styled(
        "bart, three counts",
        "BartForConditionalGeneration",
        drop(num_hidden_layers=4),
        *two("", "", *MODEL).stacks,
        run=encoder_decoder,
    ),
    styled(
        "mbart, three counts",
        "MBartForConditionalGeneration",
        drop(num_hidden_layers=4),
        *two("", "", *MODEL).stacks,
        run=encoder_decoder,
    ),
    styled(
        "marian, three counts",
        "MarianMTModel",
        drop(num_hidden_layers=4),
        *two("", "", *MODEL).stacks,
        run=encoder_decoder,
    ),
    styled(
        "pegasus, three counts",
        "PegasusForConditionalGeneration",
        drop(num_hidden_layers=4),
        *two("", "", *MODEL).stacks,
        run=encoder_decoder,
    ),
    styled(
        "m2m100, three counts",
        "M2M100ForConditionalGeneration",
        drop(num_hidden_layers=4),
        *two("", "", *MODEL).stacks,
        run=encoder_decoder,
    ),
    styled(
        "whisper, as published",
        "WhisperForConditionalGeneration",
        drop(
            num_hidden_layers=4,
            begin_suppress_tokens=[20, 50, 30, 40],
            suppress_tokens=[1, 2, 7, 8],
            forced_decoder_ids=[[1, 5], [2, 6], [3, 7], [4, 8]],
        ),
        *two("", "", *MODEL).stacks,
        run=whisper_run,
    ),
    styled(
        "t5, one count",
        "T5ForConditionalGeneration",
        drop("num_decoder_layers"),
        *two("", "", *BLOCKS).stacks,
        run=encoder_decoder,
    ),
    styled(
        "ernie4_5_moe, as published",
        "Ernie4_5_MoeForCausalLM",
        drop(moe_layer_end_index=3),
        moe_layer_start_index=1,
    ),
    styled(  # LLaVA-1.5 leaves the number of layers to Llama's class, which is 32
        "llava, as published",
        "LlavaForConditionalGeneration",
        drop("text_config.num_hidden_layers"),
        Stack(
            "model.language_model.layers", (("A", 0, 20), ("B", 15, 32)), module="language_model"
        ),
        vision_config=CLIP,
        text_config={"model_type": "llama", "num_hidden_layers": 32},
        **IMAGE_TOKEN,
    ),
    styled(
        "qwen2_vl, as published",
        "Qwen2VLForConditionalGeneration",
        flat,
        Stack("model.language_model.layers", module="model"),
        VISUAL,
        text_config=SECTIONS,
        vision_config={"embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 2},
        **QWEN_TOKENS,
    ),
)
