"""The families of models that GGUF files are read and written for: how ggml's converter changes
what transformers has.

What differs is told here, once for both directions: names of modules (the gguf package has the
names of the file for them), the order of rows of queries and keys, what norms are stored as, and
that the experts of a layer are one tensor in a file.
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

HEAD = "lm_head"
"""Which the family of gemma has none of."""
OUTSIDE = ("model.embed_tokens", "model.norm", HEAD)
LAYER = "model.layers.{}."
EXPERT = ".{}."
"""What stands for the number of an expert in the names of modules below."""
KINDS = ("weight", "bias")


_KEYS = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
"""What every file tells, and the names that transformers has for it."""


@dataclass(frozen=True)
class Family:
    """One family.

    ``architecture`` is its name in GGUF files; ``model_type`` and ``class_name`` are those of
    transformers; ``layer`` the modules of one layer. If ``interleaved``, the rows of each head of
    queries and keys stand in pairs in a file, where transformers has halves. If ``offset_norms``,
    norms are stored plus one. ``keys`` are settings of the file that only this family has, by the
    names that transformers has for them; ``fixed`` are settings that no file tells.

    A module of a mixture of experts has ``{}`` in place of the number of the expert: a file has all
    experts of a layer in one tensor, along its first dimension. ``experts`` is the setting of
    transformers that tells how many there are (empty: it is no mixture), ``required`` are settings
    that every file of the family tells, and ``one_row`` is a module whose weight is one row, which
    a file has as a list.
    """

    architecture: str
    model_type: str
    class_name: str
    layer: tuple[str, ...]
    interleaved: bool = False
    offset_norms: bool = False
    keys: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    experts: str = ""
    required: Mapping[str, str] = field(default_factory=lambda: _KEYS)
    one_row: str = ""


_HEAD = {"attention.key_length": "head_dim"}
_WINDOW = {"attention.sliding_window": "sliding_window"}
_CAPS = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_ROUTED = {"expert_used_count": "num_experts_per_tok"}
_EXPERT_KEYS = {
    **_KEYS,
    **_ROUTED,
    "expert_count": "num_experts",
    "expert_feed_forward_length": "moe_intermediate_size",
}

LLAMA = Family(
    *("llama", "llama", "LlamaForCausalLM", (*ATTENTION, *MLP, *NORMS)),
    interleaved=True,
    keys=_HEAD,
)
MISTRAL = Family(
    *("llama", "mistral", "MistralForCausalLM", LLAMA.layer),
    interleaved=True,
    keys=_HEAD,
    fixed={"sliding_window": None},
)
MIXTRAL = Family(
    *("llama", "mixtral", "MixtralForCausalLM", (*ATTENTION, *NORMS, *MIXTRAL_EXPERTS)),
    interleaved=True,
    keys=_HEAD,
    fixed={"sliding_window": None},
    experts="num_local_experts",
    required={**_KEYS, **_ROUTED, "expert_count": "num_local_experts"},
)
FAMILIES: Sequence[Family] = (
    LLAMA,
    MISTRAL,
    MIXTRAL,
    Family("qwen2", "qwen2", "Qwen2ForCausalLM", LLAMA.layer),
    Family(
        *("qwen3", "qwen3", "Qwen3ForCausalLM", (*LLAMA.layer, *HEAD_NORMS)),
        keys=_HEAD,
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
        keys=_HEAD,
        fixed={"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []},
        experts="num_experts",
        required=_EXPERT_KEYS,
    ),
    Family(
        *("gemma", "gemma", "GemmaForCausalLM", LLAMA.layer),
        offset_norms=True,
        keys=_HEAD,
        fixed={"hidden_activation": "gelu_pytorch_tanh", "hidden_act": "gelu_pytorch_tanh"},
    ),
    Family(
        *("gemma2", "gemma2", "Gemma2ForCausalLM", (*ATTENTION, *MLP, *FOUR_NORMS)),
        offset_norms=True,
        keys={**_HEAD, **_WINDOW, **_CAPS},
        fixed={"hidden_activation": "gelu_pytorch_tanh"},
    ),
    Family(
        *("gemma3", "gemma3_text", "Gemma3ForCausalLM"),
        (*ATTENTION, *MLP, *FOUR_NORMS, *HEAD_NORMS),
        offset_norms=True,
        keys={**_HEAD, **_WINDOW},
        fixed={"hidden_activation": "gelu_pytorch_tanh"},
    ),
    Family(
        *("phi3", "phi3", "Phi3ForCausalLM"),
        ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj", *NORMS),
        keys=_WINDOW,
    ),
)
"""Of several that a file's architecture has, the first is meant unless the file says otherwise."""
