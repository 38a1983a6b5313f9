"""Final checks of a planned document: inputs match each other, the output matches its
configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.planners.config.findings import Findings
from mergeloom.planners.models.contradictions import contradictions
from mergeloom.planners.models.differences import class_name, config_differences
from mergeloom.planners.models.model import Model, OutputTensor, StoredModel, shapes_of_model
from mergeloom.planners.models.naming import naming_clash
from mergeloom.planners.output.config_check import (
    ConfigCheck,
    DescribedModel,
    check_config,
    is_computed_buffer,
    listed_names,
    sort_by_tower,
)
from mergeloom.planners.output.layers.described import describe
from mergeloom.planners.output.layers.locations import locate_towers, object_at
from mergeloom.planners.output.layers.rules import Kinds
from mergeloom.planners.output.layers.stated_sizes import size_contradictions
from mergeloom.planners.slices.modules import projectors
from mergeloom.planners.slices.slices import LayerSource
from mergeloom.planners.slices.stage import Stage, TowerPlan

OVERRIDE_REMEDY = "--allow-different-architectures writes it anyway"


def check_stage(
    stage: Stage,
    tensors: Sequence[OutputTensor],
    config: Mapping[str, Any],
    allow_different: bool,
    findings: Findings,
) -> None:
    """Check a planned document, its ``tensors``, and the ``config`` of its output.

    With ``allow_different``, refusals that the user may override become warnings.

    Raises:
        CheckpointError: the inputs cannot be merged, or the output would not match its
        configuration.
    """
    models = _models_of_stage(stage)
    configs = {model.name: _config_as_in(stage.donor, model) for model in models}
    found = list(config_differences(stage.donor.name, configs, config))
    findings.notes(difference.text for difference in found if not difference.is_incompatible)
    for model in models:
        if isinstance(model, StoredModel):
            findings.notes(contradictions(model, model.tokens.embedding))
            for tower in describe(model.name, model.config, model.architecture.towers):
                findings.notes(size_contradictions(tower, model.shape))
    differences = [difference.text for difference in found if difference.is_incompatible]
    differences += (clash for tower in stage.towers for clash in _clashes(tower))
    checked = _checked_config(stage, tensors, config)
    if checked.refusals:
        raise CheckpointError.of(checked.refusals[:1])
    differences += checked.overridable
    if differences and not allow_different:
        raise _difference_error(stage, differences[0])
    findings.notes([*differences, *checked.warnings])
    if checked.lost:
        findings.note(
            f"the output lacks {listed_names(checked.lost)}, which '{stage.donor.name}' has, whose "
            "config.json it gets: its class may need it",
            _lost_remedy(stage, checked.lost),
        )


def _lost_remedy(stage: Stage, lost: Sequence[str]) -> str:
    """How to keep weights outside the layers that the models of their module lack."""
    if None in stage.document.modules:
        return ""
    paths = projectors(lost) or sorted({name.rpartition(".")[0] for name in lost})
    names = [path.rpartition(".")[2] for path in paths]
    entries = ", ".join(f"{name}: {{models: [{stage.donor.name}]}}" for name in names)
    return f"write '{entries}' under 'modules' to take it from there"


def _difference_error(stage: Stage, difference: str) -> CheckpointError:
    """The error for layers that differ; if a model is of another class than the one that the
    configuration is from, at its place."""
    own = class_name(stage.donor.config)
    sources = (s for tower in stage.towers for part in tower.slices for s in part.sources)
    for source in sources:
        kind = class_name(source.model.config)
        if source.source is not None and own is not None and kind not in (own, None):
            return CheckpointError(
                f"'{source.model.name}' is a {kind}, '{stage.donor.name}' a {own}: {difference}",
                place=source.source.place,
                remedy=OVERRIDE_REMEDY,
            )
    return CheckpointError(difference, remedy=OVERRIDE_REMEDY)


def _models_of_stage(stage: Stage) -> list[Model]:
    """The models of a stage, each once, the donor of the configuration first."""
    sources = (s.model for tower in stage.towers for part in tower.slices for s in part.sources)
    return list({model.name: model for model in (stage.donor, *sources)}.values())


def _config_as_in(donor: Model, model: Model) -> Mapping[str, Any]:
    """The configuration of a model, with what it says of the main tower where the donor's says it:
    a language model has at the top what a vision-language model has in ``text_config``."""
    path, own = (_path_of_main(each) for each in (donor, model))
    if path is None or own is None or path == own:
        return model.config
    section: Mapping[str, Any] = object_at(model.config, own)
    for key in reversed(path):
        section = {key: section}
    names = {key: model.config[key] for key in _NAMES if key in model.config}
    return {**section, **names}


_NAMES = ("architectures", "model_type")
"""Keys of a configuration that say what it is of."""


def _path_of_main(model: Model) -> tuple[str, ...] | None:
    """The keys that lead to the description of a model's main tower."""
    (found, *_) = locate_towers(model.config, model.architecture.towers)
    return found.path if found is not None else None


def _clashes(tower: TowerPlan) -> Iterator[str]:
    """Sources of a slice that name the parts of their layers differently."""
    for part in tower.slices:
        first, *others = part.sources
        for step in range(part.length):
            suffixes = first.tower.suffixes[first.start + step]
            for other in others:
                theirs = other.tower.suffixes[other.start + step]
                found = None if suffixes == theirs else naming_clash(*_suffixes(first, other, step))
                if found is not None:
                    yield (
                        f"layer {first.start + step} of '{first.model.name}' has "
                        f"'{found[0].lstrip('.')}', layer {other.start + step} of "
                        f"'{other.model.name}' '{found[1].lstrip('.')}' in its place: layers of "
                        "two architectures or layouts cannot be merged name by name"
                    )
                    return


def _suffixes(one: LayerSource, other: LayerSource, step: int) -> Iterator[list[str]]:
    """Suffixes of the tensors of two layers, without buffers computed by classes."""
    for source in (one, other):
        layer = source.start + step
        names = ((s, source.tower.layer_name(layer, s)) for s in source.tower.suffixes[layer])
        yield [s for s, name in names if not is_computed_buffer(name, source.model.shape(name))]


def _checked_config(
    stage: Stage, tensors: Sequence[OutputTensor], config: Mapping[str, Any]
) -> ConfigCheck:
    donor = stage.donor
    own = {tower.prefix: tower.layers for tower in donor.architecture.towers}
    depths = {tower.tower.prefix: tower.layers for tower in stage.towers}
    descriptions = describe(donor.name, donor.config, donor.architecture.towers)

    def kinds(config: Mapping[str, Any], depths: Mapping[str, int]) -> dict[str, dict[str, Kinds]]:
        return {
            each.tower.prefix: each.ruled(config, depths[each.tower.prefix])
            for each in descriptions
            if each.tower.prefix in depths
        }

    shapes = shapes_of_model(donor)
    found = sort_by_tower(shapes, own)
    described = DescribedModel(donor.name, donor.config, found, kinds(donor.config, own))
    written = {tensor.name: tensor.shape for tensor in tensors}
    if (written, depths) != (shapes, own):  # mostly they are the same
        found = sort_by_tower(written, depths)
    output = DescribedModel("the output", config, found, kinds(config, depths))
    towers = {tower.tower.prefix: tower for tower in stage.towers}

    def origin(prefix: str, layer: int, suffix: str | None) -> str:
        part = next(p for p in towers[prefix].slices if layer < p.first + p.length)
        step = layer - part.first
        having = [s for s in part.sources if suffix in s.tower.suffixes[s.start + step]]
        source = next(iter(having), part.sources[part.base or 0])
        return f"layer {source.start + step} of '{source.model.name}'"

    vocabulary = frozenset(filter(None, (stage.head, stage.embedding)))
    return check_config(described, output, origin, vocabulary)
