"""Keys that count layers."""

from __future__ import annotations

from mergeloom.planners.models.class_defaults import class_defaults
from mergeloom.planners.output.layers import keys
from mergeloom.planners.output.layers.homes import at, is_main_stack
from mergeloom.planners.output.layers.stack import Edit, Restacked


def set_counts(edit: Edit) -> None:
    """Set every count of the tower's layers to the output's depth.

    A count that the donor leaves to its class's default is written where the class reads it. If no
    key counts only this tower, the output is refused.
    """
    home, new = edit.donor.home, edit.tower.depth
    if home is None or edit.donor.depth == new:
        return
    for key in home.counts:
        edit.set(edit.path, key, new)
    for path, others in home.others:
        for key in others:
            edit.set(path, key, new)
    for key in keys.WHOLE:
        if edit.donor.place.get(key) == edit.donor.depth:
            edit.set(edit.path, key, new)
    if home.counts:
        _refuse_other_depths(edit)
    else:
        _default(edit)
    if home.side == "encoder":
        _keep_decoder(edit)


def set_predictors(edit: Edit) -> None:
    """Set the number of layers that predict further tokens, if the output's differs from the
    donor's."""
    donor = edit.donor
    if donor.home is not None and len(donor.tower.beyond) != edit.tower.beyond:
        edit.set(edit.path, donor.predicting_key, edit.tower.beyond)


_CLASS_COUNTS = {
    "qwen2_vl.vision_config": "depth",
    "qwen2_5_vl.vision_config": "depth",
    "glm4v.vision_config": "depth",
}
"""Count keys of families that do not use ``num_hidden_layers``."""


def _default(edit: Edit) -> None:
    donor, depth = edit.donor, edit.tower.depth
    if any(keys.is_one_a_layer(key, value, donor.depth) for key, value in donor.place.items()):
        return  # a list is the only count
    twins = [other for other in edit.towers if _without_count(edit, other)]
    if twins and "num_layers" in donor.place:  # T5: the decoder's count defaults to the encoder's
        edit.set(edit.path, "num_decoder_layers", depth)
    elif not twins and edit.path and _is_known(edit) and is_main_stack(donor.tower, edit.path):
        # transformers omits class defaults from inner objects, but writes all values of the
        # outermost: a class without a count there reads none (MobileNet).
        edit.set(edit.path, _CLASS_COUNTS.get(donor.family, "num_hidden_layers"), depth)
    elif not twins or any(twin.depth != depth for twin in twins):
        edit.refuse(
            f"no key of the config.json of '{donor.model}' counts the {donor.depth} layers of "
            f"'{edit.tower.name}' alone, so it cannot state {depth} layers",
            "keep all its layers",
        )


def _is_known(edit: Edit) -> bool:
    """Whether transformers has the class of the object, or of one that it is in."""
    path, config = edit.path, edit.donor.config
    places = [at(config, path[:length]) for length in range(len(path) + 1)]
    kinds = [place.get("model_type") for place in places]
    return any(isinstance(kind, str) and class_defaults(kind) is not None for kind in kinds)


def _keep_decoder(edit: Edit) -> None:
    """Give a T5 decoder its own count if it used the encoder's."""
    for other in edit.towers:
        home = other.donor.home
        if _without_count(edit, other) and home is not None and home.side == "decoder":
            if "num_layers" in edit.donor.place:
                edit.set(edit.path, "num_decoder_layers", other.depth)
            elif not home.counts and other.depth != edit.tower.depth:
                _one_key(edit, other)


def _without_count(edit: Edit, other: Restacked) -> bool:
    """Whether this tower's count may also be the depth of another tower, which has no own count."""
    home = other.donor.home
    if other is edit.tower or home is None or home.path != edit.path:
        return False
    own = edit.donor.home
    alone = not home.counts or own is None or not own.counts
    return alone and other.donor.depth == edit.donor.depth


def _refuse_other_depths(edit: Edit) -> None:
    """Refuse if a key also counts another tower, with a different depth."""
    own = edit.donor.home
    for other in edit.towers:
        home = other.donor.home
        if other is edit.tower or home is None or own is None or home.path != own.path:
            continue
        if set(home.counts) & set(own.counts) and other.depth != edit.tower.depth:
            _one_key(edit, other)


def _one_key(edit: Edit, other: Restacked) -> None:
    first, second = sorted((edit.tower.name, other.name))
    edit.refuse(
        f"one key of the config.json of '{edit.donor.model}' counts the layers of '{first}' and of "
        f"'{second}'",
        "give both the same number of layers",
    )
