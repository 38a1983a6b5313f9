"""The PEFT configuration of a combined adapter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mergeloom.planners.models.adapter import Adapter

_MUST_AGREE = ("fan_in_fan_out", "task_type")
"""Settings that say how to read an adapter; they must agree."""

_TRAINING_SETTINGS: Mapping[str, Any] = {
    "alora_invocation_tokens": None,
    "corda_config": None,
    "eva_config": None,
    "exclude_modules": None,
    "inference_mode": True,
    "init_lora_weights": True,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "target_parameters": None,
    "use_dora": False,
    "use_rslora": False,
}
"""Values that training settings get: the result was not trained, its scale is 1, and its modules
are listed."""


def adapter_config(
    adapters: Sequence[Adapter],
    ranks: Mapping[str, int],
    base: str | None,
    saved: Iterable[str],
    has_biases: bool,
    further_settings: Mapping[str, Any],
) -> dict[str, Any]:
    """``adapter_config.json``: the first adapter's, for modules of these ``ranks``.

    ``saved`` are the modules with complete weights; ``has_biases`` says whether the adapter has
    biases. B·A is added unscaled, so alpha is the rank.
    """
    first = adapters[0].checkpoint.config
    usual = Counter(ranks.values()).most_common(1)[0][0] if ranks else 8
    others = {name: rank for name, rank in sorted(ranks.items()) if rank != usual}
    config = dict(first)
    config |= {key: value for key, value in _TRAINING_SETTINGS.items() if key in first}
    config |= {
        "base_model_name_or_path": base,
        "inference_mode": True,
        "lora_alpha": usual,
        "r": usual,
        "alpha_pattern": others,
        "rank_pattern": dict(others),
        "target_modules": _target_modules(adapters, ranks),
        "modules_to_save": sorted(saved) or None,
        **further_settings,
    }
    config["bias"] = next((b for b in map(_bias, adapters) if b != "none"), "none")
    if "lora_bias" in first or has_biases:
        config["lora_bias"] = has_biases
    return config


def disagreements(adapters: Sequence[Adapter]) -> Iterator[tuple[str, str, Any, str, Any]]:
    """Settings that differ from the first adapter's: key, then two adapters with their values."""
    first, *others = adapters
    for key in _MUST_AGREE:
        value = first.checkpoint.config.get(key)
        for other in others:
            found = other.checkpoint.config.get(key)
            if (found or None) != (value or None):
                yield key, first.name, value, other.name, found


def _target_modules(adapters: Sequence[Adapter], ranks: Mapping[str, int]) -> list[str]:
    """The target modules: the last parts of names that the adapters list, if exactly these modules
    match them; otherwise full names."""
    together: set[str] = set()
    for adapter in adapters:
        config = adapter.checkpoint.config
        targets = config.get("target_modules")
        narrowed = any(config.get(key) for key in ("layers_to_transform", "exclude_modules"))
        if narrowed or not isinstance(targets, list):
            return sorted(ranks)
        together.update(each for each in targets if isinstance(each, str))
    if all(any(_targets_module(module, each) for each in together) for module in ranks):
        return sorted(together)
    return sorted(ranks)


def _targets_module(module: str, target: str) -> bool:
    return module == target or module.endswith(f".{target}")


def _bias(adapter: Adapter) -> str:
    found = adapter.checkpoint.config.get("bias")
    return found if isinstance(found, str) else "none"
