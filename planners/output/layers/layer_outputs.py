"""Layers whose outputs are used elsewhere, and layers that share keys and values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mergeloom.planners.output.layers import keys
from mergeloom.planners.output.layers.described import Description
from mergeloom.planners.output.layers.locations import Path, nested_object, words
from mergeloom.planners.output.layers.rules import LAYERS, LINEAR, Kinds, Rule
from mergeloom.planners.output.layers.stack import Edit, SourceLayer, name


def renumber_outputs(edit: Edit) -> None:
    """Renumber layers whose outputs are used elsewhere: each must exist; the last copy is used."""
    for path in edit.paths():
        for key, value in nested_object(edit.donor.section, path).items():
            if key in keys.OUTPUT_KEYS:
                _renumber_outputs(edit, (*edit.path, *path), key, value, keys.OUTPUT_KEYS[key])
            elif key in keys.STAGE_KEYS and isinstance(value, list):
                _renumber_stages(edit, (*edit.path, *path), key, value)
    elsewhere = keys.TEXT_OUTPUT_KEYS if edit.tower is edit.towers[0] else {}
    if "vision" in words(edit.donor.tower.prefix) or "vision" in str(edit.path):
        elsewhere = keys.VISION_OUTPUT_KEYS
    for path, section in _objects(edit.donor.config, ()) if elsewhere else ():
        for key, value in section.items():
            if key in elsewhere:
                _renumber_outputs(edit, path, key, value, elsewhere[key])
            elif key == "deepstack_layer_map" and elsewhere is keys.VISION_OUTPUT_KEYS:
                _renumber_pairs(edit, path, key, value)


def _objects(config: Mapping[str, Any], path: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    yield path, config
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _objects(value, (*path, key))


def _renumber_outputs(edit: Edit, path: Path, key: str, value: Any, first: int) -> None:
    items = value if isinstance(value, list) else [value]
    if not all(type(item) is int for item in items):
        return
    found = _new_numbers(edit, path, key, items, first)
    if found is not None:
        edit.set(path, key, found if isinstance(value, list) else found[0])


def _renumber_pairs(edit: Edit, path: Path, key: str, value: Any) -> None:
    """The same for pairs of a layer of the vision tower and one of the text (Granite Vision 4)."""
    pairs = value if isinstance(value, list) else []
    if not all(isinstance(p, list) and [type(item) for item in p] == [int, int] for p in pairs):
        return
    found = _new_numbers(edit, path, key, [pair[0] for pair in pairs], 1)
    if found is not None:
        new = [[layer, pair[1]] for layer, pair in zip(found, pairs, strict=True)]
        edit.set(path, key, new)


def _new_numbers(
    edit: Edit, path: Path, key: str, items: list[int], first: int
) -> list[int] | None:
    """New numbers for layer outputs; ``first`` is the number of layer 0's output, and -1 means that
    of the last layer, whichever it is."""
    new = []
    for item in items:
        if item == -1:
            new.append(item)
            continue
        layer = edit.donor.depth + item if item < 0 else item - first
        copies = [i for i, o in enumerate(edit.tower.origins) if _is_used(o, item, first)]
        if layer < 0 or layer >= max(edit.donor.depth, edit.tower.depth):
            new.append(item)  # the input of the first layer, or none
        elif not copies:
            edit.refuse(
                f"'{name(path, key)}' of config.json takes the output of layer {layer} of "
                f"'{edit.tower.name}', and no layer of the output corresponds to it",
                "keep that layer",
            )
            return None
        else:
            new.append(copies[-1] - edit.tower.depth if item < 0 else copies[-1] + first)
    return new


def _is_used(origin: SourceLayer, item: int, first: int) -> bool:
    """Whether a number means this layer in its model; negative ones count from its end."""
    return origin.layer == (origin.description.depth + item if item < 0 else item - first)


def _renumber_stages(edit: Edit, path: Path, key: str, value: list[Any]) -> None:
    """The same for outputs named ``stage1``, ``stage2``, … and the input ``stem``."""
    names = [f"stage{i + 1}" for i in range(edit.donor.depth)]
    if value == ["stem", *names]:
        new = [f"stage{i + 1}" for i in range(edit.tower.depth)]
        edit.set(path, key, ["stem", *new], "one stage for each layer")
        return
    if not all(item in ("stem", *names) for item in value):
        return
    numbers = [0 if item == "stem" else names.index(item) + 1 for item in value]
    found = _new_numbers(edit, path, key, numbers, 1)
    if found is not None:
        edit.set(path, key, ["stem" if number == 0 else f"stage{number}" for number in found])


def renumber_sharing(edit: Edit) -> bool:
    """Renumber the layers whose keys and values other layers use; false if one is missing.

    A layer that uses another's needs a copy of that layer before it, from the same model.
    """
    refused = len(edit.result.refusals)
    for path in edit.paths():
        section = nested_object(edit.donor.section, path)
        if isinstance(sources := section.get("kv_source_layers"), list):
            new = [_layer_used(edit, i, sources) for i in range(edit.tower.depth)]
            if all(number is not None for number in new):
                edit.set((*edit.path, *path), "kv_source_layers", new)
        if isinstance(groups := section.get("kv_reuse_group"), list):
            owners = {layer: group[0] for group in groups for layer in group}
            flat = [owners.get(layer, layer) for layer in range(edit.donor.depth)]
            found: dict[int, list[int]] = {}
            for i, origin in enumerate(edit.tower.origins):
                owner = _layer_used(edit, i, flat)
                if origin.layer in owners and owner is not None:
                    found.setdefault(owner, []).append(i)
            edit.set((*edit.path, *path), "kv_reuse_group", list(found.values()))
    return len(edit.result.refusals) == refused


def _layer_used(edit: Edit, i: int, sources: list[int]) -> int | None:
    """The output layer whose keys and values output layer ``i`` uses."""
    own = edit.tower.origins[i]
    source = sources[own.layer] if own.layer < len(sources) else own.layer
    if source == own.layer:
        return i
    for j in range(i - 1, -1, -1):
        other = edit.tower.origins[j]
        if other.layer == source and other.description is own.description:
            return j
    edit.refuse(
        f"layer {i} of the output's '{edit.tower.name}' is made from {own}, which uses keys and "
        f"values of layer {source}, and no earlier layer corresponds to it",
        "keep both",
    )
    return None


def check_sharing(edit: Edit) -> None:
    """The same if a rule determines which layers use the keys and values of others."""
    for rule in edit.donor.rules:
        if rule.sharing:
            _check_layers_used(edit, rule)


def _check_layers_used(edit: Edit, rule: Rule) -> None:
    """Check that layers without what a rule shares, such as keys and values, find that of an
    earlier layer, and warn if that is not a copy of the layer they use in their source model."""
    origins, name, what = edit.tower.origins, rule.name, rule.sharing
    before = {
        id(o.description): _layers_used(
            _sharing_and_kind(o.description, name, range(o.description.depth)), rule
        )
        for o in origins
    }
    found_traits = [
        trait for o in origins for trait in _sharing_and_kind(o.description, name, (o.layer,))
    ]
    if any(sharing is None for sharing, _ in found_traits):
        return  # not known for all layers, which is reported where kinds are compared
    other = []
    for i, used in enumerate(_layers_used(found_traits, rule)):
        own = origins[i]
        if found_traits[i][0] == rule.own or found_traits[i][1] == LINEAR:
            continue
        if used is None:
            edit.refuse(
                f"layer {i} of the output's '{edit.tower.name}' is made from {own}, which uses "
                f"the {what} of another layer, and no layer of its kind before it has any",
                "keep such a layer",
            )
            return
        was = before[id(own.description)][own.layer]
        if was is not None and (
            origins[used].description is not own.description or origins[used].layer != was
        ):
            other.append((i, used, was))
    if other:
        i, used, was = other[0]
        more = f", and so do {len(other) - 1} more layers" if other[1:] else ""
        edit.warn(
            f"layer {i} of the output's '{edit.tower.name}', made from {origins[i]}, uses the "
            f"{what} of {origins[used]}, and did use those of "
            f"{SourceLayer(origins[i].description, was)}{more}: they compute something else"
        )


def _sharing_and_kind(of: Description, name: str, layers: Sequence[int]) -> list[tuple[Any, Any]]:
    """For each layer, whether it has its own keys and values, and its kind."""
    sharing, types = of.kinds(name) or [], of.kinds(LAYERS) or []

    def of_layer(kinds: Kinds, layer: int) -> Any:
        return kinds[layer] if layer < len(kinds) else None

    return [(of_layer(sharing, layer), of_layer(types, layer)) for layer in layers]


def _layers_used(found_traits: Sequence[tuple[Any, Any]], rule: Rule) -> list[int | None]:
    """For each layer, the one whose keys and values (or whatever a rule shares) it would use: the
    last earlier layer of its kind that has its own."""
    last: dict[Any, int] = {}
    found: list[int | None] = []
    for i, (sharing, kind) in enumerate(found_traits):
        found.append(last.get(kind))
        if sharing == rule.own:
            last[kind] = i
    return found
