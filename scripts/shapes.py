"""Named model shapes: their tensors in file order, and their config.json."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Family = Literal["llama", "mistral", "mixtral", "qwen3_moe", "bert"]
MB = 1000**2


class Tensor(NamedTuple):
    """A tensor to make: elements are drawn from a normal distribution of ``mean`` and ``std``."""

    name: str
    shape: tuple[int, ...]
    mean: float
    std: float


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's dimensions, in elements; ``shard_bytes`` is the largest file by default."""

    family: Family
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool = False
    experts: int = 0
    experts_per_token: int = 2
    shard_bytes: int = 5000 * MB


SHAPES: dict[str, Shape] = {
    "tiny": Shape("llama", 4, 32, 64, 4, 2, 8, 512),
    "small": Shape("llama", 12, 768, 2048, 12, 4, 64, 16000, tied=True, shard_bytes=50 * MB),
    "demo": Shape("llama", 18, 1024, 4096, 16, 4, 64, 32000, shard_bytes=200 * MB),
    "1b": Shape("llama", 16, 2048, 8192, 32, 8, 64, 128256, tied=True, shard_bytes=1500 * MB),
    "3b": Shape("llama", 28, 3072, 8192, 24, 8, 128, 128256, tied=True),
    "7b": Shape("mistral", 32, 4096, 14336, 32, 8, 128, 32000),
    "70b": Shape("llama", 80, 8192, 28672, 64, 8, 128, 128256),
    "moe": Shape("mixtral", 4, 128, 256, 4, 2, 32, 512, experts=8),
    "moe60k": Shape(
        "qwen3_moe", 78, 2048, 768, 32, 4, 128, 151936, experts=256, experts_per_token=8
    ),
    "encoder": Shape("bert", 4, 64, 128, 4, 4, 16, 512, tied=True),
}

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "bert": "BertModel",
}
_BERT_POSITIONS = 512


def tensors(shape: Shape) -> list[Tensor]:
    """All tensors of a model, in the order of its files."""
    return list(_bert(shape) if shape.family == "bert" else _decoder(shape))


def config(shape: Shape, dtype: str) -> dict[str, Any]:
    """Contents of config.json; ``dtype`` as torch names it, such as ``bfloat16``."""
    common = {
        "architectures": [_ARCHITECTURES[shape.family]],
        "model_type": shape.family,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "vocab_size": shape.vocab,
        "torch_dtype": dtype,
        "initializer_range": 0.02,
    }
    if shape.family == "bert":
        return common | {
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-12,
            "max_position_embeddings": _BERT_POSITIONS,
            "type_vocab_size": 2,
            "pad_token_id": 0,
        }
    result = common | {
        "hidden_act": "silu",
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0 if shape.family == "llama" else 10000.0,
        "tie_word_embeddings": shape.tied,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "use_cache": True,
    }
    if shape.family == "llama":
        result |= {"attention_bias": False, "mlp_bias": False}
    elif shape.family == "mistral":
        result |= {"sliding_window": 4096}
    elif shape.family == "mixtral":
        result |= {
            "num_local_experts": shape.experts,
            "num_experts_per_tok": shape.experts_per_token,
        }
    else:
        result |= {
            "num_experts": shape.experts,
            "num_experts_per_tok": shape.experts_per_token,
            "moe_intermediate_size": shape.intermediate,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "norm_topk_prob": True,
        }
    return result


def _matrix(name: str, rows: int, columns: int) -> Tensor:
    return Tensor(f"{name}.weight", (rows, columns), 0.0, columns**-0.5)


def _norm(name: str, size: int) -> Tensor:
    return Tensor(f"{name}.weight", (size,), 1.0, 0.05)


def _bias(name: str, size: int) -> Tensor:
    return Tensor(f"{name}.bias", (size,), 0.0, 0.02)


def _decoder(shape: Shape) -> Iterator[Tensor]:
    hidden = shape.hidden
    yield Tensor("model.embed_tokens.weight", (shape.vocab, hidden), 0.0, hidden**-0.5)
    for index in range(shape.layers):
        layer = f"model.layers.{index}"
        yield _norm(f"{layer}.input_layernorm", hidden)
        yield from _attention(f"{layer}.self_attn", shape)
        yield _norm(f"{layer}.post_attention_layernorm", hidden)
        yield from _feed_forward(layer, shape)
    yield _norm("model.norm", hidden)
    if not shape.tied:
        yield _matrix("lm_head", shape.vocab, hidden)


def _attention(prefix: str, shape: Shape) -> Iterator[Tensor]:
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield _matrix(f"{prefix}.q_proj", queries, shape.hidden)
    yield _matrix(f"{prefix}.k_proj", keys, shape.hidden)
    yield _matrix(f"{prefix}.v_proj", keys, shape.hidden)
    yield _matrix(f"{prefix}.o_proj", shape.hidden, queries)
    if shape.family == "qwen3_moe":
        yield _norm(f"{prefix}.q_norm", shape.head_dim)
        yield _norm(f"{prefix}.k_norm", shape.head_dim)


def _feed_forward(layer: str, shape: Shape) -> Iterator[Tensor]:
    names = ("gate_proj", "up_proj", "down_proj")
    prefixes = [f"{layer}.mlp"]
    if shape.experts:
        block = "mlp"
        if shape.family == "mixtral":
            block, names = "block_sparse_moe", ("w1", "w3", "w2")
        yield _matrix(f"{layer}.{block}.gate", shape.experts, shape.hidden)
        prefixes = [f"{layer}.{block}.experts.{number}" for number in range(shape.experts)]
    gate, up, down = names
    for prefix in prefixes:
        yield _matrix(f"{prefix}.{gate}", shape.intermediate, shape.hidden)
        yield _matrix(f"{prefix}.{up}", shape.intermediate, shape.hidden)
        yield _matrix(f"{prefix}.{down}", shape.hidden, shape.intermediate)


def _bert(shape: Shape) -> Iterator[Tensor]:
    hidden = shape.hidden

    def dense(name: str, rows: int, columns: int) -> Iterator[Tensor]:
        yield _matrix(name, rows, columns)
        yield _bias(name, rows)

    def norm(name: str) -> Iterator[Tensor]:
        yield _norm(name, hidden)
        yield _bias(name, hidden)

    yield Tensor("embeddings.word_embeddings.weight", (shape.vocab, hidden), 0.0, 0.05)
    yield Tensor("embeddings.position_embeddings.weight", (_BERT_POSITIONS, hidden), 0.0, 0.05)
    yield Tensor("embeddings.token_type_embeddings.weight", (2, hidden), 0.0, 0.05)
    yield from norm("embeddings.LayerNorm")
    for index in range(shape.layers):
        layer = f"encoder.layer.{index}"
        for part in ("query", "key", "value"):
            yield from dense(f"{layer}.attention.self.{part}", hidden, hidden)
        yield from dense(f"{layer}.attention.output.dense", hidden, hidden)
        yield from norm(f"{layer}.attention.output.LayerNorm")
        yield from dense(f"{layer}.intermediate.dense", shape.intermediate, hidden)
        yield from dense(f"{layer}.output.dense", hidden, shape.intermediate)
        yield from norm(f"{layer}.output.LayerNorm")
    yield from dense("pooler.dense", hidden, hidden)
