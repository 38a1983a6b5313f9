"""Layer kinds by rules: each output layer must have the kind of its source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from mergeloom.planners.output.layers import keys
from mergeloom.planners.output.layers.rules import FULL, LAYERS, LINEAR, SLIDING, Kinds, Rule
from mergeloom.planners.output.layers.stack import Edit, SourceLayer


def preserve_kinds(edit: Edit, shares: bool) -> None:
    """Ensure that every rule of the donor gives each output layer the kind of its source: by other
    settings, or by a list if transformers reads one; otherwise refuse.

    Unless the output ``shares`` keys and values as the donor does, the rules of that are skipped.
    """
    for rule in edit.donor.rules:
        if not shares and keys.SHARING_KEYS.intersection(rule.keys):
            continue
        wanted = _source_kinds(edit, rule)
        if wanted is not None:
            _preserve(edit, rule, wanted)


def _source_kinds(edit: Edit, rule: Rule) -> Kinds | None:
    wanted: Kinds = []
    for origin in edit.tower.origins:
        kinds = origin.description.kinds(rule.name)
        if kinds is None or origin.layer >= len(kinds):
            if edit.donor.kinds(rule.name) is not None:
                edit.warn(
                    f"which {rule.name} the layers of '{origin.description.model}' have is not "
                    f"known: its config.json does not say it as that of '{edit.donor.model}' does"
                )
            return None
        wanted.append(kinds[origin.layer])
    return wanted


def _preserve(edit: Edit, rule: Rule, wanted: Kinds) -> None:
    listed = rule.listed and edit.donor.lists(rule.name)
    if not listed and rule.of(edit.section, edit.tower.depth) != wanted:
        thresholds = _thresholds(edit, rule, wanted)
        settings = thresholds if thresholds is not None else rule.settings(wanted)
        if settings is None:
            edit.refuse(
                _conflict_text(edit, rule, wanted),
                "choose layer ranges that keep each kind in its place",
            )
            return
        rules = rule.described(edit.section)
        if thresholds is None and rule.listed:
            _warn_of_own_code(edit, rule)
        for key, value in _in_donors_form(edit, settings).items():
            note = f"given layer by layer, as {rules} would give other kinds"
            edit.set(edit.path, key, value, note if thresholds is None else None)
    elif listed and (thresholds := _thresholds(edit, rule, wanted)) is not None:
        for key, value in _in_donors_form(
            edit, thresholds
        ).items():  # for programs that only know the rule
            edit.set(edit.path, key, value)
    if rule.last is not None and wanted[-1] != rule.last:
        edit.refuse(
            f"the last layer of the output's '{edit.tower.name}' is made from "
            f"{edit.tower.origins[-1]}, which has '{wanted[-1]}', and the last layer of a "
            f"{edit.donor.family} always has '{rule.last}'",
            "end with a layer that has it",
        )


def _warn_of_own_code(edit: Edit, rule: Rule) -> None:
    """Warn of a list that transformers reads, for a model whose repository's own code may not."""
    if edit.donor.config.get("auto_map"):
        edit.warn(
            f"'{rule.name}' is written, since {rule.described(edit.section)} would give other "
            "kinds "
            f"of layers: transformers reads it, the code in the repository of '{edit.donor.model}' "
            "('auto_map') may only know the rule"
        )


def _in_donors_form(edit: Edit, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings in the donor's form, which may be a list of equal numbers for a number."""
    own = edit.donor.section
    return {
        key: [value] * len(own[key]) if type(value) is int and _is_list(own.get(key)) else value
        for key, value in settings.items()
    }


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def _thresholds(edit: Edit, rule: Rule, wanted: Kinds) -> dict[str, int] | None:
    """Thresholds with which the rule gives these kinds; the current ones if they do."""
    depth = edit.tower.depth

    def choices() -> Iterator[dict[str, int]]:
        yield {}
        for key in rule.thresholds:
            yield from ({key: number} for number in range(depth + 1))
        if len(rule.thresholds) == 2:
            for pair in product(range(depth + 1), repeat=2):
                yield dict(zip(rule.thresholds, pair, strict=True))

    for settings in choices():
        if rule.of({**edit.section, **settings, rule.name: None}, depth) == wanted:
            return settings
    return None


def _conflict_text(edit: Edit, rule: Rule, wanted: Kinds) -> str:
    given = rule.of(edit.section, edit.tower.depth)
    if given is None:
        return (
            f"which {rule.name} the layers of '{edit.tower.origins[0].description.model}' have is "
            "a rule of "
            f"its config.json, and that of '{edit.donor.model}', which the output gets, has none"
        )
    pairs = enumerate(zip(wanted, given, strict=True))
    i, (want, have) = next(item for item in pairs if item[1][0] != item[1][1])
    return (
        f"layer {i} of the output's '{edit.tower.name}' is made from {edit.tower.origins[i]}, "
        f"which is '{want}', and would be '{have}' by {rule.described(edit.section)} in config.json"
    )


_CURRENT_NAMES: dict[str, str] = {
    "attention": FULL,
    "deepseek_sparse_attention": "indexed_attention",
    "mamba": LINEAR,
    "qwen_sparse_attention": "indexed_attention",
}
"""Current transformers names for layer kinds, by old name."""


def take_window(edit: Edit) -> None:
    """Take the sliding window from the source model of layers that have one, if the donor has it
    disabled (``use_sliding_window``, which does not affect layers without one)."""
    own = edit.donor.kinds(LAYERS)
    if own is None or SLIDING in own:
        return
    for i, origin in enumerate(edit.tower.origins):
        kinds = origin.description.kinds(LAYERS) or []
        if origin.layer >= len(kinds) or kinds[origin.layer] != SLIDING:
            continue
        if origin.description.section.get("use_sliding_window"):
            for key in ("use_sliding_window", "sliding_window"):
                if key in origin.description.section:
                    edit.set(edit.path, key, origin.description.section[key])
        elif edit.section.get("sliding_window", 0) is None:
            edit.refuse(
                f"layer {i} of the output's '{edit.tower.name}' is made from {origin}, which "
                f"attends within a window, and the config.json of '{edit.donor.model}', which the "
                "output gets, has none ('sliding_window' is null)",
                f"make '{origin.description.model}' the base model",
            )
        return


def warn_of_mixed_kinds(edit: Edit) -> None:
    """Warn if layers of different kinds, or with different list entries, are merged."""
    ruled = [rule.name for rule in edit.donor.rules]
    listed = [
        key
        for key, value in edit.donor.section.items()
        if keys.is_per_layer(key, value, edit.donor.depth)
    ]
    for name in dict.fromkeys((*ruled, *listed)):
        for i, sources in enumerate(edit.tower.merged):
            found: dict[str, SourceLayer] = {}
            for origin in sources:
                kinds = origin.description.kinds(name)
                if kinds is not None and origin.layer < len(kinds):
                    kind = kinds[origin.layer]
                    kind = _CURRENT_NAMES.get(kind, kind) if isinstance(kind, str) else kind
                    found.setdefault(repr(kind), origin)
            if len(found) > 1:
                (one, first), (other, second), *_ = found.items()
                edit.warn(
                    f"layer {i} of the output's '{edit.tower.name}' is merged from layers of "
                    f"different {name}: {first} has {one}, {second} has {other}"
                )
                break
