"""Rewrites the donor's configuration for the layers of the output."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from mergeloom.planners.output.layers.constants import preserve_constants
from mergeloom.planners.output.layers.counts import set_counts, set_predictors
from mergeloom.planners.output.layers.entries import rewrite_entries
from mergeloom.planners.output.layers.kinds import preserve_kinds, take_window, warn_of_mixed_kinds
from mergeloom.planners.output.layers.layer_outputs import (
    check_sharing,
    renumber_outputs,
    renumber_sharing,
)
from mergeloom.planners.output.layers.locations import object_at
from mergeloom.planners.output.layers.stack import Edit, RestackedTower, RewrittenConfig
from mergeloom.planners.output.layers.unexplained import refuse_stages, refuse_unexplained


def rewrite_layers(config: Mapping[str, Any], towers: Sequence[RestackedTower]) -> RewrittenConfig:
    """Rewrite the donor's ``config`` for an output with other layers.

    Counts, lists and rules are adjusted; what cannot be adjusted is refused or warned about.
    """
    result = RewrittenConfig(copy.deepcopy(dict(config)))
    for tower in towers:
        edit = Edit(result, tower, towers)
        warn_of_mixed_kinds(edit)
        set_predictors(edit)
        if tower.is_unchanged:
            refuse_unexplained(edit)  # layers of another number may be merged with the donor's
            continue
        if tower.donor.location is None:
            if tower.depth != tower.donor.depth:
                edit.refuse(
                    f"the config.json of '{tower.donor.model}' has no object that describes "
                    f"the {tower.donor.depth} layers of '{tower.name}' (its counts differ), so "
                    f"that there may be {tower.depth} of them",
                    "correct them, or keep all its layers",
                )
            continue
        set_counts(edit)
        rewrite_entries(edit)
        renumber_outputs(edit)
        shares = renumber_sharing(edit)
        take_window(edit)
        preserve_kinds(edit, shares)
        check_sharing(edit)
        preserve_constants(edit)
        _repeat(edit)
        refuse_unexplained(edit)
        refuse_stages(edit)
    return result


def _repeat(edit: Edit) -> None:
    """Apply the same changes to objects that repeat the tower's settings."""
    location = edit.donor.location
    for path, _ in location.repetitions if location is not None else ():
        other = object_at(edit.result.config, path)
        for key, value in edit.section.items():
            if key not in edit.donor.section:
                other.setdefault(key, copy.deepcopy(value))
            elif value != edit.donor.section[key] and other.get(key) == edit.donor.section[key]:
                other[key] = copy.deepcopy(value)
