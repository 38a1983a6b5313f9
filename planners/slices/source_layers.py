"""The source layers of the output's towers, for rewriting ``config.json``."""

from __future__ import annotations

from collections.abc import Iterator

from mergeloom.planners.models.architecture import Tower
from mergeloom.planners.models.model import Model
from mergeloom.planners.output.layers.described import Description, describe
from mergeloom.planners.output.layers.stack import RestackedTower, SourceLayer
from mergeloom.planners.slices.slices import LayerSource, Slice
from mergeloom.planners.slices.stage import Stage


def source_layers(stage: Stage) -> list[RestackedTower]:
    """The source layers of each tower of the output.

    The source of an output layer is the donor's layer if the donor is among its sources, or else
    the base model's, or the first source's.
    """
    described: dict[tuple[str, str], Description] = {}

    def description(model: Model, tower: Tower) -> Description:
        key = model.name, tower.prefix
        if key not in described:
            towers = model.architecture.towers
            if all(own.prefix != tower.prefix for own in towers):
                towers = (tower,)  # the tower used, under another model's names
            for each in describe(model.name, model.config, towers):
                described.setdefault((model.name, each.tower.prefix), each)
        return described[key]

    found = []
    for plan in stage.towers:
        if not plan.tower.layers:
            continue
        merged = tuple(
            tuple(
                SourceLayer(description(source.model, source.tower), source.start + step)
                for source in sources
            )
            for step, sources in _sources_by_layer(plan.slices, stage.donor)
        )
        donor = description(stage.donor, plan.tower)
        origins = tuple(sources[0] for sources in merged)
        beyond = max(len(source.tower.beyond) for source in plan.slices[-1].sources)
        found.append(RestackedTower(plan.tower.name, donor, origins, merged, beyond))
    return found


def _sources_by_layer(
    slices: tuple[Slice, ...], donor: Model
) -> Iterator[tuple[int, list[LayerSource]]]:
    """For each output layer, its index in its slice and its sources, the main one first."""
    for part in slices:
        base = part.sources[part.base] if part.base is not None else None
        sources = sorted(
            part.sources, key=lambda source: (source.model is not donor, source is not base)
        )
        for step in range(part.length):
            yield step, sources
