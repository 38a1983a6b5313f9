"""Sets the keys that count layers."""

from __future__ import annotations

from collections.abc import Sequence

from mergeloom.planners.models.class_defaults import class_defaults
from mergeloom.planners.output.layers import keys
from mergeloom.planners.output.layers.locations import TowerLocation, is_main_stack, object_at
from mergeloom.planners.output.layers.stack import Edit, RestackedTower


def set_counts(edit: Edit) -> None:
    """Set every count of the tower's layers to the output's depth.

    A count that the donor leaves to its class's default is written where the class reads it. If no
    key counts only this tower, the output is refused.
    """
    location, new = edit.donor.location, edit.tower.depth
    if location is None or edit.donor.depth == new:
        return
    for key in location.counts:
        edit.set(edit.path, key, new)
    _set_passes(edit)
    for path, others in location.repetitions:
        for key in others:
            edit.set(path, key, new)
    for key in keys.WHOLE_DEPTH_KEYS:
        if edit.donor.section.get(key) == edit.donor.depth:
            edit.set(edit.path, key, new)
    if location.counts:
        _refuse_other_depths(edit)
    else:
        _write_default_count(edit)
    if location.side == "encoder":
        _keep_decoder(edit)


def _set_passes(edit: Edit) -> None:
    """Set the number of passes through layers, where it is given beside the number of layers.

    HRM passes several times through each layer of its two stacks and has a cache for each pass.
    """
    old, passes = edit.donor.depth, edit.donor.section.get("num_hidden_layers")
    counts = edit.donor.location.counts if edit.donor.location is not None else ()
    if "num_layers_per_stack" in counts and type(passes) is int and passes % old == 0:
        edit.set(edit.path, "num_hidden_layers", passes // old * edit.tower.depth)


def set_predictors(edit: Edit) -> None:
    """Set the number of layers that predict further tokens, if the output's differs from the
    donor's."""
    donor = edit.donor
    if donor.location is not None and len(donor.tower.beyond) != edit.tower.beyond:
        edit.set(edit.path, donor.predicting_key, edit.tower.beyond)


_CLASS_COUNTS = {
    "qwen2_vl.vision_config": "depth",
    "qwen2_5_vl.vision_config": "depth",
    "glm4v.vision_config": "depth",
}
"""Count keys of families that do not use ``num_hidden_layers``."""


def _write_default_count(edit: Edit) -> None:
    donor, depth = edit.donor, edit.tower.depth
    if any(keys.is_per_layer(key, value, donor.depth) for key, value in donor.section.items()):
        return  # a list is the only count
    sharing = [other for other in edit.towers if _without_count(edit, other)]
    if (
        sharing and "num_layers" in donor.section
    ):  # T5: the decoder's count defaults to the encoder's
        edit.set(edit.path, "num_decoder_layers", depth)
    elif not sharing and edit.path and _is_known(edit) and is_main_stack(donor.tower, edit.path):
        # transformers omits class defaults from inner objects, but writes all values of the
        # outermost: a class without a count there reads none (MobileNet).
        edit.set(edit.path, _CLASS_COUNTS.get(donor.family, "num_hidden_layers"), depth)
    elif not sharing or any(other.depth != depth for other in sharing):
        edit.refuse(
            f"no key of the config.json of '{donor.model}' counts the {donor.depth} layers of "
            f"'{edit.tower.name}' alone, so it cannot state {depth} layers",
            "keep all its layers",
        )


def _is_known(edit: Edit) -> bool:
    """Whether transformers has the class of the object, or of one that it is in."""
    path, config = edit.path, edit.donor.config
    places = [object_at(config, path[:length]) for length in range(len(path) + 1)]
    kinds = [section.get("model_type") for section in places]
    return any(isinstance(kind, str) and class_defaults(kind) is not None for kind in kinds)


def _keep_decoder(edit: Edit) -> None:
    """Give a T5 decoder its own count if it used the encoder's."""
    for other in edit.towers:
        location = other.donor.location
        if _without_count(edit, other) and location is not None and location.side == "decoder":
            if "num_layers" in edit.donor.section:
                edit.set(edit.path, "num_decoder_layers", other.depth)
            elif not location.counts and other.depth != edit.tower.depth:
                _refuse_shared_count(edit, [other])


def _without_count(edit: Edit, other: RestackedTower) -> bool:
    """Whether this tower's count may also be the depth of another tower, which has no own count."""
    location = other.donor.location
    if other is edit.tower or location is None or location.path != edit.path:
        return False
    own = edit.donor.location
    alone = not location.counts or own is None or not own.counts
    return alone and other.donor.depth == edit.donor.depth


def _refuse_other_depths(edit: Edit) -> None:
    """Refuse if a key also counts other towers, with a different depth."""
    own = edit.donor.location
    sharing = [
        other
        for other in edit.towers
        if own is not None and other is not edit.tower and shares_count(own, other.donor.location)
    ]
    if any(other.depth != edit.tower.depth for other in sharing):
        _refuse_shared_count(edit, sharing)


def shares_count(one: TowerLocation, other: TowerLocation | None) -> bool:
    """Whether one key counts the layers at both locations."""
    return other is not None and other.path == one.path and bool({*one.counts} & {*other.counts})


def _refuse_shared_count(edit: Edit, others: Sequence[RestackedTower]) -> None:
    *first, last = sorted(f"'{tower.name}'" for tower in (edit.tower, *others))
    edit.refuse(
        f"one key of the config.json of '{edit.donor.model}' counts the layers of "
        f"{', '.join(first)} and of {last}",
        "give all the same number of layers"
        if first[1:]
        else "give both the same number of layers",
    )
