"""Tiny models of many families, made by transformers' own configuration and model classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel

DEPTH = 4

_COUNTS = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "layers", "depth", "num_blocks"),
    *("encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers"),
    *("encoder_num_hidden_layers", "decoder_num_hidden_layers"),
)
"""Keys of the number of layers."""

_SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "type_vocab_size"), 64),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim"), 16),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "d_inner", "dff"), 24),
    **dict.fromkeys(("ffn_hidden_size", "n_inner", "hidden_dim"), 24),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "prediction_length"), 24),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 1),
    **dict.fromkeys(("head_dim", "d_head", "d_kv", "kv_channels"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 64),
    **dict.fromkeys(("max_source_positions", "max_target_positions"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("n_shared_experts", "n_group", "topk_group"), 1),
    **dict.fromkeys(("image_size", "projection_dim", "text_embed_dim", "vision_embed_dim"), 16),
    **dict.fromkeys(("patch_size",), 8),
    **dict.fromkeys(("sliding_window", "attention_window_size"), 4),
    **dict.fromkeys(("pad_token_id",), 0),
    **dict.fromkeys(("bos_token_id",), 1),
    **dict.fromkeys(("eos_token_id", "decoder_start_token_id", "forced_eos_token_id"), 2),
    **dict.fromkeys(("attention_dropout", "hidden_dropout", "dropout", "activation_dropout"), 0.0),
}
"""Small values of keys that many configurations have."""


def tiny_config(
    kind: str | type[PretrainedConfig], sizes: Mapping[str, Any], depth: int = DEPTH
) -> PretrainedConfig:
    """The configuration of a model type with small values, and with ``sizes`` above all."""
    found = CONFIG_MAPPING[kind] if isinstance(kind, str) else kind
    fields = getattr(found, "__dataclass_fields__", {})
    usual = {**_SIZES, **dict.fromkeys(_COUNTS, depth)}
    values: dict[str, Any] = {key: value for key, value in usual.items() if key in fields}
    sizes = dict(sizes)
    for key, sub in found.sub_configs.items():
        own = dict(sizes.pop(key, {}) or {})
        model_type = own.pop("model_type", None)
        if model_type is not None or sub.__name__ != "AutoConfig":
            values[key] = tiny_config(model_type or sub, own, depth)
    return found(**{**values, **sizes})


def at_depth(value: Any, depth: int) -> Any:
    """A value of a configuration, its lists with an entry for each layer as long as ``depth``."""
    if isinstance(value, Mapping):
        return {key: at_depth(inner, depth) for key, inner in value.items()}
    if isinstance(value, list) and len(value) == DEPTH:
        return [value[i % DEPTH] for i in range(depth)]
    return value


def make_model(name: str, sizes: Mapping[str, Any], depth: int = DEPTH) -> PreTrainedModel:
    """An untrained tiny model of the class ``name``."""
    cls = getattr(transformers, name)
    kind = cls.config_class
    sizes = at_depth(sizes, depth)
    config = tiny_config(sizes.pop("model_type", kind), sizes, depth)
    return cls(config).eval()


def fill(model: PreTrainedModel, seed: int) -> None:
    """Give every weight random values of a useful size, all different for each seed."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in sorted(model.state_dict().items()):
        if not tensor.is_floating_point():
            continue
        values = torch.randn(tensor.shape, generator=generator)
        scale = 1.0 + 0.1 * values if tensor.ndim <= 1 or "norm" in name else 0.3 * values
        with torch.no_grad():
            tensor.copy_(scale)
