"""From a configuration to everything that a run needs: graph, side files, identity.

Reads headers and small files only, and does not import torch.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import CheckpointError, ConfigError
from engine.graph import Graph, GraphBuilder
from engine.job import Job
from engine.output import SideFile
from methods import registry
from methods.compiled import LIBRARY
from methods.method import REQUIRED, Base, Method
from planners.architecture import Tower
from planners.checkpoint import Checkpoint, open_checkpoint
from planners.config import Configuration, Document, Module, OutputSlice
from planners.hub import Resolver
from planners.integers import equal_bytes
from planners.layout import Layout, OutputTensor, lay_out
from planners.merging import (
    MergingRules,
    Mismatch,
    TensorPlan,
    build_merge,
    check_models,
    output_dtype,
    plan_tensor,
)
from planners.model import Model, StagedModel, StoredModel, is_tied, tied_names
from planners.output_config import LayerChange, rewrite_config
from planners.parameters import Level, check_names
from planners.places import nearest
from planners.reference import ModelReference
from planners.sidefiles import side_files
from planners.slices import LayerSource, Recipe, Slice, check_lengths, recipes, resolve_range
from planners.tokenizer_settings import check_tokenizer_settings
from planners.unused import Unused, unused_tensors

DEFAULT_SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What a plan depends on besides its configuration; ``max_shard_bytes`` counts tensor data."""

    seed: int = 0
    max_shard_bytes: int = DEFAULT_SHARD_BYTES
    truncate_embeddings: bool = False


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
        return [
            Level("slice", part.entry.parameters),
            Level("module", tower.module.parameters),
            Level("global", self.document.parameters),
        ]


@dataclass(frozen=True)
class Plan:
    """A merge, planned: everything known before the first weight is read.

    ``config`` is the output's configuration; ``models`` the checkpoints by the names that the
    merge configuration gives them; ``unused`` what is left of their tensors, with reasons.
    """

    configuration: Configuration
    options: PlanOptions
    stage: Stage
    graph: Graph
    layout: Layout
    config: Mapping[str, Any]
    models: Mapping[str, Checkpoint]
    side_files: tuple[SideFile, ...]
    identity: Mapping[str, str]
    fingerprint: str
    unused: tuple[Unused, ...]
    warnings: tuple[str, ...]

    @property
    def parameters(self) -> int:
        """Number of elements of all output tensors."""
        return sum(math.prod(write.shape) for write in self.graph.writes)

    @property
    def layers(self) -> int:
        """Number of layers of the main tower."""
        return self.stage.towers[0].layers

    def job(self, about: Mapping[str, Any]) -> Job:
        """What the engine runs; ``about`` is added to the manifest's record."""
        record = {
            "configuration": self.configuration.text,
            "models": {
                name: {"directory": str(checkpoint.directory), "identity": checkpoint.identity}
                for name, checkpoint in self.models.items()
            },
            "seed": self.options.seed,
            **about,
        }
        identity, files = self.identity, self.side_files
        return Job(self.graph, self.fingerprint, identity, files, record, LIBRARY)

    def explain(self, tensor: str) -> TensorPlan:
        """How one output tensor comes about.

        Raises:
            ConfigError: the output has no such tensor.
        """
        for found in self.stage.tensor_plans():
            if found.name == tensor:
                return found
        raise ConfigError(
            f"the output has no tensor '{tensor}'"
            + nearest(tensor, [write.name for write in self.graph.writes][:20000])
        )


def make_plan(configuration: Configuration, resolver: Resolver, options: PlanOptions) -> Plan:
    """Plan the merge that ``configuration`` describes.

    Raises:
        ConfigError: it does not make sense for these models.
        CheckpointError: a model is missing, malformed, or does not fit the others.
    """
    models = _Models(resolver)
    builder = GraphBuilder()
    warnings: list[str] = []
    *earlier, last = configuration.documents
    for document in earlier:
        if document.name is None:
            raise document.place.error("every stage but the last needs a 'name' to be used by")
        stage = _stage(document, models, options, warnings)
        tensors = _build(stage, builder, warnings)
        config = _output_config(stage)
        models.stages[document.name] = StagedModel(
            document.name, config, {tensor.name: tensor for tensor in tensors}
        )
    stage = _stage(last, models, options, warnings)
    used = [models.get(reference) for reference in last.references()]
    warnings += _idle_filters(last, [name for model in used for name in model])
    for name in models.stages.keys() - models.used_stages:
        warnings.append(f"stage '{name}' is used by no later one")
    tensors = _build(stage, builder, warnings)
    config = _output_config(stage)
    metadata = {"format": "pt"}
    layout = lay_out(tensors, options.max_shard_bytes, metadata)
    graph = builder.build(layout.writes, layout.files)
    graph.verify()
    stored = models.stored_by_name()
    files = side_files(configuration, config, layout, models.donor_directory(stage.donor), stored)
    identity = _identity(configuration, options, stored)
    fingerprint = _fingerprint(graph, files)
    return Plan(
        configuration=configuration,
        options=options,
        stage=stage,
        graph=graph,
        layout=layout,
        config=config,
        models=stored,
        side_files=files,
        identity=identity,
        fingerprint=fingerprint,
        unused=tuple(
            unused_tensors(stored, graph, stage.towers, stage.head if stage.tied else None)
        ),
        warnings=tuple(dict.fromkeys(warnings)),
    )


class _Models:
    """Every model of a configuration, opened once."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._by_reference: dict[ModelReference, Model] = {}
        self._by_directory: dict[Path, Checkpoint] = {}
        self.stages: dict[str, StagedModel] = {}
        self.used_stages: set[str] = set()

    def get(self, reference: ModelReference) -> Model:
        if str(reference) in self.stages:
            self.used_stages.add(str(reference))
            return self.stages[str(reference)]
        model = self._by_reference.get(reference)
        if model is None:
            if reference.adapter is not None:
                raise ConfigError(
                    f"'{reference}': adapters are not merged yet: "
                    "merge the adapter into its model first and name the result"
                )
            directory = self._resolver.directory(reference.model)
            checkpoint = self._by_directory.get(directory.resolve())
            if checkpoint is None:
                checkpoint = open_checkpoint(directory)
                self._by_directory[directory.resolve()] = checkpoint
            model = self._by_reference[reference] = StoredModel(str(reference), checkpoint)
        return model

    def stored_by_name(self) -> dict[str, Checkpoint]:
        return {
            model.name: model.checkpoint
            for model in self._by_reference.values()
            if isinstance(model, StoredModel)
        }

    def donor_directory(self, donor: Model) -> Path | None:
        """Where the side files come from: the donor, or the first model if a stage is the donor."""
        candidates = [donor, *self._by_reference.values()]
        return next(
            (m.checkpoint.directory for m in candidates if isinstance(m, StoredModel)), None
        )


def _stage(document: Document, models: _Models, options: PlanOptions, warnings: list[str]) -> Stage:
    try:
        method = registry.get(document.merge_method)
    except ConfigError as error:
        raise document.method_place.error(str(error)) from error
    _check_parameters(document, method, warnings)
    opened = [_opened(reference, document, models) for reference in document.references()]
    donor = models.get(document.base_model) if document.base_model else _first(document, models)
    head, embedding = tied_names(opened)
    check_tokenizer_settings(document, opened, embedding)
    towers = _towers(document, method, donor, models, warnings)
    return Stage(
        document=document,
        rules=MergingRules(document, method, options.seed, options.truncate_embeddings),
        towers=tuple(towers),
        donor=donor,
        tied=all(is_tied(model) for model in opened),
        embedding=embedding,
        head=head,
    )


def _opened(reference: ModelReference, document: Document, models: _Models) -> Model:
    """The model, or an error that says where the configuration names it."""
    try:
        return models.get(reference)
    except (ConfigError, CheckpointError) as error:
        raise type(error)(f"{document.place_of(reference)}: {error}") from error


def _idle_filters(document: Document, names: Sequence[str]) -> Iterator[str]:
    """Warnings about filters that no tensor's name contains."""
    text = "\n".join(names)
    for block in document.blocks():
        for name, entries in block.entries.items():
            for entry in entries:
                if entry.filter is not None and entry.filter not in text:
                    yield (
                        f"{entry.place}: no tensor's name contains '{entry.filter}': this value "
                        f"of '{name}' has no effect"
                    )


def _first(document: Document, models: _Models) -> Model:
    module = next(iter(document.modules.values()))
    return models.get(module.slices[0].sources[0].model)


def _check_parameters(document: Document, method: Method, warnings: list[str]) -> None:
    def elsewhere() -> set[str]:
        found = [registry.get(name) for name in registry.names()]
        return {p.name for m in found for p in (*m.model_parameters, *m.settings)}

    warnings += check_names(method, document.parameters, "global", elsewhere)
    for module in document.modules.values():
        warnings += check_names(method, module.parameters, "module", elsewhere)
        for part in module.slices:
            warnings += check_names(method, part.parameters, "slice", elsewhere)
            for source in part.sources:
                warnings += check_names(method, source.parameters, "model", elsewhere)


def _towers(
    document: Document, method: Method, donor: Model, models: _Models, warnings: list[str]
) -> Iterator[TowerPlan]:
    architecture = donor.architecture
    names = [tower.name for tower in architecture.towers]
    if None in document.modules:
        module = document.modules[None]
        if not module.whole and len(names) > 1:
            raise document.place.error(
                f"'{donor.name}' has {len(names)} towers of layers ({', '.join(names)}): "
                "write 'modules' with 'slices' for each, or 'models' to merge them whole"
            )
        chosen = [(tower, module) for tower in architecture.towers]
    else:
        for name, module in document.modules.items():
            if name not in names:
                raise module.place.error(f"no module '{name}'{nearest(str(name), names)}")
        missing = [name for name in names if name not in document.modules]
        if missing:
            raise document.place.error(
                f"'modules' says nothing about {', '.join(missing)}: every tower of "
                f"'{donor.name}' needs an entry"
            )
        chosen = [(tower, document.modules[tower.name]) for tower in architecture.towers]
    for tower, module in chosen:
        slices: list[Slice] = []
        for entry in module.slices:
            first = slices[-1].first + slices[-1].length if slices else 0
            slices.append(_slice(entry, first, tower, module, document, method, models))
            left_out = _left_out_base(entry, module, document, method)
            if left_out is not None:
                warnings.append(left_out)
        yield TowerPlan(tower, tuple(slices), module)


def _slice(
    entry: OutputSlice,
    first: int,
    tower: Tower,
    module: Module,
    document: Document,
    method: Method,
    models: _Models,
) -> Slice:
    sources = []
    for source in entry.sources:
        model = models.get(source.model)
        own = _matching_tower(model, tower)
        start, stop = resolve_range(source, own, model.name)
        sources.append(LayerSource(model, own, start, stop, source))
    reference = entry.base_model or document.base_model
    base = None
    if reference is not None and method.base is Base.NONE:
        if _joins(reference, entry, module, document, method):
            model = models.get(reference)
            own = _matching_tower(model, tower)
            sources.insert(0, LayerSource(model, own, 0, own.layers, None))
    elif reference is not None:
        listed = [i for i, s in enumerate(entry.sources) if s.model == reference]
        if listed:
            base = listed[0]
        else:
            ranges = {(source.start, source.stop) for source in sources}
            if len(ranges) > 1:
                raise entry.place.error(
                    f"the base model '{reference}' is not among the sources, which take different "
                    "layers: add it with the layer_range that is its part"
                )
            model = models.get(reference)
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
) -> bool:
    """Whether a base model that is not listed is merged like any other, by a method without base.

    It has no parameters of its own, so those that the method needs must stand higher up.
    """
    listed = any(source.model == reference for source in entry.sources)
    full = method.maximum is not None and len(entry.sources) >= method.maximum
    higher = {*module.parameters.entries, *document.parameters.entries}
    needed = {p.name for p in method.model_parameters if p.default is REQUIRED}
    return module.whole and not listed and not full and needed <= higher


def _left_out_base(
    entry: OutputSlice, module: Module, document: Document, method: Method
) -> str | None:
    """A warning where the base model gives no weights though it is named."""
    reference = document.base_model
    if reference is None or method.base is not Base.NONE or not module.whole:
        return None
    listed = any(source.model == reference for source in entry.sources)
    if listed or _joins(reference, entry, module, document, method):
        return None
    return (
        f"{document.place.file}: base_model '{reference}' gives configuration and tokenizer only: "
        "to merge it too, list it among the models"
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


def _build(stage: Stage, builder: GraphBuilder, warnings: list[str]) -> list[OutputTensor]:
    tensors = []
    missing: dict[str, list[str]] = defaultdict(list)
    mismatches: list[Mismatch] = []
    for plan in stage.tensor_plans():
        try:
            merge = build_merge(plan, builder, stage.rules)
        except Mismatch as mismatch:
            mismatches.append(mismatch)
            continue
        tensors.append(OutputTensor(plan.name, merge, output_dtype(plan, stage.document)))
        for model in plan.missing:
            missing[model.name].append(plan.name)
        if not all(equal_bytes(plan.contributions[0], other) for other in plan.passed_over):
            donor = plan.contributions[0].model.name
            warnings.append(
                f"'{plan.name}' holds integers that differ between models: copied from '{donor}'"
            )
    if mismatches:
        raise _shapes_differ(mismatches)
    for model_name, names in missing.items():
        those = "1 tensor is" if len(names) == 1 else f"{len(names)} tensors are"
        listed = f"'{names[0]}'" + (" and others" if len(names) > 1 else "")
        warnings.append(f"{those} missing in '{model_name}' and made without it: {listed}")
    return tensors


def _shapes_differ(mismatches: Sequence[Mismatch]) -> CheckpointError:
    """One error for all tensors whose shapes differ, with the ways out where there are some."""

    def shapes(mismatch: Mismatch) -> str:
        found = dict.fromkeys(
            f"{'x'.join(map(str, item.model.shape(item.tensor)))} in '{item.model.name}'"
            for item in mismatch.inputs
        )
        return f"'{mismatch.tensor}' ({', '.join(found)})"

    def rows_only(mismatch: Mismatch) -> bool:
        found = [item.model.shape(item.tensor) for item in mismatch.inputs]
        return all(len(s) == 2 and s[1] == found[0][1] for s in found) and all(
            item.layer is None for item in mismatch.inputs
        )

    shown = "; ".join(shapes(mismatch) for mismatch in mismatches[:4])
    more = f"; and {len(mismatches) - 4} more" if len(mismatches) > 4 else ""
    if all(rows_only(mismatch) for mismatch in mismatches):
        return CheckpointError(
            f"vocabularies differ: {shown}{more}: bring them together by 'tokenizer' settings, "
            "or keep the common leading rows by --allow-truncated-embeddings"
        )
    return CheckpointError(
        f"shapes differ in {len(mismatches)} tensors: {shown}{more}: "
        "only models of one architecture and size can be merged"
    )


def _output_config(stage: Stage) -> dict[str, Any]:
    document = stage.document
    changes = []
    for tower in stage.towers:
        if tower.tower.layers:
            origins = [
                origin
                for part in tower.slices
                for origin in range(
                    _origin(part, stage.donor), _origin(part, stage.donor) + part.length
                )
            ]
            changes.append(LayerChange(tower.tower.name, tower.tower.layers, tuple(origins)))
    vocabulary = None
    if stage.rules.truncate and stage.embedding is not None:
        part = stage.towers[0].slices[0]
        rows = [
            source.model.shape(stage.embedding)[0]
            for source in part.sources
            if stage.embedding in source.model
        ]
        if rows:
            vocabulary = (stage.donor.shape(stage.embedding)[0], min(rows))
    tied = stage.tied if stage.head is not None else None
    return rewrite_config(
        stage.donor.config, changes, document.out_dtype or document.dtype, tied, vocabulary
    )


def _origin(part: Slice, donor: Model) -> int:
    own = [source for source in part.sources if source.model is donor]
    return (own or part.sources)[0].start


def _identity(
    configuration: Configuration, options: PlanOptions, models: Mapping[str, Checkpoint]
) -> dict[str, str]:
    identity = {"configuration": _digest(configuration.text.encode())}
    for name, checkpoint in models.items():
        identity[f"model '{name}'"] = checkpoint.identity
    identity["seed"] = str(options.seed)
    identity["max shard size"] = str(options.max_shard_bytes)
    identity["truncated embeddings"] = str(options.truncate_embeddings)
    return identity


def _fingerprint(graph: Graph, files: Sequence[SideFile]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(graph.fingerprint().encode())
    for file in files:
        digest.update(f"\n{file.name} {file.digest}".encode())
    return digest.hexdigest()


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=12).hexdigest()
