"""Depth: the keys that count layers."""

from __future__ import annotations

from mergeloom.planners.output.layers import keys
from mergeloom.planners.output.layers.stack import Edit, Restacked


def set_counts(edit: Edit) -> None:
    """Set every count of the tower's layers to the output's depth.

    A count that the donor leaves to its class is written where the class reads it. Where no key
    counts this tower alone the output is refused.
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
    if not home.counts:
        _default(edit)
    elif home.side == "encoder":
        _keep_decoder(edit)


_CLASS_COUNTS = {
    "qwen2_vl.vision_config": "depth",
    "qwen2_5_vl.vision_config": "depth",
    "glm4v.vision_config": "depth",
    "nemotron_h": "",
}
"""What families read that do not know ``num_hidden_layers``; empty where a list says all."""


def _default(edit: Edit) -> None:
    depth, donor = edit.tower.depth, edit.donor
    if any(keys.is_one_a_layer(key, value, donor.depth) for key, value in donor.place.items()):
        return  # a list is the only count
    twins = [other for other in edit.towers if other is not edit.tower and _one_count(edit, other)]
    if not twins and donor.family:
        key = _CLASS_COUNTS.get(donor.family, "num_hidden_layers")
        edit.set(edit.path, key, depth)
    elif twins and "num_layers" in donor.place:  # T5: the decoder's is the encoder's unless given
        edit.set(edit.path, "num_decoder_layers", depth)
    elif not twins or any(twin.depth != depth for twin in twins):
        edit.refuse(
            f"no key of the config.json of '{donor.model}' counts the {donor.depth} layers of "
            f"'{edit.tower.name}' alone, so that there may be {depth} of them: keep all its layers"
        )


def _keep_decoder(edit: Edit) -> None:
    """Give a decoder its own count where it has had the encoder's."""
    for other in edit.towers:
        home = other.donor.home
        if other is edit.tower or home is None or home.counts or not _one_count(edit, other):
            continue
        if home.side != "decoder":
            continue
        if "num_layers" in edit.donor.place:
            edit.set(edit.path, "num_decoder_layers", other.depth)
        elif other.depth != edit.tower.depth:
            edit.refuse(
                f"one key of the config.json of '{edit.donor.model}' counts the layers of "
                f"'{edit.tower.name}' and of '{other.name}': give both the same number of layers"
            )


def _one_count(edit: Edit, other: Restacked) -> bool:
    """Whether one key counts the layers of both towers."""
    home = other.donor.home
    return home is not None and home.path == edit.path and other.donor.depth == edit.donor.depth
