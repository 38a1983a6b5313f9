"""Refuses layers that differ in their tensors when nothing in the configuration explains it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeVar

from mergeloom.planners.output.layers import keys
from mergeloom.planners.output.layers.described import Description
from mergeloom.planners.output.layers.locations import nested_object
from mergeloom.planners.output.layers.stack import Edit

_Kind = TypeVar("_Kind", bound=Hashable)


def refuse_unexplained(edit: Edit) -> None:
    """Refuse if layers of the donor differ in their tensors, nothing known in its configuration
    distinguishes them, and an output layer differs from the one that the donor's class creates at
    that number. Only the first and the last layer may differ by position alone."""
    sets = [frozenset(layer) for layer in edit.donor.tower.suffixes]
    if len(set(sets)) == 1:
        return
    known = _kinds(edit, edit.donor)
    kinds: list[Hashable] = known if known is not None else [()] * len(sets)
    depth, new = len(sets), edit.tower.depth
    if _tensors_by_kind(kinds, sets) is not None:
        return
    by_position = _tensors_by_kind(_with_positions(kinds), sets)
    others: dict[str, list[Hashable] | None] = {edit.donor.model: kinds}
    sources = {origin.description.model: origin.description for origin in edit.tower.origins}
    for of in sources.values():
        if of.model not in others:
            others[of.model] = theirs = _kinds(edit, of) if known is not None else None
            more = theirs and _tensors_by_kind(
                _with_positions(theirs), list(map(frozenset, of.tower.suffixes))
            )
            by_position = {**(more or {}), **by_position} if by_position is not None else None
    for i, origin in enumerate(edit.tower.origins):
        theirs = others[origin.description.model]
        if theirs is None:
            continue
        layer = frozenset().union(*(source.suffixes for source in edit.tower.moved_to(i)))
        needed = (
            None
            if by_position is None
            else _at(by_position, theirs[origin.layer], _position(i, new))
        )
        if needed is None and origin.description is not edit.donor:
            continue
        if needed is None and by_position is None and origin.layer == i and new == depth:
            needed = sets[i]
        if needed != layer:
            odd = min(layer ^ (needed or next(s for s in sets if s != layer)))
            told = f"'{odd.lstrip('.')}'"
            why = (
                f"whose tensors differ from those of other layers ({told}), and nothing known in "
                "config.json says which layers are of which kind"
            )
            if needed is not None and by_position is not None:
                place = f"the {_position(i, new)}" if _position(i, new) else "an inner"
                has = "has" if odd in layer else "lacks"
                why = f"which {has} {told}, unlike {place} layer of such a model"
            source = next((s for s in edit.tower.moved_to(i) if odd in s.suffixes), origin)
            edit.refuse(
                f"layer {i} of the output's '{edit.tower.name}' is made from {source}, {why}",
                "keep every layer at its number, or merge whole models",
            )
            return


def refuse_stages(edit: Edit) -> None:
    """Refuse changed stages: each stage has its own width and halves the image."""
    section, depth = edit.donor.section, edit.donor.depth
    for key in keys.WIDTH_KEYS:
        value = section.get(key)
        about = not key.startswith("conv") or "conv" in edit.donor.tower.prefix
        if about and isinstance(value, list) and len(value) == depth:
            edit.refuse(
                f"what '{edit.tower.name}' of '{edit.donor.model}' has {depth} of are stages of "
                f"several widths ('{key}' of config.json), not layers",
                "merge it whole",
            )
            return


def _kinds(edit: Edit, of: Description) -> list[Hashable] | None:
    """The kind of each layer of a model by the rules and lists of the donor's configuration;
    ``None`` if they say nothing about that model's."""
    donor = edit.donor
    columns: list[list[str] | None] = []

    def add(own: Sequence[Any], theirs: Sequence[Any] | None) -> None:
        if len(own) == donor.depth and len(set(map(repr, own))) < max(3, len(own)):
            fits = theirs is not None and len(theirs) == of.depth
            columns.append(list(map(repr, theirs)) if theirs is not None and fits else None)

    for rule in donor.rules:
        if found := donor.kinds(rule.name):
            add(found, of.kinds(rule.name))
    for path in edit.paths():
        for key, value in nested_object(donor.section, path).items():
            if keys.is_per_layer(key, value, donor.depth):
                add(donor.entries(path, key) or (), of.entries(path, key))
            elif (named := donor.numbers(path, key)) is not None:
                own = [i in named for i in range(donor.depth)]
                add(own, _marked(of.numbers(path, key), of.depth))
    if not columns:
        return [()] * of.depth
    if any(column is None for column in columns):
        return None
    return list(zip(*(column for column in columns if column is not None), strict=True))


def _marked(numbers: Sequence[int] | None, depth: int) -> list[bool] | None:
    """Whether each layer is among those with ``numbers``."""
    return None if numbers is None else [i in numbers for i in range(depth)]


def _with_positions(kinds: Sequence[Hashable]) -> list[tuple[Hashable, str]]:
    """The kind and the position of each layer."""
    return [(kind, _position(i, len(kinds))) for i, kind in enumerate(kinds)]


def _position(i: int, depth: int) -> str:
    return "first" if i == 0 else "last" if i == depth - 1 else ""


def _tensors_by_kind(
    kinds: Sequence[_Kind], sets: Sequence[frozenset[str]]
) -> Mapping[_Kind, frozenset[str]] | None:
    """The tensors of each kind, if the kind determines the tensors."""
    found: dict[_Kind, frozenset[str]] = {}
    for kind, layer in zip(kinds, sets, strict=True):
        if found.setdefault(kind, layer) != layer:
            return None
    return found


def _at(
    placed: Mapping[tuple[Hashable, str], frozenset[str]], kind: Hashable, end: str
) -> frozenset[str] | None:
    """The tensors of a layer of a kind at the first or last place, or within; ``None`` if unknown.

    A kind that is not known at an end differs there from within as the others do (the first layer
    of ModernBERT, of whatever kind, has no norm before its attention).
    """
    if (kind, end) in placed:
        return placed[kind, end]
    within = placed.get((kind, ""))
    if within is not None:
        for (other, where), layer in placed.items():
            usual = placed.get((other, ""))
            if where == end and usual is not None and usual != layer:
                return within - (usual - layer) | (layer - usual)
    return within
