"""Rewrites the donor's configuration for the layers of the output."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from mergeloom.planners.output.layers.alike import refuse_stages, refuse_unexplained
from mergeloom.planners.output.layers.constants import keep_constants
from mergeloom.planners.output.layers.counts import set_counts, set_predictors
from mergeloom.planners.output.layers.entries import follow_layers
from mergeloom.planners.output.layers.homes import at
from mergeloom.planners.output.layers.kinds import bring_window, keep_kinds, warn_of_mixtures
from mergeloom.planners.output.layers.stack import Edit, Restacked, Rewritten
from mergeloom.planners.output.layers.taps import follow_sharing, follow_taps, keep_sharing


def rewrite_layers(config: Mapping[str, Any], towers: Sequence[Restacked]) -> Rewritten:
    """Rewrite the donor's ``config`` for an output with other layers.

    Counts, lists and rules are adjusted; what cannot be adjusted is refused or warned about.
    """
    result = Rewritten(copy.deepcopy(dict(config)))
    for tower in towers:
        edit = Edit(result, tower, towers)
        warn_of_mixtures(edit)
        set_predictors(edit)
        if tower.unchanged:
            continue
        if tower.donor.home is None:
            if tower.depth != tower.donor.depth:
                edit.refuse(
                    f"the config.json of '{tower.donor.model}' has no object that describes "
                    f"the {tower.donor.depth} layers of '{tower.name}' (its counts differ), so "
                    f"that there may be {tower.depth} of them",
                    "correct them, or keep all its layers",
                )
            continue
        set_counts(edit)
        follow_layers(edit)
        follow_taps(edit)
        shares = follow_sharing(edit)
        bring_window(edit)
        keep_kinds(edit, shares)
        keep_sharing(edit)
        keep_constants(edit)
        _repeat(edit)
        refuse_unexplained(edit)
        refuse_stages(edit)
    return result


def _repeat(edit: Edit) -> None:
    """Apply the same changes to objects that repeat the tower's settings."""
    home = edit.donor.home
    for path, _ in home.others if home is not None else ():
        other = at(edit.result.config, path)
        for key, value in edit.place.items():
            if key not in edit.donor.place:
                other.setdefault(key, copy.deepcopy(value))
            elif value != edit.donor.place[key] and other.get(key) == edit.donor.place[key]:
                other[key] = copy.deepcopy(value)
