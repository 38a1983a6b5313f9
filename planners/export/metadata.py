"""GGUF metadata of a model, from the configuration of transformers.

The counterpart of `planners.models.gguf.config`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any

from mergeloom.engine.base.dtypes import F32
from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.engine.storage.memory_source import MemorySource
from mergeloom.planners.models.gguf.config import LLAMA3, LONG, SHORT
from mergeloom.planners.models.gguf.families import FAMILIES, Family

OTHER_CONVERTER = "llama.cpp's own converter supports more models"
"""Remedy for models that cannot be exported."""


def family_of_config(config: Mapping[str, Any], where: str) -> Family:
    """The family of a model called ``where``.

    Raises:
        CheckpointError: the family is not supported.
    """
    kind = config.get("model_type")
    family = next((each for each in FAMILIES if each.model_type == kind), None)
    if family is None:
        known = ", ".join(each.model_type for each in FAMILIES)
        raise CheckpointError(
            f"'{where}' is a model of type '{str(kind)[:80]}', which cannot be exported to GGUF",
            remedy=f"exported are {known}; {OTHER_CONVERTER}",
        )
    return family


def model_metadata(
    family: Family, config: Mapping[str, Any], name: str, where: str
) -> dict[str, Any]:
    """The general metadata, and those of the model; ``name`` is the model's name in the file.

    Raises:
        CheckpointError: the configuration lacks a value.
    """
    prefix = family.architecture + "."
    found: dict[str, Any] = {
        "general.architecture": family.architecture,
        "general.type": "model",
        "general.name": name,
        "general.quantization_version": 2,
    }
    _check_fixed(family, config, where)
    keys = {**family.required, **family.keys}
    for key, ours in keys.items():
        value = number_of_experts(config) if ours == family.experts else config.get(ours)
        if value is None and key in family.required:
            raise CheckpointError(
                f"'{where}': config.json has no '{ours}'",
                remedy="add it with the value that the class of the model has",
            )
        if value is not None:
            real = ours.endswith(("eps", "capping"))
            found[prefix + key] = float(value) if real else int(value)
    heads = int(config["num_attention_heads"])
    width = int(config.get("head_dim") or config["hidden_size"] // heads)
    found[prefix + "attention.head_count_kv"] = int(config.get("num_key_value_heads") or heads)
    found[prefix + "attention.key_length"] = width
    found[prefix + "attention.value_length"] = width
    found[prefix + "vocab_size"] = int(config["vocab_size"])
    rope = rope_settings(config)
    part = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    found[prefix + "rope.dimension_count"] = int(width * part)
    found[prefix + "rope.freq_base"] = float(rope.get("rope_theta") or 10000.0)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    original = rope.get("original_max_position_embeddings")
    original = original or config.get("original_max_position_embeddings")
    if kind in ("linear", "yarn"):
        found[prefix + "rope.scaling.type"] = kind
        found[prefix + "rope.scaling.factor"] = float(rope["factor"])
    elif kind == "longrope":
        found[prefix + "rope.scaling.attn_factor"] = _attention_factor(rope, config, original)
    elif kind not in ("default", "llama3"):
        raise CheckpointError(
            f"'{where}' has a rotary embedding of the type '{str(kind)[:40]}', which cannot "
            "be exported",
            remedy=OTHER_CONVERTER,
        )
    if original is not None and kind in ("yarn", "longrope"):
        found[prefix + "rope.scaling.original_context_length"] = int(original)
    return found


def number_of_experts(config: Mapping[str, Any]) -> int | None:
    """The number of experts in a layer; configurations use two names for it. ``None`` if there are
    none."""
    found = config.get("num_local_experts", config.get("num_experts"))
    return found if type(found) is int else None


_CLASS_DEFAULTS = {"norm_topk_prob": False, "decoder_sparse_step": 1, "mlp_only_layers": []}
"""The defaults of transformers for settings of mixtures of experts."""


def _check_fixed(family: Family, config: Mapping[str, Any], where: str) -> None:
    """Check settings for which GGUF has no key, because its readers use fixed values.

    Raises:
        CheckpointError: one has another value.
    """
    for key, default in _CLASS_DEFAULTS.items():
        value = config.get(key, default)
        if key in family.fixed and value != family.fixed[key]:
            raise CheckpointError(
                f"'{where}' has '{key}: {str(value)[:40]}', which a GGUF file of a "
                f"'{family.model_type}' cannot express (it means {family.fixed[key]})",
                remedy=OTHER_CONVERTER,
            )


def rope_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the rotary embedding, from all keys that may have them."""
    found: dict[str, Any] = {}
    if config.get("rope_theta") is not None:
        found["rope_theta"] = config["rope_theta"]
    for key in ("rope_scaling", "rope_parameters"):
        inside = config.get(key)
        if isinstance(inside, Mapping):
            whole = inside.get("full_attention")
            found |= whole if isinstance(whole, Mapping) else inside
    return found


def rope_factor_tensors(config: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Rotary embedding factors that a file stores as tensors, by name in the file."""
    rope = rope_settings(config)
    kind = rope.get("rope_type") or rope.get("type")
    if kind == "longrope":
        return {
            LONG: _stored_numbers(LONG, rope["long_factor"]),
            SHORT: _stored_numbers(SHORT, rope["short_factor"]),
        }
    if kind != "llama3":
        return {}
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    theta = float(rope.get("rope_theta") or 10000.0)
    keys = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    low, high, original = (float(rope[key]) for key in keys)
    factor = float(rope["factor"])
    found = []
    for number in range(int(width) // 2):
        length = 2 * math.pi * theta ** (2 * number / width)
        if length < original / high:
            found.append(1.0)
        elif length > original / low:
            found.append(factor)
        else:
            smooth = (original / length - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return {LLAMA3: _stored_numbers(LLAMA3, found)}


def _stored_numbers(name: str, numbers: list[float]) -> StoredTensor:
    source = MemorySource(struct.pack(f"<{len(numbers)}f", *numbers), name)
    return StoredTensor.at(source, 0, F32, (len(numbers),))


def _attention_factor(rope: Mapping[str, Any], config: Mapping[str, Any], original: Any) -> float:
    """The attention scale for a longer context (LongRoPE, equation of Phi-3)."""
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    factor = float(config["max_position_embeddings"]) / float(original or 1)
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original else 1.0
