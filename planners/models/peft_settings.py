"""Kinds and settings of adapters in ``adapter_config.json``: which of them can be merged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergeloom.engine.base.errors import CheckpointError

WITH_PEFT = "merge it into its model with peft (merge_and_unload) first"
"""Remedy for adapters that only their own library can apply."""

_SUPPORTED = {"LORA", "LN_TUNING", "TRAINABLE_TOKENS"}

_TOKENS = "it adds tokens that are no text to the input"
_BY_INPUT = "what it adds depends on the input"
_IN_NO_WEIGHTS: Mapping[str, str] = {
    **dict.fromkeys(("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING"), _TOKENS),
    **dict.fromkeys(("PREFIX_TUNING", "CPT", "CARTRIDGE"), _TOKENS),
    **dict.fromkeys(("XLORA", "POLY", "ADAPTION_PROMPT", "SHADOW", "LILY"), _BY_INPUT),
}
"""Kinds that no weights of the model can express, and why; peft cannot merge them either."""

_UNSUPPORTED: Mapping[str, tuple[str, bool]] = {
    "use_qalora": ("it is a QALoRA adapter, whose matrix A acts on groups of inputs", True),
    "use_bdlora": ("one of its matrices is block-diagonal (BD-LoRA)", False),
    "kasa_config": ("it also takes the smallest singular values from the weights (KaSA)", True),
    "alora_invocation_tokens": ("it acts only after certain tokens (aLoRA), unlike weights", False),
    "arrow_config": ("it chooses between adapters at run time (Arrow)", False),
    "layer_replication": (
        "it is for a model whose layers PEFT stacks first (layer_replication)",
        True,
    ),
    "enable_lora": ("it changes parts of fused layers, as peft before 0.3 did", False),
    "megatron_config": ("it is for modules of Megatron", False),
}
"""Settings with which an adapter cannot be merged: why, and whether peft can merge it."""

_BASE_CHANGING = ("pissa", "olora", "loftq", "corda", "lora_ga")
"""Initialisations that subtract the initial adapter from the base model, and so change it."""

_READ = {
    *("alpha_pattern", "base_model_name_or_path", "fan_in_fan_out", "init_lora_weights"),
    *("lora_alpha", "peft_type", "peft_version", "r", "rank_pattern", "revision"),
    *("target_parameters", "token_indices", "trainable_token_indices", "use_rslora"),
}
_WITHOUT_EFFECT = {
    *("auto_mapping", "bias", "corda_config", "ensure_weight_tying", "eva_config"),
    *("exclude_modules", "inference_mode", "init_weights", "layers_pattern"),
    *("layers_to_transform", "loftq_config", "lora_bias", "lora_dropout", "lora_ga_config"),
    *("megatron_core", "modules_to_save", "monteclora_config", "qalora_group_size"),
    *("runtime_config", "target_modules", "task_type", "use_dora", "velora_config"),
    *("merge_weights", "target_modules_to_tie"),
}
"""Settings of training, and settings that the tensors of the adapter show."""


def check_kind(directory: str, config: Mapping[str, Any]) -> None:
    """Check that an adapter of this configuration can be merged.

    Raises:
        CheckpointError: it cannot, for any of the reasons above.
    """
    kind = config.get("peft_type")
    if not isinstance(kind, str) or not kind.isprintable():
        raise CheckpointError(
            f"'{directory}' is an adapter of an unknown kind: its configuration has no 'peft_type'",
            remedy="write the one that it was trained as, like LORA, if peft made it",
        )
    if kind in _IN_NO_WEIGHTS:
        raise CheckpointError(
            f"'{directory}' is an adapter of the kind {kind}, which cannot be merged into weights: "
            f"{_IN_NO_WEIGHTS[kind]}",
            remedy="leave it out",
        )
    if kind not in _SUPPORTED:
        raise CheckpointError(
            f"'{directory}' is an adapter of the kind {kind[:40]}, and only LoRA, DoRA, rsLoRA, "
            "trained tokens and norms can be merged",
            remedy=WITH_PEFT,
        )
    for key, (reason, mergeable) in _UNSUPPORTED.items():
        if config.get(key):
            raise CheckpointError(
                f"'{directory}' cannot be merged: {reason}",
                remedy=WITH_PEFT if mergeable else "leave it out",
            )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_BASE_CHANGING):
        raise CheckpointError(
            f"'{directory}' was initialised by '{start[:40]}', which also changes the base model, "
            "so it does not fit the original one",
            remedy="save it again with peft's path_initial_model_for_weight_conversion",
        )


def unknown_settings(config: Mapping[str, Any]) -> list[str]:
    """Settings that are not known, as of a newer version of peft, and are not off."""
    known = _READ | _WITHOUT_EFFECT | set(_UNSUPPORTED)
    return sorted(key for key, value in config.items() if key not in known and _is_on(value))


def _is_on(value: object) -> bool:
    return value is not None and value is not False and value not in ({}, [], "")
