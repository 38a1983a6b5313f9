"""Lists with one entry per layer, lists of layer numbers, objects keyed by layer number."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from mergeloom.planners.output.layers import keys
from mergeloom.planners.output.layers.homes import Path, values
from mergeloom.planners.output.layers.stack import Edit, Origin, name


def follow_layers(edit: Edit) -> None:
    """Rewrite per-layer settings: each output layer gets the entry of its source layer, from the
    configuration of that layer's model."""
    for path in edit.inner():
        place = values(edit.donor.place, path)
        for key, value in place.items():
            depth = edit.donor.depth
            if key in keys.SHARING:
                continue
            if keys.is_one_a_layer(key, value, depth) or (
                edit.donor.predicting
                and keys.is_one_a_layer(key, value, depth + edit.donor.predicting)
            ):
                _entries(edit, path, key, value)
            elif keys.is_by_number(key, value, depth):
                _by_number(edit, path, key, value)
            elif edit.donor.numbers(path, key) is not None:
                _numbers(edit, path, key, place)
    _only_elsewhere(edit)


def _entries(edit: Edit, path: Path, key: str, value: Any) -> None:
    found = []
    full = (*edit.path, *path)
    for i, origin in enumerate(edit.tower.origins):
        entries = origin.of.entries(path, key)
        if entries is None:
            edit.warn(
                f"the config.json of '{origin.of.model}' has no '{name(full, key)}': its "
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
    new = keys.encoded(key, value, found, edit.donor.depth)
    edit.set(full, key, new, "each entry from the model that the layer is from")


def _by_number(edit: Edit, path: Path, key: str, value: Mapping[str, Any]) -> None:
    padded = any(number != str(int(number)) for number in value)
    width = len(str(edit.tower.depth - 1)) if padded else 1
    new = {}
    for i, origin in enumerate(edit.tower.origins):
        own = origin.of.by_number(path, key)
        if origin.layer in own:
            new[f"{i:0{width}}"] = copy.deepcopy(own[origin.layer])
    edit.set((*edit.path, *path), key, new, "layer numbers follow the layers")


def _numbers(edit: Edit, path: Path, key: str, place: Mapping[str, Any]) -> None:
    first = keys.first_number(key, place, edit.donor.depth)
    new = [
        i + first for i, origin in enumerate(edit.tower.origins) if _named(edit, origin, path, key)
    ]
    text = ",".join(map(str, new))
    edit.set((*edit.path, *path), key, text if isinstance(place[key], str) else new)


def _named(edit: Edit, origin: Origin, path: Path, key: str) -> bool:
    found = origin.of.numbers(path, key)
    if found is None:
        found = edit.donor.numbers(path, key)
        edit.warn(
            f"the config.json of '{origin.of.model}' has no '{name((*edit.path, *path), key)}': it "
            f"is taken to name the same layers as in '{edit.donor.model}'"
        )
    return origin.layer in (found or ())


def _only_elsewhere(edit: Edit) -> None:
    """Warn of lists that only other models have and that no rule of the donor replaces."""
    if edit.donor.home is None or not edit.donor.home.head:
        return
    for origin in edit.tower.origins:
        for key, value in origin.of.place.items() if origin.of is not edit.donor else ():
            known = {key, keys.ALIASES.get(key)} & edit.donor.place.keys()
            listed = key in keys.LISTS and keys.is_one_a_layer(key, value, origin.of.depth)
            if listed and not known and edit.donor.rule(key) is None:
                edit.warn(
                    f"'{origin.of.model}' lists '{key}' for its layers, and '{edit.donor.model}', "
                    "which the output's config.json is from, does not: the output's lists none"
                )
