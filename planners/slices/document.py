"""From one document of a configuration to the slices and tensors of its output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mergeloom.engine.base.errors import CheckpointError, LoomError
from mergeloom.engine.base.suggest import suggest
from mergeloom.methods import registry
from mergeloom.methods.declare import REQUIRED, Base, Method
from mergeloom.planners.config.config import Document, Module, OutputSlice
from mergeloom.planners.config.findings import Findings, placed
from mergeloom.planners.config.model_reference import ModelReference
from mergeloom.planners.config.parameters import Level
from mergeloom.planners.models.architecture import Tower
from mergeloom.planners.models.model import Model, StoredModel, is_tied, tied_names
from mergeloom.planners.models.pool import Models
from mergeloom.planners.slices.doubts import (
    check_required,
    slice_levels,
    warn_of_empty,
    warn_of_idle,
)
from mergeloom.planners.slices.slices import (
    LayerSource,
    Recipe,
    Slice,
    check_lengths,
    recipes,
    resolve_range,
)
from mergeloom.planners.slices.tensor_plan import (
    MergingRules,
    TensorPlan,
    check_models,
    plan_tensor,
)
from mergeloom.planners.slices.tokenizer_settings import check_tokenizer_settings
from mergeloom.planners.vocabulary.compare import comparison_warnings


@dataclass(frozen=True, slots=True)
class TowerPlan:
    """One tower of the output and the slices that it is stacked from."""

    tower: Tower
    slices: tuple[Slice, ...]
    module: Module

    @property
    def layers(self) -> int:
        return sum(part.length for part in self.slices)


@dataclass(frozen=True)
class Stage:
    """One planned document."""

    document: Document
    rules: MergingRules
    towers: tuple[TowerPlan, ...]
    donor: Model
    tied: bool
    embedding: str | None
    head: str | None

    def tensor_plans(self) -> Iterator[TensorPlan]:
        """How each tensor of the output comes about, in order."""
        for tower in self.towers:
            for recipe in recipes(tower.tower, tower.slices):
                plan = self._plan(recipe, tower)
                if plan is not None:
                    yield plan
        yield from self._missing_head()

    def _plan(self, recipe: Recipe, tower: TowerPlan) -> TensorPlan | None:
        inputs = recipe.inputs
        if recipe.name == self.head and recipe.layer is None:
            if self.tied:
                return None
            inputs = self._head_inputs(recipe.slice)
        return plan_tensor(recipe, inputs, self.rules, self._levels(recipe.slice, tower))

    def _missing_head(self) -> Iterator[TensorPlan]:
        """The head where only models of other slices have one of their own."""
        if self.tied or self.head is None:
            return
        homes = (tower for tower in self.towers if self._has_head(tower.slices))
        tower = next(homes, self.towers[0])
        part = tower.slices[-1]
        if not self._has_head([part]):
            inputs = self._head_inputs(part)
            recipe = Recipe(self.head, part, None, 0.0, inputs)
            yield plan_tensor(recipe, inputs, self.rules, self._levels(part, tower))

    def _has_head(self, slices: Sequence[Slice]) -> bool:
        return any(self.head in source.tower.after for part in slices for source in part.sources)

    def _head_inputs(self, part: Slice) -> tuple[tuple[int, str], ...]:
        """A tied model's embedding stands in for its head."""
        inputs = []
        for position, source in enumerate(part.sources):
            name = self.embedding if is_tied(source.model) else self.head
            if name is not None and name in source.model:
                inputs.append((position, name))
        return tuple(inputs)

    def _levels(self, part: Slice, tower: TowerPlan) -> list[Level]:
        return slice_levels(part, tower.module, self.document)


def plan_stage(
    document: Document,
    models: Models,
    seed: int,
    truncate: bool,
    warnings: list[str],
    findings: Findings,
) -> Stage:
    """Plan one document, and add to ``warnings`` and ``findings``; ``truncate`` embeddings to
    their common rows.

    Raises:
        ConfigError: it does not make sense for these models.
        CheckpointError: a model is missing, malformed, or does not fit the others.
    """
    method = registry.get(document.merge_method)
    found = [
        findings.attempt(_opened, reference, document, models, findings)
        for reference in document.references()
    ]
    findings.check()
    opened = list({id(model): model for model in found if model is not None}.values())
    donor = models.get(document.base_model) if document.base_model else _first(document, models)
    head, embedding = tied_names(opened)
    findings.attempt(check_tokenizer_settings, document, opened, models, embedding)
    if document.tokenizer is None and embedding is not None:
        warnings += _compared_tokenizers(opened, donor, embedding)
    towers = _towers(document, method, donor, models, warnings, findings)
    findings.check()
    return Stage(
        document=document,
        rules=MergingRules(document, method, seed, truncate),
        towers=tuple(towers),
        donor=donor,
        tied=all(is_tied(model) for model in opened),
        embedding=embedding,
        head=head,
    )


def _compared_tokenizers(models: Sequence[Model], donor: Model, embedding: str) -> Iterator[str]:
    """What is said of tokenizers where embeddings are merged row by row."""
    stored = [m for m in models if isinstance(m, StoredModel) and embedding in m]
    if len(stored) > 1:
        directory = donor.checkpoint.directory if isinstance(donor, StoredModel) else None
        yield from comparison_warnings(
            [(m.name, m.checkpoint.directory, m.shape(embedding)[0]) for m in stored], directory
        )


def _opened(
    reference: ModelReference, document: Document, models: Models, findings: Findings
) -> Model:
    """The model, or an error that says where the configuration names it."""
    place = document.place_of(reference)
    try:
        model = models.get(reference)
    except LoomError as error:
        raise error.at(place) from error
    if isinstance(model, StoredModel) and model.checkpoint.passed_over:
        files = model.checkpoint.passed_over
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        findings.warn(
            place,
            f"'{model.name}' has '{files[0]}'{more} beside its weights, which transformers does "
            "not read and which is not read here",
            code="passed-over",
        )
    if models.ignores_revision(reference):
        findings.warn(
            place,
            f"the revision of '{reference}' has no effect: a local directory is taken as it is",
        )
    return model


def _first(document: Document, models: Models) -> Model:
    module = next(iter(document.modules.values()))
    return models.get(module.slices[0].sources[0].model)


def _towers(
    document: Document,
    method: Method,
    donor: Model,
    models: Models,
    warnings: list[str],
    findings: Findings,
) -> list[TowerPlan]:
    """The towers of the output; what is wrong with any slice of them goes to ``findings``."""
    architecture = donor.architecture
    names = [tower.name for tower in architecture.towers]
    if None in document.modules:
        module = document.modules[None]
        if not module.whole and len(names) > 1:
            raise document.place.error(
                f"'{donor.name}' has {len(names)} towers of layers ({', '.join(names)})",
                "write 'modules' with 'slices' for each, or 'models' to merge them whole",
            )
        chosen = [(tower, module) for tower in architecture.towers]
    else:
        for name, module in document.modules.items():
            if name not in names:
                raise module.place.error(f"no module '{name}'", suggest(str(name), names))
        missing = [name for name in names if name not in document.modules]
        if missing:
            raise document.place.error(
                f"'modules' says nothing about {', '.join(missing)}: every tower of "
                f"'{donor.name}' needs an entry"
            )
        chosen = [(tower, document.modules[tower.name]) for tower in architecture.towers]
    towers = []
    for tower, module in chosen:
        slices: list[Slice] = []
        for entry in module.slices:
            first = slices[-1].first + slices[-1].length if slices else 0
            part = findings.attempt(_slice, entry, first, tower, module, document, method, models)
            if part is not None:
                slices.append(part)
                levels = slice_levels(part, module, document)
                check_required(part, method, levels, findings)
                warn_of_idle(part, method, levels, findings)
            left_out = _left_out_base(entry, module, document, method, models)
            if left_out is not None:
                warnings.append(left_out)
        if len(slices) == len(module.slices):
            warn_of_empty(slices, module, findings)
        towers.append(TowerPlan(tower, tuple(slices), module))
    return towers


def _slice(
    entry: OutputSlice,
    first: int,
    tower: Tower,
    module: Module,
    document: Document,
    method: Method,
    models: Models,
) -> Slice:
    with placed(entry.place):
        return _aligned(entry, first, tower, module, document, method, models)


def _aligned(
    entry: OutputSlice,
    first: int,
    tower: Tower,
    module: Module,
    document: Document,
    method: Method,
    models: Models,
) -> Slice:
    """The sources of a slice, the base among them, each with as many layers."""
    sources = []
    for source in entry.sources:
        model = models.get(source.model)
        own = _matching_tower(model, tower)
        start, stop = resolve_range(source, own, model.name)
        sources.append(LayerSource(model, own, start, stop, source))
    reference = entry.base_model or document.base_model
    base = None
    if reference is not None and method.base is Base.NONE:
        if _joins(reference, entry, module, document, method, models):
            model = models.get(reference)
            own = _matching_tower(model, tower)
            sources.insert(0, LayerSource(model, own, 0, own.layers, None))
    elif reference is not None:
        model = models.get(reference)
        base = next((i for i, source in enumerate(sources) if source.model is model), None)
        if base is None:
            ranges = {(source.start, source.stop) for source in sources}
            if len(ranges) > 1:
                raise entry.place.error(
                    f"the base model '{reference}' is not among the sources, which take different "
                    "layers",
                    "add it with the layer_range that is its part",
                )
            own = _matching_tower(model, tower)
            start, stop = (0, own.layers) if module.whole else next(iter(ranges))
            if stop > own.layers:
                raise entry.place.error(
                    f"the base model '{reference}' has {own.layers} layers, "
                    f"the sources take [{start}, {stop}]"
                )
            sources.insert(0, LayerSource(model, own, start, stop, None))
            base = 0
    length = check_lengths(sources, entry.place)
    part = Slice(first, length, tuple(sources), base, entry)
    check_models(method, part, entry.place)
    return part


def _joins(
    reference: ModelReference,
    entry: OutputSlice,
    module: Module,
    document: Document,
    method: Method,
    models: Models,
) -> bool:
    """Whether a base model that is not listed is merged like any other, by a method without base.

    It has no parameters of its own, so those that the method needs must stand higher up.
    """
    listed = any(models.get(source.model) is models.get(reference) for source in entry.sources)
    full = method.maximum is not None and len(entry.sources) >= method.maximum
    higher = {*module.parameters.entries, *document.parameters.entries}
    needed = {p.name for p in method.model_parameters if p.default is REQUIRED}
    return module.whole and not listed and not full and needed <= higher


def _left_out_base(
    entry: OutputSlice, module: Module, document: Document, method: Method, models: Models
) -> str | None:
    """A warning where the base model gives no weights though it is named."""
    reference = document.base_model
    if reference is None or method.base is not Base.NONE or not module.whole:
        return None
    listed = any(models.get(source.model) is models.get(reference) for source in entry.sources)
    if listed or _joins(reference, entry, module, document, method, models):
        return None
    return (
        f"{document.base_place or document.place}: '{reference}' gives configuration and "
        "tokenizer only: to merge it too, list it among the models"
    )


def _matching_tower(model: Model, tower: Tower) -> Tower:
    """The tower of ``model`` that corresponds to ``tower``."""
    own = next((t for t in model.architecture.towers if t.prefix == tower.prefix), None)
    if own is None:
        found = ", ".join(f"'{t.prefix}N'" for t in model.architecture.towers)
        raise CheckpointError(
            f"'{model.name}' has no layers named '{tower.prefix}N' as the first or base model has, "
            f"but {found}: models of different architectures cannot be merged"
        )
    return own
