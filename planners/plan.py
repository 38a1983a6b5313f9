"""Plans a merge: turns a configuration into a graph, side files and an identity.

Reads headers and small files only, and does not import torch.
"""

from __future__ import annotations

import hashlib
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeloom.engine.base.errors import ConfigError, Finding, Severity
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.base.suggest import nearest
from mergeloom.engine.graph.graph import Graph, GraphBuilder
from mergeloom.engine.graph.kernel import Copy
from mergeloom.engine.graph.verify import verify
from mergeloom.engine.hardware.process import trim_heap
from mergeloom.engine.output.side_files import DIGEST, SideFile
from mergeloom.engine.storage.folder import LocalFolder
from mergeloom.methods.ops.arithmetic import TORCH, cpu_arithmetic
from mergeloom.planners import registry
from mergeloom.planners.config.config import Configuration
from mergeloom.planners.config.findings import Findings
from mergeloom.planners.config.yaml_values import Value, load_documents
from mergeloom.planners.early import check_early
from mergeloom.planners.models.checkpoint import Checkpoint
from mergeloom.planners.models.pool import Models
from mergeloom.planners.models.resolve import Resolver
from mergeloom.planners.outline import Outline
from mergeloom.planners.output.shards import Layout, lay_out_folders, shard_by_tensor
from mergeloom.planners.output.side_files import CONFIGURATION_NAME, side_files
from mergeloom.planners.planner import PlanningContext, PlanOptions
from mergeloom.planners.recipe import Recipe
from mergeloom.planners.tensors import TensorPlan
from mergeloom.planners.unused import Unused, unused_tensors
from mergeloom.planners.vocabulary.summary import VocabularySummary

if TYPE_CHECKING:
    from mergeloom.engine.job import Job

SMALL_SHARD_BYTES = 1_000_000
"""Smaller shards are probably a mistake."""


@dataclass(frozen=True, repr=False)
class Plan:
    """A planned merge: everything known before any weight is read.

    ``outlines`` has one outline per document, the output's last. ``tensor_plans`` yields the plan
    of each output tensor, and each of ``earlier_plans`` the plans of an earlier document.
    ``config`` is the content of the output's ``config.json``; ``config_changes`` says how it
    differs from the donor's because of changed layers. ``models`` are the checkpoints by name in
    the merge configuration, ``unused`` their tensors that are left out, with reasons; ``findings``
    are warnings. For ``draws`` and ``tied`` see `Recipe`.
    """

    configuration: Configuration
    options: PlanOptions
    outlines: tuple[Outline, ...]
    tensor_plans: Callable[[], Iterator[TensorPlan]]
    earlier_plans: tuple[Callable[[], Iterator[TensorPlan]], ...]
    vocabulary: VocabularySummary | None
    draws: bool
    tied: bool | None
    graph: Graph
    layout: Layout
    config: Mapping[str, Any]
    config_changes: tuple[str, ...]
    models: Mapping[str, Checkpoint]
    side_files: tuple[SideFile, ...]
    identity: Mapping[str, str]
    fingerprint: str
    unused: tuple[Unused, ...]
    findings: tuple[Finding, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings, one line each."""
        return tuple(map(str, self.findings))

    @property
    def parameters(self) -> int:
        """Number of elements of all output tensors."""
        return sum(math.prod(w.merge.shape) for w in self.graph.writes if not w.part)

    @property
    def layers(self) -> int:
        """Number of layers of the output's main part."""
        return self.outlines[-1].layers

    def job(self, about: Mapping[str, Any]) -> Job:
        """The job for the engine; ``about`` is added to the manifest."""
        record = {
            "configuration": self.configuration.text,
            "models": {
                name: {"directory": checkpoint.folder.name, "identity": checkpoint.identity}
                for name, checkpoint in self.models.items()
            },
            "seed": self.options.seed,
            **about,
        }
        from mergeloom.engine.job import Job

        identity, files = self.identity, self.side_files
        arithmetic = cpu_arithmetic()
        return Job(self.graph, self.fingerprint, identity, arithmetic, TORCH, files, record)

    def explain(self, tensor: str) -> TensorPlan:
        """The plan of one output tensor.

        Raises:
            ConfigError: the output has no such tensor.
        """
        names = [write.name for write in self.graph.writes]
        return matching_plans(self.tensor_plans(), names, tensor, whole=True)[0]

    def __repr__(self) -> str:
        return f"<Plan of {len(self.graph.writes)} tensors, {self.fingerprint}>"


def matching_plans(
    plans: Iterable[TensorPlan], names: Sequence[str], pattern: str | None, whole: bool = False
) -> list[TensorPlan]:
    """The plan of the tensor called ``pattern`` or, if there is none, the plans of all tensors
    whose names contain it; without a pattern, all plans.

    ``plans`` are for the tensors ``names``; with ``whole``, ``pattern`` must be a full name.

    Raises:
        ConfigError: no name matches.
    """
    if pattern is None:
        return list(plans)
    wanted = {name for name in names if name == pattern}
    if not wanted and not whole:
        wanted = {name for name in names if pattern in name}
    if not wanted:
        remedy = _similar_names(pattern, names[:20000])
        raise ConfigError(f"the output has no tensor '{pattern}'", remedy=remedy)
    found = (plan for plan in plans if plan.name in wanted)
    return list(islice(found, len(wanted)))  # stop when all are found: plans are made on demand


_NEARLY_EQUAL = 0.85
"""Similarity of whole names; they share endings such as ``.weight``, whatever they name."""


def _similar_names(pattern: str, names: Sequence[str]) -> str:
    """A suggestion: a similar name or part of one, or else some of the names."""
    parts = dict.fromkeys(part for name in names for part in name.split("."))
    near = [part if part in parts else nearest(part, parts) for part in pattern.split(".")]
    meant = ".".join(part for part in near if part is not None)
    if None in near or not any(meant in name for name in names):
        meant = nearest(pattern, names, _NEARLY_EQUAL) or ""
    if meant:
        return f"did you mean '{meant}'?"
    shown = [name for name in names if not re.search(r"\d", name)][:3] + [
        name for name in names if re.search(r"\.0\.", name)
    ]
    return f"there are {len(names):,} tensors, such as {', '.join(shown[:6] or names[:6])}"


@dataclass(frozen=True)
class Decisions:
    """The planners' decisions for all documents, before graph, shards and identity are built;
    enough to explain every tensor."""

    configuration: Configuration
    planning: PlanningContext
    recipes: tuple[Recipe, ...]

    @property
    def recipe(self) -> Recipe:
        """The recipe of the output document."""
        return self.recipes[-1]

    @property
    def max_shard_bytes(self) -> int:
        """Maximum size of a shard's data in bytes."""
        return self.planning.options.max_shard_bytes if self.recipe.sharded else sys.maxsize

    def files_by_tensor(self) -> Mapping[str, str]:
        """The file of each tensor, by tensor name."""
        recipe = self.recipe
        tensors = list(recipe.output.tensors.values())
        return shard_by_tensor(tensors, self.max_shard_bytes, recipe.stem, recipe.stems)


def decide(
    configuration: Configuration,
    resolver: Resolver,
    options: PlanOptions,
    keeps_plans: bool = False,
) -> Decisions:
    """Plan all documents of ``configuration``; all errors are found here. For ``keeps_plans`` see
    `PlanningContext`.

    Raises:
        ConfigError: it is invalid for these models.
        CheckpointError: a model is missing, malformed, or does not fit the others.
    """
    models = Models(resolver)
    findings = Findings(configuration.warnings)
    place = Path() if configuration.path is None else configuration.path.parent
    folder = LocalFolder(place, confined=False)
    planning = PlanningContext(models, options, GraphBuilder(), findings, folder, keeps_plans)
    check_early(configuration.documents, resolver, findings)
    findings.check()
    recipes = []
    for document in configuration.documents:
        planner = registry.get(document.planner)
        with findings.collecting(document.place):
            recipe = planner.plan(document, planning)
        recipes.append(recipe)
        if document.name is not None:
            models.stages[document.name] = recipe.output
    for document in configuration.documents[:-1]:
        if document.name not in models.used_stages:
            findings.warn(document.place, f"stage '{document.name}' is used by no other")
    recipes[-1] = _quantised_output(configuration, recipes[-1], planning)
    return Decisions(configuration, planning, tuple(recipes))


def make_plan(configuration: Configuration, resolver: Resolver, options: PlanOptions) -> Plan:
    """Plan the merge described by ``configuration``; raises like `decide`."""
    decided = decide(configuration, resolver, options)
    plan = _plan(decided)
    if any(recipe.vocabulary is not None for recipe in decided.recipes):
        del decided  # frees tens of megabytes of tokens
        trim_heap()
    return plan


def _plan(decided: Decisions) -> Plan:
    """The plan of the decisions, with graph, shards and identity."""
    recipes, recipe, models = decided.recipes, decided.recipe, decided.planning.models
    configuration, options = decided.configuration, decided.planning.options
    layout, graph = _shards_and_graph(decided)
    stored = models.stored_by_name()
    named = {**models.found, **models.adapters}
    files = side_files(configuration, recipes, layout, named)
    identity = {**_identity(configuration, options, stored, files), **_arithmetic_identity(graph)}
    return Plan(
        configuration=configuration,
        options=options,
        outlines=tuple(recipe.outline for recipe in recipes),
        tensor_plans=recipe.plans,
        earlier_plans=tuple(recipe.plans for recipe in recipes[:-1]),
        vocabulary=recipe.vocabulary,
        draws=any(recipe.draws for recipe in recipes),
        tied=recipe.tied,
        graph=graph,
        layout=layout,
        config=recipe.output.config,
        config_changes=tuple(_config_changes(recipes)),
        models=stored,
        side_files=files,
        identity=identity,
        fingerprint=_fingerprint(graph, files, identity.get("arithmetic", "")),
        unused=tuple(unused_tensors(stored, graph, recipe.left_out)),
        findings=tuple(decided.planning.findings),
    )


def _quantised_output(
    configuration: Configuration,
    recipe: Recipe,
    planning: PlanningContext,
) -> Recipe:
    """The recipe of the output, quantised if its document has ``quantize``."""
    *earlier, last = configuration.documents
    for document in earlier:
        if document.quantize is not None:
            place = document.quantize.place
            raise place.error("only the last document's output is written", "remove it here")
    if last.quantize is None:
        return recipe
    from mergeloom.planners.output.quantised import quantise_output

    place, models = last.quantize.place, planning.models.stored_by_name()
    if cpu_arithmetic() is TORCH:
        raise place.error(
            "quantised weights are written by compiled machine code, which needs numba",
            "install numba",
        )
    wanted, findings = str(last.quantize.content), planning.findings
    return quantise_output(recipe, wanted, place, models, planning.builder, findings)


def _shards_and_graph(decided: Decisions) -> tuple[Layout, Graph]:
    """The shards of the output, and the graph of tasks that write them."""
    recipe, planning, most = decided.recipe, decided.planning, decided.max_shard_bytes
    tensors = list(recipe.output.tensors.values())
    layout = lay_out_folders(tensors, most, recipe.metadata, recipe.stem, recipe.stems)
    if most < SMALL_SHARD_BYTES and layout.indices:
        planning.findings.add(_small_shards(most, len(layout.files)))
    graph = planning.builder.build(layout.writes, layout.files)
    verify(graph)
    return layout, graph


def _config_changes(recipes: Sequence[Recipe]) -> Iterator[str]:
    """The configuration changes of all documents, prefixed with the stage name if any."""
    for recipe in recipes:
        name = recipe.outline.name
        of_stage = f"stage '{name}': " if name is not None else ""
        yield from (of_stage + change for change in recipe.config_changes)


def _small_shards(nbytes: int, files: int) -> Finding:
    """The warning for tiny shards, as from ``5B``, which means five gigabytes in mergekit."""
    remedy = f"did you mean {nbytes}GB?" if nbytes < 1000 else ""
    cause = f"the largest shard has {nbytes} bytes, so there are {files} files"
    return Finding(cause, None, remedy, "unusual-value", Severity.WARNING)


def _identity(
    configuration: Configuration,
    options: PlanOptions,
    models: Mapping[str, Checkpoint],
    files: Sequence[SideFile],
) -> dict[str, str]:
    """Everything that the fingerprint covers, by name, with readable values."""
    identity: dict[str, str] = {}
    documents = load_documents(configuration.text, "config", Findings())
    for number, document in enumerate(documents):
        stage = "" if len(documents) == 1 else f"{number + 1}. "
        for key, value in _scalar_values(document):
            identity[f"configuration: {stage}{key}"] = str(value.content)
    for name, checkpoint in models.items():
        for source in checkpoint.sources:
            identity[f"'{Path(source.name).name}' of model '{name}'"] = source.description
    identity["seed"] = str(options.seed)
    identity["max shard size"] = str(options.max_shard_bytes)
    identity["truncated embeddings"] = str(options.truncate_embeddings)
    for file in files:
        if not isinstance(file.content, bytes):
            identity[f"file '{file.name}'"] = DIGEST + file.digest
        elif file.name == CONFIGURATION_NAME:
            identity["configuration: its comments and layout"] = DIGEST + file.digest
    return identity


def _scalar_values(value: Value) -> Iterator[tuple[str, Value]]:
    """Every scalar value of a document, with its key path."""
    if isinstance(value.content, dict):
        for item in value.content.values():
            yield from _scalar_values(item)
    elif isinstance(value.content, list):
        for item in value.content:
            yield from _scalar_values(item)
    else:
        yield value.place.path, value


def _arithmetic_identity(graph: Graph) -> dict[str, str]:
    """The names of the arithmetic that computes; empty if all tensors are copied."""
    kernels = {id(merge.kernel): merge.kernel for merge in graph.merges}  # most merges share one
    here = cpu_arithmetic()
    computing = (kernel for kernel in kernels.values() if not isinstance(kernel, Copy))
    found = {here if kernel.uses else TORCH for kernel in computing}
    names = sorted(arithmetic.name for arithmetic in found)
    return {"arithmetic": ", ".join(names)} if names else {}


def _fingerprint(graph: Graph, files: Sequence[SideFile], arithmetic: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{graph.fingerprint()}\n{arithmetic}".encode())
    for file in files:
        digest.update(f"\n{file.name} {file.digest}".encode())
    return digest.hexdigest()
