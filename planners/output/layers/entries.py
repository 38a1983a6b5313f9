"""Rewrites lists with one entry per layer, lists of layer numbers, and objects keyed by layer
number."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from mergeloom.planners.output.layers import keys
from mergeloom.planners.output.layers.locations import Path, nested_object
from mergeloom.planners.output.layers.stack import Edit, SourceLayer, name


def rewrite_entries(edit: Edit) -> None:
    """Rewrite per-layer settings: each output layer gets the entry of its source layer, from the
    configuration of that layer's model."""
    for path in edit.paths():
        section = nested_object(edit.donor.section, path)
        for key, value in section.items():
            depth = edit.donor.depth
            if key in keys.SHARING_KEYS:
                continue
            if keys.is_per_layer(key, value, depth) or (
                edit.donor.number_of_predictors
                and keys.is_per_layer(key, value, depth + edit.donor.number_of_predictors)
            ):
                _rewrite_list(edit, path, key, value)
            elif keys.is_by_number(key, value, depth):
                _rewrite_by_number(edit, path, key, value)
            elif edit.donor.numbers(path, key) is not None:
                _rewrite_numbers(edit, path, key, section)
    _warn_of_missing_lists(edit)


def _rewrite_list(edit: Edit, path: Path, key: str, value: Any) -> None:
    found = []
    full = (*edit.path, *path)
    for i, origin in enumerate(edit.tower.origins):
        entries = origin.description.entries(path, key)
        if entries is None:
            edit.warn(
                f"the config.json of '{origin.description.model}' has no '{name(full, key)}': its "
                f"layers are taken to be like those of '{edit.donor.model}' with the same number"
            )
            entries = edit.donor.entries(path, key) or ()
        if origin.layer >= len(entries):
            edit.refuse(
                f"'{name(full, key)}' of config.json has no entry for {origin}, which layer {i} of "
                "the output is made from",
                "add the list to that model's config.json",
            )
            return
        found.append(entries[origin.layer])
    new = keys.encoded_entries(key, value, found, edit.donor.depth)
    edit.set(full, key, new, "each entry from the model that the layer is from")


def _rewrite_by_number(edit: Edit, path: Path, key: str, value: Mapping[str, Any]) -> None:
    padded = any(number != str(int(number)) for number in value)
    width = len(str(edit.tower.depth - 1)) if padded else 1
    new = {}
    for i, origin in enumerate(edit.tower.origins):
        own = origin.description.by_number(path, key)
        if origin.layer in own:
            new[f"{i:0{width}}"] = copy.deepcopy(own[origin.layer])
    edit.set((*edit.path, *path), key, new, "layer numbers follow the layers")


def _rewrite_numbers(edit: Edit, path: Path, key: str, section: Mapping[str, Any]) -> None:
    first = keys.first_number(key, section, edit.donor.depth)
    new = [
        i + first
        for i, origin in enumerate(edit.tower.origins)
        if _is_named(edit, origin, path, key)
    ]
    text = ",".join(map(str, new))
    edit.set((*edit.path, *path), key, text if isinstance(section[key], str) else new)


def _is_named(edit: Edit, origin: SourceLayer, path: Path, key: str) -> bool:
    found = origin.description.numbers(path, key)
    if found is None:
        found = edit.donor.numbers(path, key)
        edit.warn(
            f"the config.json of '{origin.description.model}' has no "
            f"'{name((*edit.path, *path), key)}': it "
            f"is taken to name the same layers as in '{edit.donor.model}'"
        )
    return origin.layer in (found or ())


def _warn_of_missing_lists(edit: Edit) -> None:
    """Warn of lists that only other models have and that no rule of the donor replaces."""
    if edit.donor.location is None or not edit.donor.location.takes_unnamed:
        return
    for origin in edit.tower.origins:
        for key, value in (
            origin.description.section.items() if origin.description is not edit.donor else ()
        ):
            known = {key, keys.ALIASES.get(key)} & edit.donor.section.keys()
            listed = key in keys.PER_LAYER_KEYS and keys.is_per_layer(
                key, value, origin.description.depth
            )
            if listed and not known and edit.donor.rule(key) is None:
                edit.warn(
                    f"'{origin.description.model}' lists '{key}' for its layers, and "
                    f"'{edit.donor.model}', "
                    "which the output's config.json is from, does not: the output's lists none"
                )
