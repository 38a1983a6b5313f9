"""The PEFT configuration of a combined adapter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mergeloom.planners.models.adapter import Adapter

_ALIKE = ("fan_in_fan_out", "task_type")
"""Settings for reading the adapter, which must agree."""

_OF_TRAINING: Mapping[str, Any] = {
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
"""Reset values of training settings: the result was not trained, its scale is 1, and its modules
are listed."""


def adapter_config(
    adapters: Sequence[Adapter],
    ranks: Mapping[str, int],
    base: str | None,
    saved: Iterable[str],
    biased: bool,
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """``adapter_config.json``: the first adapter's, for modules of these ``ranks``.

    ``saved`` are the modules with complete weights; ``biased`` says whether it has biases; ``more``
    are further settings. B·A is added unscaled, so alpha is the rank.
    """
    first = adapters[0].checkpoint.config
    usual = Counter(ranks.values()).most_common(1)[0][0] if ranks else 8
    others = {name: rank for name, rank in sorted(ranks.items()) if rank != usual}
    config = dict(first)
    config |= {key: value for key, value in _OF_TRAINING.items() if key in first}
    config |= {
        "base_model_name_or_path": base,
        "inference_mode": True,
        "lora_alpha": usual,
        "r": usual,
        "alpha_pattern": others,
        "rank_pattern": dict(others),
        "target_modules": _targets(adapters, ranks),
        "modules_to_save": sorted(saved) or None,
        **more,
    }
    config["bias"] = next((b for b in map(_bias, adapters) if b != "none"), "none")
    if "lora_bias" in first or biased:
        config["lora_bias"] = biased
    return config


def disagreements(adapters: Sequence[Adapter]) -> Iterator[tuple[str, str, Any, str, Any]]:
    """Settings that differ from the first adapter's: key, then two adapters with their values."""
    first, *others = adapters
    for key in _ALIKE:
        value = first.checkpoint.config.get(key)
        for other in others:
            found = other.checkpoint.config.get(key)
            if (found or None) != (value or None):
                yield key, first.name, value, other.name, found


def _targets(adapters: Sequence[Adapter], ranks: Mapping[str, int]) -> list[str]:
    """The target modules: by the last parts of their names, as listed by the adapters, if that is
    exact; otherwise one by one."""
    together: set[str] = set()
    for adapter in adapters:
        config = adapter.checkpoint.config
        targets = config.get("target_modules")
        narrowed = any(config.get(key) for key in ("layers_to_transform", "exclude_modules"))
        if narrowed or not isinstance(targets, list):
            return sorted(ranks)
        together.update(each for each in targets if isinstance(each, str))
    if all(any(_is_meant(module, each) for each in together) for module in ranks):
        return sorted(together)
    return sorted(ranks)


def _is_meant(module: str, target: str) -> bool:
    return module == target or module.endswith(f".{target}")


def _bias(adapter: Adapter) -> str:
    found = adapter.checkpoint.config.get("bias")
    return found if isinstance(found, str) else "none"
