"""Plans one merge document: the slices and tensors of its output."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import islice

from mergeloom.engine.base.dtypes import BF16, F16
from mergeloom.engine.base.errors import CheckpointError, Finding, LoomError, Place
from mergeloom.methods import registry
from mergeloom.methods.declare import Method
from mergeloom.planners.config.config import MergeDocument, Module, OutputSlice
from mergeloom.planners.config.findings import Findings
from mergeloom.planners.config.model_reference import ModelReference
from mergeloom.planners.config.parameters import Parameters
from mergeloom.planners.config.tokenizer import BASE, TokenizerSettings
from mergeloom.planners.models.adapted import AdaptedModel
from mergeloom.planners.models.adapter import WEIGHTS as ADAPTER_WEIGHTS
from mergeloom.planners.models.adapter import has_adapter
from mergeloom.planners.models.architecture import Tower, beside_layers
from mergeloom.planners.models.model import Model, PlannedModel, StoredModel
from mergeloom.planners.models.pool import Models
from mergeloom.planners.models.roles import has_part_per_layer, is_shared, layer_axis
from mergeloom.planners.models.token_weights import Head, TokenWeights, has_token_head
from mergeloom.planners.output.layers.locations import are_parts
from mergeloom.planners.planner import PlanningContext
from mergeloom.planners.slices.modules import TowerModule, assign_modules
from mergeloom.planners.slices.notes import notes
from mergeloom.planners.slices.slice_checks import (
    check_required,
    slice_levels,
    warn_of_empty_slices,
    warn_of_ends,
    warn_of_factors,
    warn_of_no_effect,
    warn_of_relative_positions,
)
from mergeloom.planners.slices.slice_sources import SliceBuilder
from mergeloom.planners.slices.slices import (
    LayerSource,
    Slice,
)
from mergeloom.planners.slices.stage import Stage, TowerPlan
from mergeloom.planners.slices.tensor_plan import (
    MergingRules,
)
from mergeloom.planners.slices.unified_models import UnifiedModels
from mergeloom.planners.vocabulary.compare import comparison_warnings
from mergeloom.planners.vocabulary.plan import VocabularyPlan
from mergeloom.planners.vocabulary.remap import RemappedModels, remap_models


def plan_stage(
    document: MergeDocument, planning: PlanningContext
) -> tuple[Stage, VocabularyPlan | None]:
    """Plan one document; the vocabulary is ``None`` unless tokenizer settings require one.

    Raises:
        ConfigError: it is invalid for these models.
        CheckpointError: a model is missing, malformed, or does not fit the others.
    """
    models, findings, options = planning.models, planning.findings, planning.options
    method = registry.get(document.merge_method)
    found = [
        findings.attempt(_open_model, reference, document, models, findings)
        for reference in document.merged_models()
    ]
    findings.check()
    opened = list({id(model): model for model in found if model is not None}.values())
    donor = models.get(donor_reference(document))
    unified_models = UnifiedModels(models, donor)
    tokens = [donor.tokens, *(unified_models.unified(model).tokens for model in opened)]
    embedding = next((each.embedding for each in tokens if each.embedding), None)
    head = next((each.head for each in tokens if each.head), None)
    vocabulary = None
    settings = document.tokenizer
    if settings is None and not options.truncate_embeddings:
        settings = _default_tokenizer_settings(document, unified_models, models, findings)
    if settings is not None:
        remap = findings.attempt(_remap, document, settings, unified_models, models)
        if remap is not None:
            vocabulary = remap.vocabulary
            for warning in vocabulary.warnings:
                findings.add(warning)
            unified_models.set_remapped(remap.models)
            donor = unified_models.unified(donor)
    _warn_of_float16(document, opened, findings)
    towers = _plan_towers(document, method, donor, unified_models, findings)
    if settings is None and embedding is not None:
        used = _models_with_rows(towers, {embedding, head})
        for warning in _tokenizer_warnings([m for m in opened if m.name in used], donor):
            findings.add(warning)
    for tower in towers:
        findings.attempt(_check_splittable, tower)
    findings.check()
    tied = _is_tied(tokens)
    if embedding is None and tied:
        embedding = head
    if head is not None and not tied and not _may_have_head(donor):
        findings.warn(
            document.place,
            f"the output head '{head}' is left out: the output is of the class of '{donor.name}', "
            f"{donor.config['architectures'][0]}, which has none",
        )
        head = None
    stage = Stage(
        document=document,
        rules=MergingRules(document, method, options.truncate_embeddings),
        towers=tuple(towers),
        donor=donor,
        tied=tied,
        embedding=embedding,
        head=head,
        notes=tuple(notes(document, towers, unified_models)),
    )
    return stage, vocabulary


def _warn_of_float16(document: MergeDocument, models: Sequence[Model], findings: Findings) -> None:
    """Warn of a float16 output of bfloat16 models, which have the range of float32."""
    if (document.out_dtype or document.dtype) is not F16:
        return
    wide = next((m for m in models if any(m.dtype(name) is BF16 for name in islice(m, 1))), None)
    if wide is not None:
        findings.warn(
            document.place,
            f"the output is float16 (up to 65,504), and '{wide.name}' is bfloat16 (up to 3e38): a "
            "larger value stops the merge, and tiny values become 0",
            "'dtype: bfloat16' keeps the range",
            "range",
        )


def _default_tokenizer_settings(
    document: MergeDocument, unified_models: UnifiedModels, models: Models, findings: Findings
) -> TokenizerSettings | None:
    """Settings for a document that has none and whose models' vocabularies differ in size; ``None``
    if they do not.

    The output has the tokenizer of the base or first model in any case, so rows of the others are
    matched to its tokens. ``None`` also if a tokenizer is missing, because then it is unknown which
    rows belong together.
    """
    sizes: dict[int, str] = {}
    owners: list[ModelReference] = []
    for reference in document.merged_models():
        model = unified_models.get(reference)
        name = model.tokens.embedding or model.tokens.head
        if name is None:
            continue
        sizes.setdefault(model.shape(name)[0], model.name)
        owners.append(reference)
    if len(sizes) < 2:
        return None
    try:
        if any(models.tokenizer(reference) is None for reference in owners):
            return None
    except LoomError:
        return None
    shown = ", ".join(f"{rows} in '{name}'" for rows, name in sizes.items())
    donor = donor_reference(document)
    findings.warn(
        document.place,
        f"vocabularies differ in size ({shown}): rows are matched by token, and "
        f"the output gets the tokens and the tokenizer of '{donor}'",
        "'tokenizer: {source: base}' means the same, '{source: union}' keeps the tokens of all",
        code="vocabulary",
    )
    return TokenizerSettings(BASE, document.place)


def _remap(
    document: MergeDocument,
    settings: TokenizerSettings,
    unified_models: UnifiedModels,
    models: Models,
) -> RemappedModels:
    references, base = document.merged_models(), document.base_model
    try:
        return remap_models(settings, references, unified_models, base, models)
    except LoomError as error:
        raise error.at(settings.place) from error


def _models_with_rows(towers: Sequence[TowerPlan], weights: set[str | None]) -> set[str]:
    """The names of the models that rows of these weights, embedding and head, come from."""
    names: set[str] = set()
    for plan in towers:
        ends = ((plan.tower.before, plan.slices[:1]), (plan.tower.after, plan.slices[-1:]))
        for outside, slices in ends:
            if weights.intersection(outside):
                names.update(source.model.name for part in slices for source in part.sources)
    return names


def _tokenizer_warnings(models: Sequence[Model], donor: Model) -> Iterator[Finding]:
    """Warnings about tokenizers if embeddings are merged row by row."""
    stored = [m for m in models if isinstance(m, StoredModel) and m.tokens.embedding is not None]
    if len(stored) > 1:
        folder = donor.checkpoint.folder if isinstance(donor, StoredModel) else None
        yield from comparison_warnings(
            [
                (m.name, m.checkpoint.folder, m.shape(m.tokens.embedding)[0])
                for m in stored
                if m.tokens.embedding is not None
            ],
            folder,
        )


def _is_tied(tokens: Sequence[TokenWeights]) -> bool:
    """Whether the output is tied, which it is if every model with a head is."""
    kinds = {found.kind for found in tokens} - {Head.NONE}
    return kinds == {Head.TIED}


def _may_have_head(donor: Model) -> bool:
    return donor.tokens.kind is not Head.NONE or has_token_head(donor.config)


def _check_splittable(plan: TowerPlan) -> None:
    """Refuse to stack models that cannot be split by layers.

    Raises:
        CheckpointError: a weight has a part for each layer, or layers share their weights.
    """
    if plan.is_unchanged:
        return
    for part in plan.slices:
        for source in part.sources:
            tower, name = source.tower, source.model.name
            for weight in (*tower.before, *tower.after):
                shape = source.model.shape(weight)
                deep = has_part_per_layer(weight, shape, tower.layers)
                if deep and layer_axis(weight) is None:
                    raise CheckpointError(
                        f"'{weight}' ({'x'.join(map(str, shape))}) of '{name}' has a part for each "
                        f"of its {tower.layers} layers and cannot be split",
                        place=part.entry.place,
                        remedy="merge whole models",
                    )
            for run in beside_layers(tower):
                raise CheckpointError(
                    f"'{run}N' of '{name}' belong to its {tower.layers} layers "
                    f"'{tower.prefix}N', in an order that is not known",
                    place=part.entry.place,
                    remedy="merge whole models",
                )
            shared = next((s for layer in tower.suffixes for s in layer if is_shared(s)), None)
            if shared is not None:
                raise CheckpointError(
                    f"layers of '{name}' share weights ('{tower.prefix}N{shared}'), so that they "
                    "cannot be stacked",
                    place=part.entry.place,
                    remedy="merge whole models",
                )


def _open_model(
    reference: ModelReference, document: MergeDocument, models: Models, findings: Findings
) -> Model:
    """Open a model, with warnings about it; errors get the place where the configuration names
    it."""
    place = document.place_of(reference)
    try:
        model = models.get(reference)
    except LoomError as error:
        raise error.at(place) from error
    if isinstance(model, PlannedModel) and not model.config:
        raise place.error(
            f"stage '{reference}' has no config.json: it is raw weights, or an adapter",
            "write 'tensors: same' to merge raw weights here too",
        )
    if reference in models.notes:
        findings.warn(place, models.notes[reference], code="adapter-alone")
    if isinstance(model, StoredModel):
        _warn_of_other_weights(model, place, findings)
    if isinstance(model, AdaptedModel):
        for note in model.adapter.notes:
            findings.warn(place, note, code="adapter-setting")
    namesakes = models.namesakes(reference)
    if namesakes is not None:
        taken, other = (os.path.abspath(path) for path in (namesakes[0], namesakes[1][0]))
        findings.warn(
            place,
            f"'{reference}' is '{taken}', but '{other}' beside the configuration is a model too",
            "write the whole path of the one that you mean",
            "two-models",
        )
    if models.ignores_revision(reference):
        findings.warn(
            place,
            f"the revision of '{reference}' has no effect: a local directory is taken as it is",
        )
    return model


def _warn_of_other_weights(model: StoredModel, place: Place, findings: Findings) -> None:
    """Warn of weight files in a model's folder that are not read."""
    files = model.checkpoint.passed_over
    others = tuple(name for name in files if name not in ADAPTER_WEIGHTS)
    if others != files and has_adapter(model.checkpoint.folder):
        files = others
        findings.warn(
            place,
            f"'{model.name}' has an adapter beside its weights, which is not applied",
            f"write '{model.name}+{model.name}' to merge the model with it",
            "passed-over",
        )
    if files:
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        findings.warn(
            place,
            f"'{model.name}' has '{files[0]}'{more} beside its weights, which neither "
            "transformers nor mergeloom reads",
            code="passed-over",
        )


def donor_reference(document: MergeDocument) -> ModelReference:
    """The model that the output gets configuration and tokenizer from: the base, or the first."""
    if document.base_model is not None:
        return document.base_model
    module = next(iter(document.modules.values()))
    return module.slices[0].sources[0].model


def _plan_towers(
    document: MergeDocument,
    method: Method,
    donor: Model,
    models: UnifiedModels,
    findings: Findings,
) -> list[TowerPlan]:
    """The towers of the output; errors of their slices are added to ``findings``."""
    assigned = _towers_with_modules(document, donor, findings)
    models.parts = {
        item.tower.name: frozenset(item.tower.before)
        for item in assigned
        if not item.tower.layers and None not in document.modules
    }
    towers = []
    for item in assigned:
        tower, module = item.tower, item.module
        if module is None:
            towers.append(_copied_tower(tower, document, donor))
            continue
        builder = SliceBuilder(document, module, method, models)
        slices: list[Slice] = []
        for entry in module.slices:
            first = slices[-1].first + slices[-1].length if slices else 0
            part = findings.attempt(builder.build, entry, first, tower)
            if part is not None:
                slices.append(part)
                levels = slice_levels(part.entry, module, document)
                check_required(part, method, levels, findings)
                warn_of_no_effect(part, method, levels, findings)
            builder.warn_of_left_out_base(entry, findings)
        if len(slices) == len(module.slices):
            warn_of_empty_slices(slices, module, findings)
            warn_of_relative_positions(tower, slices, findings)
            warn_of_factors(tower, slices, findings)
            warn_of_ends(tower, slices, findings)
        towers.append(TowerPlan(tower, tuple(slices), module))
    return towers


def _towers_with_modules(
    document: MergeDocument, donor: Model, findings: Findings
) -> tuple[TowerModule, ...]:
    """The towers of the base or first model, each with its module."""
    architecture = donor.architecture
    if None not in document.modules:
        found = assign_modules(document, architecture)
        for item in found:
            if item.module is None:
                findings.warn(
                    document.place,
                    f"'modules' says nothing about '{item.tower.name}': it is copied from "
                    f"'{donor.name}'",
                )
        return found
    module = document.modules[None]
    names = [tower.name for tower in architecture.towers]
    if not module.whole and len(names) > 1 and not are_parts(donor.config, architecture.towers):
        raise document.place.error(
            f"'{donor.name}' has {len(names)} towers of layers ({', '.join(names)})",
            "write 'modules' with 'slices' for each, or 'models' to merge them whole",
        )
    return tuple(TowerModule(tower, module) for tower in architecture.towers)


def _copied_tower(tower: Tower, document: MergeDocument, donor: Model) -> TowerPlan:
    """The plan of a tower copied from the base or first model."""
    entry = OutputSlice((), None, Parameters(), document.place)
    source = LayerSource(donor, tower, 0, tower.layers, None)
    part = Slice(0, tower.layers, (source,), None, entry)
    return TowerPlan(tower, (part,), Module((entry,), True, Parameters(), document.place), True)
