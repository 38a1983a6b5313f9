"""Converts the metadata of a GGUF file to a configuration of transformers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mergeloom.engine.base.errors import COPY_AGAIN, CheckpointError
from mergeloom.engine.storage.gguf import GgufTensor
from mergeloom.planners.models.gguf.families import (
    CONVERT_AGAIN,
    FAMILIES,
    LLAMA,
    MISTRAL,
    ORIGINAL,
    Family,
)

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
LLAMA3, LONG, SHORT = (
    *("rope_freqs.weight", "rope_factors_long.weight"),
    "rope_factors_short.weight",
)
ROPE_FACTOR_TENSORS = (LLAMA3, LONG, SHORT)
"""Tensors that hold factors of the rotary embedding."""

_MAX_EXPERTS = 4096
_TOKEN_IDS = {
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "padding_token_id": "pad_token_id",
}
_NAME_KEYS = ("general.name", "general.basename", "general.base_model.0.name")
_SUPPORTED = ", ".join(dict.fromkeys(family.architecture for family in FAMILIES))


def family_of_file(values: Mapping[str, Any], where: str) -> Family:
    """The family of the model in a file called ``where``.

    Raises:
        CheckpointError: the family is not supported, or the file does not name it.
    """
    architecture = values.get("general.architecture")
    if not isinstance(architecture, str) or not architecture.isprintable():
        raise CheckpointError(
            f"'{where}' does not name the architecture of its model", remedy=COPY_AGAIN
        )
    known = [each for each in FAMILIES if each.architecture == architecture]
    if not known:
        raise CheckpointError(
            f"'{where}' holds a model of the architecture '{architecture[:80]}', whose GGUF files "
            "are not supported",
            remedy=f"merge its original weights (supported: {_SUPPORTED})",
        )
    mixed = bool(values.get(f"{architecture}.expert_count"))
    family = next((each for each in known if bool(each.experts) == mixed), None)
    if family is None:
        what = "a mixture of experts" if mixed else "a model without experts"
        raise CheckpointError(
            f"'{where}' is {what} of the architecture '{architecture}', whose GGUF files "
            "are not supported",
            remedy=ORIGINAL,
        )
    named = " ".join(str(values.get(key, "")) for key in _NAME_KEYS).lower()
    return MISTRAL if family is LLAMA and "mistral" in named else family


def transformers_config(
    family: Family,
    values: Mapping[str, Any],
    tensors: Mapping[str, GgufTensor],
    factors: Callable[[str], Sequence[float]],
    where: str,
) -> dict[str, Any]:
    """The content of ``config.json``.

    ``factors`` reads a tensor of factors of the rotary embedding.

    Raises:
        CheckpointError: the file lacks a value, or a value is invalid.
    """
    metadata = _Metadata(family.architecture, values, where)
    config: dict[str, Any] = {"architectures": [family.class_name], "model_type": family.model_type}
    for key, name in family.required.items():
        config[name] = metadata.number(key) if name == "rms_norm_eps" else metadata.integer(key)
    if config["num_hidden_layers"] > len(tensors):
        raise CheckpointError(
            f"'{where}' states {config['num_hidden_layers']} layers, but has {len(tensors)} "
            "tensors",
            remedy=COPY_AGAIN,
        )
    if config.get(family.experts, 0) > _MAX_EXPERTS:
        raise CheckpointError(
            f"'{where}' states {config[family.experts]} experts per layer, which is too many",
            remedy=COPY_AGAIN,
        )
    heads, width = config["num_attention_heads"], config["hidden_size"]
    config["num_key_value_heads"] = metadata.integer("attention.head_count_kv", heads)
    for key, name in family.keys.items():
        found = (
            metadata.number(key, None) if name.endswith("capping") else metadata.integer(key, None)
        )
        if found is not None:
            config[name] = found
    if "attention.key_length" in family.keys and "head_dim" not in config:
        config["head_dim"] = metadata.integer("rope.dimension_count", width // max(heads, 1))
    config.update(family.fixed)
    embedding = tensors.get(EMBEDDING)
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"'{where}' has no embedding ('{EMBEDDING}')", remedy=COPY_AGAIN)
    config["vocab_size"] = embedding.shape[0]
    config["tie_word_embeddings"] = HEAD not in tensors
    if family.architecture == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in tensors
        config["mlp_bias"] = "blk.0.ffn_gate.bias" in tensors
    if family.architecture in ("gemma2", "gemma3"):
        config["query_pre_attn_scalar"] = _query_scale(family, config)
    config |= _rope_settings(metadata, tensors, config, factors)
    for key, name in _TOKEN_IDS.items():
        number = values.get(f"tokenizer.ggml.{key}")
        known = type(number) is int and number < config["vocab_size"]
        config[name] = number if known else None  # a missing value would get a default
    config["dtype"] = _original_dtype(tensors)
    config["torch_dtype"] = config["dtype"]
    return config


def generation_config(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The content of ``generation_config.json``: the tokens that begin and end texts."""
    found = {name: config[name] for name in _TOKEN_IDS.values() if config[name] is not None}
    turn = values.get("tokenizer.ggml.eot_token_id")
    end = found.get("eos_token_id")
    if type(turn) is int and end is not None and turn != end and turn < config["vocab_size"]:
        found["eos_token_id"] = [end, turn]
    return {"_from_model_config": True, **found}


class _Metadata:
    """The settings of the model in a file, by key without the architecture's prefix."""

    def __init__(self, architecture: str, values: Mapping[str, Any], where: str) -> None:
        self._prefix = architecture + "."
        self._values = values
        self.where = where

    def number(self, key: str, default: Any = ...) -> Any:
        """A non-negative number; of a list with one per layer, the number that all layers have.

        Raises:
            CheckpointError: it is missing and has no default, differs between layers, or is
            something else.
        """
        value = self._values.get(self._prefix + key, default)
        if isinstance(value, tuple) and value and len(set(value)) == 1:
            value = value[0]
        if value is default and default is not ...:
            return default
        if value is ...:
            raise CheckpointError(
                f"'{self.where}' has no '{self._prefix}{key}'", remedy=CONVERT_AGAIN
            )
        integer = type(value) is int and 0 <= value < 1 << 40
        if not integer and not (type(value) is float and math.isfinite(value) and value >= 0):
            differs = isinstance(value, tuple)
            what = "differs between layers" if differs else "is not a valid number"
            raise CheckpointError(
                f"'{self.where}': '{self._prefix}{key}' {what}",
                remedy=ORIGINAL if differs else CONVERT_AGAIN,
            )
        return value if integer else _shortest_decimal(value)

    def integer(self, key: str, default: Any = ...) -> Any:
        """A whole number; see `number`."""
        value = self.number(key, default)
        if value is not default and type(value) is not int:
            raise CheckpointError(
                f"'{self.where}': '{self._prefix}{key}' is not a whole number",
                remedy=CONVERT_AGAIN,
            )
        return value

    def text(self, key: str) -> str:
        """A string; empty if it is missing."""
        value = self._values.get(self._prefix + key, "")
        return value if isinstance(value, str) else ""


def _shortest_decimal(value: float) -> float:
    """The shortest decimal number that rounds to ``value`` in float32."""
    for digits in range(1, 17):
        short = float(f"{value:.{digits}g}")
        if abs(short - value) <= abs(value) * 2.0**-25:
            return short
    return value


def _query_scale(family: Family, config: Mapping[str, Any]) -> int:
    """The number whose inverse square root scales queries: another one in the largest model of a
    family."""
    largest = {"gemma2": 46, "gemma3": 62}[family.architecture]
    if config["num_hidden_layers"] == largest:
        return int(config["hidden_size"] // config["num_attention_heads"])
    return int(config["head_dim"])


def _rope_settings(
    metadata: _Metadata,
    tensors: Mapping[str, GgufTensor],
    config: Mapping[str, Any],
    factors: Callable[[str], Sequence[float]],
) -> dict[str, Any]:
    """The settings of the rotary embedding."""
    theta = metadata.number("rope.freq_base", 10000.0)
    found: dict[str, Any] = {"rope_theta": float(theta)}
    width = config.get("head_dim", config["hidden_size"] // max(config["num_attention_heads"], 1))
    rotated = metadata.integer("rope.dimension_count", width)
    if rotated < width:
        found["partial_rotary_factor"] = rotated / width
    kind = metadata.text("rope.scaling.type")
    original = metadata.integer("rope.scaling.original_context_length", None)
    if LLAMA3 in tensors:
        found["rope_scaling"] = _llama3_scaling(factors(LLAMA3), theta, rotated, metadata)
    elif LONG in tensors and SHORT in tensors:
        found["rope_scaling"] = {
            "rope_type": "longrope",
            "long_factor": list(factors(LONG)),
            "short_factor": list(factors(SHORT)),
        }
        if original is not None:
            found["original_max_position_embeddings"] = original
    elif kind in ("linear", "yarn"):
        scaling = {"rope_type": kind, "factor": float(metadata.number("rope.scaling.factor"))}
        if kind == "yarn" and original is not None:
            scaling["original_max_position_embeddings"] = original
        found["rope_scaling"] = scaling
    return found


def _llama3_scaling(
    factors: Sequence[float], theta: float, width: int, metadata: _Metadata
) -> dict[str, Any]:
    """The rotary scaling of Llama 3 that has these factors, for heads of ``width`` elements.

    Raises:
        CheckpointError: no known settings give these factors.
    """
    low, high, original, factor = 1.0, 4.0, 8192, max(factors, default=1.0)

    def expected(number: int) -> float:
        length = 2 * math.pi * float(theta ** (2 * number / width))
        if length < original / high:
            return 1.0
        if length > original / low:
            return factor
        smooth = (original / length - low) / (high - low)
        return 1 / ((1 - smooth) / factor + smooth)

    close = (abs(f / expected(n) - 1) < 1e-3 for n, f in enumerate(factors))
    if 2 * len(factors) != width or not factor > 0 or not all(close):
        raise CheckpointError(
            f"'{metadata.where}' has factors of the rotary embedding ('{LLAMA3}') that no setting "
            "of transformers produces",
            remedy=ORIGINAL,
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _original_dtype(tensors: Mapping[str, GgufTensor]) -> str:
    """The dtype that the model probably had before it was converted."""
    kinds = {tensor.dtype.code for tensor in tensors.values()}
    if "BF16" in kinds or kinds - {"F16", "F32"}:
        return "bfloat16"
    return "float16" if "F16" in kinds else "float32"
