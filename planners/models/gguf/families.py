"""The families of models that can be read from and written to GGUF files.

A `Family` describes how ggml's converter changes a model of transformers, for both directions: the
modules (the gguf package has their names in a file), the order of rows of queries and keys, the
offset of norms, and the experts of a layer, which are one tensor in a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

from mergeloom.engine.base.records import dataclass

ATTENTION = tuple(f"self_attn.{part}_proj" for part in ("q", "k", "v", "o"))
MLP = tuple(f"mlp.{part}_proj" for part in ("gate", "up", "down"))
HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
EXPERTS = ("mlp.gate", *(f"mlp.experts.{{}}.{part}_proj" for part in ("gate", "up", "down")))
SHARED_EXPERT = tuple(f"mlp.shared_expert.{part}_proj" for part in ("gate", "up", "down"))
MIXTRAL_EXPERTS = (
    "block_sparse_moe.gate",
    *(f"block_sparse_moe.experts.{{}}.{part}" for part in ("w1", "w3", "w2")),
)
NORMS = ("input_layernorm", "post_attention_layernorm")
FOUR_NORMS = (*NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")

ORIGINAL = "merge its original weights"
CONVERT_AGAIN = f"convert the model to GGUF again, or {ORIGINAL}"
"""Remedies for files that cannot be used."""

HEAD = "lm_head"
"""The output head, which models of the Gemma family do not have."""
OUTSIDE = ("model.embed_tokens", "model.norm", HEAD)
LAYER = "model.layers.{}."
EXPERT_PLACEHOLDER = ".{}."
"""Stands for the number of an expert in names of modules."""
WEIGHT_AND_BIAS = ("weight", "bias")


_COMMON_KEYS = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
"""Metadata keys that every file has, with the names of transformers."""


@dataclass(frozen=True)
class Family:
    """One family.

    ``architecture`` is its name in GGUF files, ``model_type`` and ``class_name`` are its names in
    transformers; ``layer`` are the modules of one layer. With ``has_interleaved_rows``, a file has
    the rows of both halves of each head of queries and keys in turn. With ``has_offset_norms``, a
    file has norms plus 1. ``required`` are the metadata keys that every file of the family has,
    ``keys`` those that it may have, both with the names of transformers; ``fixed`` are settings of
    transformers that no file has.

    ``experts`` is the setting of transformers for the number of experts; empty if there are none.
    Modules of experts have ``{}`` in place of the expert's number; a file has all experts of a
    layer in one tensor, along its first dimension. ``one_row`` is a module whose weight has one
    row, which a file has as a vector.
    """

    architecture: str
    model_type: str
    class_name: str
    layer: tuple[str, ...]
    has_interleaved_rows: bool = False
    has_offset_norms: bool = False
    keys: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    experts: str = ""
    required: Mapping[str, str] = field(default_factory=lambda: _COMMON_KEYS)
    one_row: str = ""


_HEAD_WIDTH_KEY = {"attention.key_length": "head_dim"}
_WINDOW_KEY = {"attention.sliding_window": "sliding_window"}
_SOFTCAPPING_KEYS = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_ROUTING_KEYS = {"expert_used_count": "num_experts_per_tok"}
_EXPERT_KEYS = {
    **_COMMON_KEYS,
    **_ROUTING_KEYS,
    "expert_count": "num_experts",
    "expert_feed_forward_length": "moe_intermediate_size",
}

LLAMA = Family(
    *("llama", "llama", "LlamaForCausalLM", (*ATTENTION, *MLP, *NORMS)),
    has_interleaved_rows=True,
    keys=_HEAD_WIDTH_KEY,
)
MISTRAL = Family(
    *("llama", "mistral", "MistralForCausalLM", LLAMA.layer),
    has_interleaved_rows=True,
    keys=_HEAD_WIDTH_KEY,
    fixed={"sliding_window": None},
)
MIXTRAL = Family(
    *("llama", "mixtral", "MixtralForCausalLM", (*ATTENTION, *NORMS, *MIXTRAL_EXPERTS)),
    has_interleaved_rows=True,
    keys=_HEAD_WIDTH_KEY,
    fixed={"sliding_window": None},
    experts="num_local_experts",
    required={**_COMMON_KEYS, **_ROUTING_KEYS, "expert_count": "num_local_experts"},
)
FAMILIES: Sequence[Family] = (
    LLAMA,
    MISTRAL,
    MIXTRAL,
    Family("qwen2", "qwen2", "Qwen2ForCausalLM", LLAMA.layer),
    Family(
        *("qwen3", "qwen3", "Qwen3ForCausalLM", (*LLAMA.layer, *HEAD_NORMS)),
        keys=_HEAD_WIDTH_KEY,
    ),
    Family(
        *("qwen2moe", "qwen2_moe", "Qwen2MoeForCausalLM"),
        (*ATTENTION, *NORMS, *EXPERTS, *SHARED_EXPERT, "mlp.shared_expert_gate"),
        fixed={"norm_topk_prob": False, "decoder_sparse_step": 1, "mlp_only_layers": []},
        experts="num_experts",
        required={
            **_EXPERT_KEYS,
            "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
        },
        one_row="mlp.shared_expert_gate",
    ),
    Family(
        *("qwen3moe", "qwen3_moe", "Qwen3MoeForCausalLM"),
        (*ATTENTION, *NORMS, *EXPERTS, *HEAD_NORMS),
        keys=_HEAD_WIDTH_KEY,
        fixed={"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []},
        experts="num_experts",
        required=_EXPERT_KEYS,
    ),
    Family(
        *("gemma", "gemma", "GemmaForCausalLM", LLAMA.layer),
        has_offset_norms=True,
        keys=_HEAD_WIDTH_KEY,
        fixed={"hidden_activation": "gelu_pytorch_tanh", "hidden_act": "gelu_pytorch_tanh"},
    ),
    Family(
        *("gemma2", "gemma2", "Gemma2ForCausalLM", (*ATTENTION, *MLP, *FOUR_NORMS)),
        has_offset_norms=True,
        keys={**_HEAD_WIDTH_KEY, **_WINDOW_KEY, **_SOFTCAPPING_KEYS},
        fixed={"hidden_activation": "gelu_pytorch_tanh"},
    ),
    Family(
        *("gemma3", "gemma3_text", "Gemma3ForCausalLM"),
        (*ATTENTION, *MLP, *FOUR_NORMS, *HEAD_NORMS),
        has_offset_norms=True,
        keys={**_HEAD_WIDTH_KEY, **_WINDOW_KEY},
        fixed={"hidden_activation": "gelu_pytorch_tanh"},
    ),
    Family(
        *("phi3", "phi3", "Phi3ForCausalLM"),
        ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj", *NORMS),
        keys=_WINDOW_KEY,
    ),
)
"""Of several families with one architecture, the first is assumed unless the file says
otherwise."""
