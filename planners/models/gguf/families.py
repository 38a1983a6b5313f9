"""The families of models that GGUF files are read and written for: how ggml's converter changes
what transformers has.

What differs is told here, once for both directions: names of modules (the gguf package has the
names of the file for them), the order of rows of queries and keys, and what norms are stored as.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

from mergeloom.engine.base.records import dataclass

ATTENTION = tuple(f"self_attn.{part}_proj" for part in ("q", "k", "v", "o"))
MLP = tuple(f"mlp.{part}_proj" for part in ("gate", "up", "down"))
HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
NORMS = ("input_layernorm", "post_attention_layernorm")
FOUR_NORMS = (*NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")

HEAD = "lm_head"
"""Which the family of gemma has none of."""
OUTSIDE = ("model.embed_tokens", "model.norm", HEAD)
LAYER = "model.layers.{}."
KINDS = ("weight", "bias")


@dataclass(frozen=True)
class Family:
    """One family.

    ``architecture`` is its name in GGUF files; ``model_type`` and ``class_name`` are those of
    transformers; ``layer`` the modules of one layer. If ``interleaved``, the rows of each head of
    queries and keys stand in pairs in a file, where transformers has halves. If ``offset_norms``,
    norms are stored plus one. ``keys`` are settings of the file that only this family has, by the
    names that transformers has for them; ``fixed`` are settings that no file tells.
    """

    architecture: str
    model_type: str
    class_name: str
    layer: tuple[str, ...]
    interleaved: bool = False
    offset_norms: bool = False
    keys: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)


_KEYS = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
"""What every file tells, and the names that transformers has for it."""

_HEAD = {"attention.key_length": "head_dim"}
_WINDOW = {"attention.sliding_window": "sliding_window"}
_CAPS = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
REQUIRED_KEYS: Mapping[str, str] = _KEYS

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
FAMILIES: Sequence[Family] = (
    LLAMA,
    MISTRAL,
    Family("qwen2", "qwen2", "Qwen2ForCausalLM", LLAMA.layer),
    Family(
        *("qwen3", "qwen3", "Qwen3ForCausalLM", (*LLAMA.layer, *HEAD_NORMS)),
        keys=_HEAD,
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
"""One of a file's architecture; of several the first, unless the file is known to be another."""
