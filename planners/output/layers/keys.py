"""The meaning of configuration keys about layers, by name.

Lists are identified by name, since any list may happen to have as many entries as a model has
layers. The names are from transformers 5.23 and from published configurations with their own code
(OpenELM, Nemotron, Hymba, Kimi, MiniMax, Step, MiMo, RWKV-7, PLaMo 2, Solar
Pro).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_PER_LAYER = """
    activation_sparsity_pattern attention_layers attention_types attention_window attention_windows
    attn_layers attn_type_list block_configs block_repeats block_sizes compress_ratios
    ffn_multipliers hybrid_layer_pattern hybrid_override_pattern index_topk_pattern indexer_types
    intermediate_size layer_rope_theta layer_type layer_types layers_block_type mlp_layer_types
    moe_layer_freq moe_topk no_rope_layers num_attention_heads_per_layer num_experts
    num_key_value_heads_per_layer num_kv_heads num_query_heads partial_rotary_factors
    sliding_windows swiglu_limits swiglu_limits_shared value_dim
"""
PER_LAYER_KEYS = frozenset(_PER_LAYER.split())
"""Keys of lists, or of strings with one letter per layer, that have one entry per layer."""

ALIASES = {"layer_types": "layers_block_type", "layers_block_type": "layer_types"}

_UNRELATED_LISTS = re.compile(
    r"token|label|quantile|architecture|lang|suppress|decoder_ids|mean|std|kernel|stride|dilat|padd"
    r"|channel|conv|ratio|rates|section|factor|grid|shape|lags|cardinal|threshold|bandwidth|coef"
    r"|class|names|modules|exclu|bins|dims?$|sizes?$|levels|points|multiplier|embed|resolution"
    r"|scales?$|features|indices|stage|dropout|drop_path|vocab|prompt|files|tags|words|(^|_)ids?$"
    r"|delay|duration|freeze|loss|task|inference|loader|vision_feature"
)
"""Keys of lists that never have one entry per layer, even if the length fits."""

_NUMBER_LIST_KEY = re.compile(
    r"(^|_)(layers|layers_enum|layer_ids?|layer_idxs?|layer_indices|layer_indexes|att(ention|n)_idxs?"
    r"|attn_layer_indices|attn_indexes|block_ids|block_idxs?|block_indexes|block_indices"
    r"|attention_blocks|bskcn_[1-4])$"
)

_DEFAULT_NUMBERS = {"cross_attention_layers", "global_attn_indexes", "fullatt_block_indexes"}
"""Keys with a default of their class, which names layers beyond the last of a model with few."""

OUTPUT_KEYS: Mapping[str, int] = {
    "deepstack_visual_indexes": 0,
    "extract_layers": 0,
    "intermediate_hidden_state_indices": 0,
    "intermediate_layers_indices": 1,
    "out_indices": 1,
    "_out_indices": 1,
    "segmentation_indices": 1,
}
"""Keys of layers whose outputs are used elsewhere, with the number of layer 0's output (1 if 0 is
the input of the first layer). Each entry has its own weights or columns, so none may be dropped."""

STAGE_KEYS = frozenset({"stage_names", "out_features", "_out_features"})
"""The same by name: ``stem`` is the input, ``stage1`` the output of layer 0."""

WIDTH_KEYS = ("depths", "hidden_sizes", "embed_dims", "stage_out_channels", "conv_dim")
"""Lists with one entry per stage, for models whose stages have different widths."""

VISION_OUTPUT_KEYS: Mapping[str, int] = {
    "insert_layer_id": 0,
    "mm_vision_select_layer": 1,
    "select_layer": 1,
    "spatial_vision_layer": 1,
    "vision_feature_layer": 1,
    "vision_select_layer": 1,
}
"""The same for the vision tower, anywhere in the configuration."""

TEXT_OUTPUT_KEYS: Mapping[str, int] = {"accept_hidden_layer": 1}
"""The same for the main tower: what Qwen-Omni's talker takes from the thinker."""

KNOWN_FROM_ONE = frozenset({"kda_layers", "full_attn_layers"})
"""Keys of layer numbers that usually count from 1 (Kimi-Linear's ``linear_attn_config``)."""

SHARING_KEYS = frozenset({"kv_source_layers", "kv_reuse_group"})
"""Keys for the layer whose keys and values a layer uses."""

PREDICTOR_KEYS = (
    "num_nextn_predict_layers",
    "num_mtp_layers",
    "mtp_num_layers",
    "mtp_num_hidden_layers",
)
"""Keys that count layers that predict further tokens and belong to no stack."""

WHOLE_DEPTH_KEYS = ("max_window_layers", "mtp_base_layer_idx")
"""Keys that equal the depth if they mean all layers."""

MAX_AMBIGUOUS_ENTRIES = 3
"""Lists with at most this many entries under unknown keys are assumed unrelated to layers."""


def is_per_layer(key: str, value: object, depth: int) -> bool:
    """Whether a setting has one entry for each of ``depth`` layers."""
    if key in OUTPUT_KEYS or key in VISION_OUTPUT_KEYS or key in STAGE_KEYS:
        return False
    if key == "attention_types":
        return entries(key, value, depth) is not None
    if isinstance(value, str):
        return key in PER_LAYER_KEYS and len(value) == depth
    if not isinstance(value, list) or len(value) != depth:
        return False
    if key in PER_LAYER_KEYS:
        return True
    if _NUMBER_LIST_KEY.search(key) or key in SHARING_KEYS:
        return False
    return depth > MAX_AMBIGUOUS_ENTRIES and not _UNRELATED_LISTS.search(key)


def entries(key: str, value: Any, depth: int) -> list[Any] | None:
    """The entries of such a setting, one per layer; ``None`` if it has fewer or is not a list."""
    if key == "attention_types":
        value = _expanded(value)
    whole = isinstance(value, list | str) and len(value) >= depth
    return list(value)[:depth] if whole else None


def encoded_entries(key: str, old: Any, new: Sequence[Any], depth: int) -> Any:
    """New entries in the form of ``old``; entries of ``old`` beyond ``depth`` (for layers that
    predict further tokens) are kept at the end."""
    if key == "attention_types":
        return [[list(new), 1]]
    if isinstance(old, str):
        return "".join(new) + old[depth:]
    return [*new, *old[depth:]]


def _expanded(value: Any) -> Any:
    """GPT-Neo's ``[[["global", "local"], 12]]`` as 24 entries."""
    try:
        return [kind for kinds, times in value for _ in range(times) for kind in kinds]
    except (TypeError, ValueError):
        return None


def numbers(key: str, section: Mapping[str, Any], depth: int) -> list[int] | None:
    """The layer numbers, from 0, in a setting that lists some of ``depth`` layers; ``None`` if it
    is something else."""
    value = section.get(key)
    if (
        not _NUMBER_LIST_KEY.search(key)
        or key in PER_LAYER_KEYS
        or key in OUTPUT_KEYS
        or key in VISION_OUTPUT_KEYS
    ):
        return None
    items = as_numbers(value)
    if not items and value != []:
        return None
    first = first_number(key, section, depth)
    found = [item - first for item in items]
    right = len(set(found)) == len(found) and all(0 <= i < depth for i in found)
    if not right and key in _DEFAULT_NUMBERS and found == sorted(set(found)) and found[0] >= 0:
        return [i for i in found if i < depth]
    return found if right else None


def as_numbers(value: object) -> list[int]:
    """The numbers of a list or comma-separated string; empty if it contains anything else."""
    items: object = value
    if isinstance(value, str):
        parts = value.split(",")
        items = [int(part) if part.strip().isdecimal() else None for part in parts]
    whole = isinstance(items, list) and all(type(item) is int for item in items)
    return list(items) if isinstance(items, list) and whole else []


def first_number(key: str, section: Mapping[str, Any], depth: int) -> int:
    """The number of the first layer in the list ``key`` of ``section``.

    It is 1 if the list contains the depth, or for keys known to count from 1, unless it or a
    related list contains a 0.
    """
    known = key in KNOWN_FROM_ONE
    lists = KNOWN_FROM_ONE if known else {key}
    found = {item for name in lists for item in as_numbers(section.get(name))}
    return int((known or depth in found) and 0 not in found)


def is_by_number(key: str, value: object, depth: int) -> bool:
    """Whether a setting is an object keyed by layer number (``per_layer_config``)."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and "label" not in key
        and all(str(item).isdecimal() and int(item) < depth for item in value)
    )
