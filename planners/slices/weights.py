"""Warns of weights that are divided by their sum, or are not, with a probably unintended effect."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mergeloom.methods.declare import Base, Method
from mergeloom.planners.config.findings import Findings
from mergeloom.planners.config.parameters import Level, ParameterEntry
from mergeloom.planners.slices.slices import LayerSource


def warn_of_weights(
    others: Sequence[LayerSource], method: Method, levels: Sequence[Level], findings: Findings
) -> None:
    """Warn of a single weight that is divided by itself, of negative weights in a sum that weights
    are divided by, and of an average whose weights do not sum to 1.

    ``others`` are the sources of a slice other than its base.
    """
    setting = next((each for each in method.settings if each.name == "normalize"), None)
    written = [_source_entries(layers, "weight", levels) for layers in others]
    if setting is None or not all(written):
        return
    normalize = next(
        (found for found in (_level_entries("normalize", each) for each in levels) if found), ()
    )
    normalizes = all(e.value is True for e in normalize) if normalize else setting.default
    weights = [entries[0].value if len(entries) == 1 else None for entries in written]
    constant = [float(each) for each in weights if isinstance(each, int | float)]
    averages = method.base is Base.NONE
    if len(others) == 1:
        if normalizes:
            _warn_of_one(written[0], "" if averages else " beside the base", findings)
    elif normalizes:
        _warn_of_negative(written, constant if averages else [], findings)
    elif averages and len(constant) == len(others) and not math.isclose(sum(constant), 1):
        total = sum(constant)
        findings.warn(
            (normalize or written[0])[0].place,
            f"the weights sum to {total:g} and are not divided by it: every value is {total:g} "
            "times an average",
            "leave 'normalize' out, or let the weights sum to 1",
            "weights",
        )


def _level_entries(name: str, level: Level) -> Sequence[ParameterEntry]:
    return level.parameters.entries.get(name, ())


def _source_entries(
    layers: LayerSource, name: str, levels: Sequence[Level]
) -> Sequence[ParameterEntry]:
    """The entries that set a parameter of a source: its own, or those of the first level."""
    own = () if layers.source is None else layers.source.parameters.entries.get(name, ())
    return own or next(
        (found for found in (_level_entries(name, each) for each in levels) if found), ()
    )


def _warn_of_one(entries: Sequence[ParameterEntry], beside: str, findings: Findings) -> None:
    values = [value for entry in entries for value in entry.values if value not in (0, 1)]
    if not values:
        return
    sign = ", and the sign is lost" if any(value < 0 for value in values) else ""
    findings.warn(
        entries[0].place,
        f"with 'normalize' the weight of the only model{beside} is divided by itself: "
        f"{values[0]:g} counts as 1{sign}",
        "write 'normalize: false' for the weight to count",
        "no-effect",
    )


def _warn_of_negative(
    written: Sequence[Sequence[ParameterEntry]], constant: Sequence[float], findings: Findings
) -> None:
    """Warn of the first negative weight; ``constant`` are all weights, where each is one number
    and all are divided by one sum."""
    for entry in (entry for entries in written for entry in entries):
        negative = next((value for value in entry.values if value < 0), None)
        if negative is None:
            continue
        counted = "the others count more"
        total = sum(constant)
        if len(constant) == len(written):
            if not total:
                return  # which is an error
            given = ", ".join(f"{value:g}" for value in constant)
            shares = ", ".join(f"{value / total:g}" for value in constant)
            counted = f"{given} count as {shares}"
        findings.warn(
            entry.place,
            f"with 'normalize' weights are divided by their sum, which {negative:g} reduces: "
            f"{counted}",
            "write 'normalize: false' for weights to count as they are written",
            "weights",
        )
        return
