"""Small GGUF files, written by the gguf package as ggml's converter would from transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers

KINDS = gguf.GGMLQuantizationType
VOCABULARY = 96

SHAPE: Mapping[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Kind:
    """A family of transformers, and what ggml's converter calls it and makes of it."""

    config: str
    architecture: str
    more: Mapping[str, Any] = field(default_factory=dict)
    has_interleaved_rows: bool = False
    has_offset_norms: bool = False

    def model(self, seed: int = 0) -> Any:
        torch.manual_seed(seed)
        config = getattr(transformers, f"{self.config}Config")(**{**SHAPE, **self.more})
        model = getattr(transformers, f"{self.config.removesuffix('Text')}ForCausalLM")(config)
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
        return model.eval()


TIED = {"tie_word_embeddings": True, "head_dim": 32}
FAMILIES = {
    "llama": Kind("Llama", "llama", has_interleaved_rows=True),
    "llama-biases": Kind(
        "Llama", "llama", {"attention_bias": True, "mlp_bias": True}, has_interleaved_rows=True
    ),
    "mistral": Kind("Mistral", "llama", {"sliding_window": None}, has_interleaved_rows=True),
    "qwen2": Kind("Qwen2", "qwen2"),
    "qwen3": Kind("Qwen3", "qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "gemma": Kind("Gemma", "gemma", TIED, has_offset_norms=True),
    "gemma2": Kind(
        "Gemma2",
        "gemma2",
        {
            **TIED,
            "query_pre_attn_scalar": 32,
            "sliding_window": 64,
            "attn_logit_softcapping": 30.0,
            "final_logit_softcapping": 20.0,
        },
        has_offset_norms=True,
    ),
    "gemma3": Kind(
        "Gemma3Text",
        "gemma3",
        {**TIED, "query_pre_attn_scalar": 32, "sliding_window": 64},
        has_offset_norms=True,
    ),
    "phi3": Kind("Phi3", "phi3", {"sliding_window": 64}),
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 64, "num_experts": 4}
MIXTURES = {
    "mixtral": Kind(
        "Mixtral",
        "llama",
        {"num_local_experts": 4, "sliding_window": None},
        has_interleaved_rows=True,
    ),
    "qwen2moe": Kind("Qwen2Moe", "qwen2moe", {**EXPERTS, "shared_expert_intermediate_size": 128}),
    "qwen3moe": Kind("Qwen3Moe", "qwen3moe", {**EXPERTS, "head_dim": 32, "norm_topk_prob": True}),
}
"""Families whose layers have experts, which are one tensor in a file."""


def tensors_of(kind: Kind, model: Any) -> dict[str, np.ndarray]:
    """Names and values of a file."""
    config = model.config
    architecture = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == kind.architecture)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    found = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stem, _, end = name.rpartition(".")
        values = tensor.float().numpy()
        if stem.endswith(".mlp.experts"):
            place = names.get_name(f"{stem}.gate_proj").removesuffix("gate_exps")
            parts = ["gate", "up"] if end == "gate_up_proj" else ["down"]
            for part, half in zip(parts, np.split(values, len(parts), axis=1), strict=True):
                found[f"{place}{part}_exps.weight"] = half
            continue
        if stem.endswith("shared_expert_gate"):
            values = values[0]
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        part = stem.rpartition(".")[2]
        if kind.has_interleaved_rows and part in heads:
            split = values.reshape(heads[part], 2, values.shape[0] // heads[part] // 2, -1)
            values = split.swapaxes(1, 2).reshape(values.shape)
        if kind.has_offset_norms and stem.endswith("norm"):
            values = values + 1
        found[f"{names.get_name(stem)}.{end}"] = values
    return found


def write_gguf(
    path: Path,
    kind: Kind,
    model: Any,
    stored: KINDS = KINDS.F32,
    describe: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
    parts: int = 1,
    more: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """A file of a model, matrices as ``stored`` and the rest in float32; its path, or that of the
    first of several ``parts``. ``describe`` adds what else the file says, such as a tokenizer."""
    config, name = model.config, kind.architecture
    tensors = {**tensors_of(kind, model), **(more or {})}
    most = -(-len(tensors) // parts) if parts > 1 else 0
    path.parent.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(path, name, split_max_tensors=most)
    writer.add_name("A small " + kind.config)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if name != "llama" and hasattr(config, "head_dim"):
        writer.add_key_length(width)
    writer.add_rope_dimension_count(width)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    for key, add in (
        ("sliding_window", writer.add_sliding_window),
        ("attn_logit_softcapping", writer.add_attn_logit_softcapping),
        ("final_logit_softcapping", writer.add_final_logit_softcapping),
    ):
        if getattr(config, key, None) is not None:
            add(getattr(config, key))
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if name.endswith("moe"):
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if name == "qwen2moe":
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    describe(writer)
    for tensor, values in tensors.items():
        kept = stored if values.ndim > 1 and "ffn_gate_inp" not in tensor else KINDS.F32
        writer.add_tensor(tensor, gguf.quantize(values, kept), raw_dtype=kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path if parts == 1 else next(path.parent.glob(f"{path.stem}-00001-of-*.gguf"))


def byte_words(writer: gguf.GGUFWriter, tokens: Sequence[str], merges: Sequence[str]) -> None:
    """A tokenizer of bytes."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(list(tokens))
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_token_merges(list(merges))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
