"""Refuses layers that differ in their tensors when nothing in the configuration explains it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from mergeloom.planners.output.layers import keys
from mergeloom.planners.output.layers.homes import values
from mergeloom.planners.output.layers.stack import Edit


def refuse_unexplained(edit: Edit) -> None:
    """Refuse if layers of the donor differ in their tensors, nothing known in its configuration
    distinguishes them, and an output layer differs from the one that the donor's class creates at
    that number. Only the first and the last layer may differ by position alone."""
    sets = [frozenset(layer) for layer in edit.donor.tower.suffixes]
    if len(set(sets)) == 1:
        return
    kinds = _kinds(edit)
    depth, new = len(sets), edit.tower.depth
    if _function(kinds, sets) is not None:
        return
    placed = _function([(kind, _end(i, depth)) for i, kind in enumerate(kinds)], sets)
    inner = (
        {} if placed is None else {kind: placed[kind, ""] for kind in kinds if (kind, "") in placed}
    )
    for i, origin in enumerate(edit.tower.origins):
        if origin.of is not edit.donor:
            continue
        kind = kinds[origin.layer]
        needed = (placed or {}).get((kind, _end(i, new)), inner.get(kind))
        if needed is None and placed is None and origin.layer == i and new == depth:
            needed = sets[i]
        if needed != sets[origin.layer]:
            odd = sorted(
                sets[origin.layer] ^ (needed or next(s for s in sets if s != sets[origin.layer]))
            )
            edit.refuse(
                f"layer {i} of the output's '{edit.tower.name}' is made from {origin}, whose "
                f"tensors differ from those of other layers ('{odd[0].lstrip('.')}'), and nothing "
                "known in config.json says which layers are of which kind",
                "keep every layer at its number, or merge whole models",
            )
            return


def refuse_stages(edit: Edit) -> None:
    """Refuse changed stages: each stage has its own width and halves the image."""
    place, depth = edit.donor.place, edit.donor.depth
    for key in keys.WIDTHS:
        value = place.get(key)
        about = not key.startswith("conv") or "conv" in edit.donor.tower.prefix
        if about and isinstance(value, list) and len(value) == depth:
            edit.refuse(
                f"what '{edit.tower.name}' of '{edit.donor.model}' has {depth} of are stages of "
                f"several widths ('{key}' of config.json), not layers",
                "merge it whole",
            )
            return


def _kinds(edit: Edit) -> list[Hashable]:
    """The kind of each layer by rules and lists of the donor's configuration."""
    donor = edit.donor
    columns: list[list[str]] = [
        list(map(repr, found)) for rule in donor.rules if (found := donor.kinds(rule.name))
    ]
    for path in edit.inner():
        for key, value in values(donor.place, path).items():
            if keys.is_one_a_layer(key, value, donor.depth):
                columns.append(list(map(repr, donor.entries(path, key) or ())))
            elif (named := donor.numbers(path, key)) is not None:
                columns.append([str(i in named) for i in range(donor.depth)])
    telling = [c for c in columns if len(c) == donor.depth and len(set(c)) < max(3, len(c))]
    rows = zip(*telling, strict=True)
    return list(rows) or [()] * donor.depth


def _end(i: int, depth: int) -> str:
    return "first" if i == 0 else "last" if i == depth - 1 else ""


def _function(
    kinds: Sequence[Hashable], sets: Sequence[frozenset[str]]
) -> Mapping[Hashable, frozenset[str]] | None:
    """The tensors of each kind, if the kind determines the tensors."""
    found: dict[Hashable, frozenset[str]] = {}
    for kind, layer in zip(kinds, sets, strict=True):
        if found.setdefault(kind, layer) != layer:
            return None
    return found
