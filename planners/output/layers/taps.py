"""Layers whose outputs are used elsewhere, and layers that share keys and values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mergeloom.planners.output.layers import keys
from mergeloom.planners.output.layers.described import Description
from mergeloom.planners.output.layers.homes import Path, values, words
from mergeloom.planners.output.layers.rules import LAYERS, LINEAR, Kinds, Rule
from mergeloom.planners.output.layers.stack import Edit, Origin, name


def follow_taps(edit: Edit) -> None:
    """Renumber layers whose outputs are used elsewhere: each must exist; the last copy is used."""
    for path in edit.inner():
        for key, value in values(edit.donor.place, path).items():
            if key in keys.TAPS:
                _tap(edit, (*edit.path, *path), key, value, keys.TAPS[key])
            elif key in keys.STAGES and isinstance(value, list):
                _stages(edit, (*edit.path, *path), key, value)
    elsewhere = keys.WORD_TAPS if edit.tower is edit.towers[0] else {}
    if "vision" in words(edit.donor.tower.prefix) or "vision" in str(edit.path):
        elsewhere = keys.VISION_TAPS
    for path, place in _objects(edit.donor.config, ()) if elsewhere else ():
        for key, value in place.items():
            if key in elsewhere:
                _tap(edit, path, key, value, elsewhere[key])


def _objects(config: Mapping[str, Any], path: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    yield path, config
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _objects(value, (*path, key))


def _tap(edit: Edit, path: Path, key: str, value: Any, first: int) -> None:
    items = value if isinstance(value, list) else [value]
    if not all(type(item) is int for item in items):
        return
    found = _outputs(edit, path, key, items, first)
    if found is not None:
        edit.set(path, key, found if isinstance(value, list) else found[0])


def _outputs(edit: Edit, path: Path, key: str, items: list[int], first: int) -> list[int] | None:
    """New numbers for layer outputs; ``first`` is the number of layer 0's output, and -1 means that
    of the last layer, whichever it is."""
    new = []
    for item in items:
        if item == -1:
            new.append(item)
            continue
        layer = edit.donor.depth + item if item < 0 else item - first
        copies = [i for i, o in enumerate(edit.tower.origins) if o.layer == layer]
        if layer < 0:  # the input of the first layer
            new.append(item)
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


def _stages(edit: Edit, path: Path, key: str, value: list[Any]) -> None:
    """The same for outputs named ``stage1``, ``stage2``, … and the input ``stem``."""
    names = [f"stage{i + 1}" for i in range(edit.donor.depth)]
    if value == ["stem", *names]:
        new = [f"stage{i + 1}" for i in range(edit.tower.depth)]
        edit.set(path, key, ["stem", *new], "one stage for each layer")
        return
    if not all(item in ("stem", *names) for item in value):
        return
    numbers = [0 if item == "stem" else names.index(item) + 1 for item in value]
    found = _outputs(edit, path, key, numbers, 1)
    if found is not None:
        edit.set(path, key, ["stem" if number == 0 else f"stage{number}" for number in found])


def follow_sharing(edit: Edit) -> bool:
    """Renumber the layers whose keys and values other layers use; false if one is missing.

    A layer that uses another's needs a copy of that layer before it, from the same model.
    """
    refused = len(edit.result.refusals)
    for path in edit.inner():
        place = values(edit.donor.place, path)
        if isinstance(sources := place.get("kv_source_layers"), list):
            new = [_nearest(edit, i, sources) for i in range(edit.tower.depth)]
            if all(number is not None for number in new):
                edit.set((*edit.path, *path), "kv_source_layers", new)
        if isinstance(groups := place.get("kv_reuse_group"), list):
            owners = {layer: group[0] for group in groups for layer in group}
            flat = [owners.get(layer, layer) for layer in range(edit.donor.depth)]
            found: dict[int, list[int]] = {}
            for i, origin in enumerate(edit.tower.origins):
                owner = _nearest(edit, i, flat)
                if origin.layer in owners and owner is not None:
                    found.setdefault(owner, []).append(i)
            edit.set((*edit.path, *path), "kv_reuse_group", list(found.values()))
    return len(edit.result.refusals) == refused


def _nearest(edit: Edit, i: int, sources: list[int]) -> int | None:
    """The output layer whose keys and values output layer ``i`` uses."""
    own = edit.tower.origins[i]
    source = sources[own.layer] if own.layer < len(sources) else own.layer
    if source == own.layer:
        return i
    for j in range(i - 1, -1, -1):
        other = edit.tower.origins[j]
        if other.layer == source and other.of is own.of:
            return j
    edit.refuse(
        f"layer {i} of the output's '{edit.tower.name}' is made from {own}, which uses keys and "
        f"values of layer {source}, and no earlier layer corresponds to it",
        "keep both",
    )
    return None


def keep_sharing(edit: Edit) -> None:
    """The same if a rule determines which layers use the keys and values of others."""
    for rule in edit.donor.rules:
        if rule.sharing:
            _keep_lenders(edit, rule)


def _keep_lenders(edit: Edit, rule: Rule) -> None:
    """Check that layers without what a rule shares, such as keys and values, find that of an
    earlier layer, and warn if that is not a copy of the layer they use in their source model."""
    origins, name, what = edit.tower.origins, rule.name, rule.sharing
    before = {id(o.of): _lenders(_traits(o.of, name, range(o.of.depth)), rule) for o in origins}
    traits = [trait for o in origins for trait in _traits(o.of, name, (o.layer,))]
    if any(sharing is None for sharing, _ in traits):
        return  # not known for all layers, which is reported where kinds are compared
    other = []
    for i, lender in enumerate(_lenders(traits, rule)):
        own = origins[i]
        if traits[i][0] == rule.own or traits[i][1] == LINEAR:
            continue
        if lender is None:
            edit.refuse(
                f"layer {i} of the output's '{edit.tower.name}' is made from {own}, which uses "
                f"the {what} of another layer, and no layer of its kind before it has any",
                "keep such a layer",
            )
            return
        was = before[id(own.of)][own.layer]
        if was is not None and (origins[lender].of is not own.of or origins[lender].layer != was):
            other.append((i, lender, was))
    if other:
        i, lender, was = other[0]
        more = f", and so do {len(other) - 1} more layers" if other[1:] else ""
        edit.warn(
            f"layer {i} of the output's '{edit.tower.name}', made from {origins[i]}, uses the "
            f"{what} of {origins[lender]}, and did use those of {Origin(origins[i].of, was)}"
            f"{more}: they compute something else"
        )


def _traits(of: Description, name: str, layers: Sequence[int]) -> list[tuple[Any, Any]]:
    """For each layer, whether it has its own keys and values, and its kind."""
    sharing, types = of.kinds(name) or [], of.kinds(LAYERS) or []

    def of_layer(kinds: Kinds, layer: int) -> Any:
        return kinds[layer] if layer < len(kinds) else None

    return [(of_layer(sharing, layer), of_layer(types, layer)) for layer in layers]


def _lenders(traits: Sequence[tuple[Any, Any]], rule: Rule) -> list[int | None]:
    """For each layer, the one whose keys and values (or whatever a rule shares) it would use: the
    last earlier layer of its kind that has its own."""
    last: dict[Any, int] = {}
    found: list[int | None] = []
    for i, (sharing, kind) in enumerate(traits):
        found.append(last.get(kind))
        if sharing == rule.own:
            last[kind] = i
    return found
