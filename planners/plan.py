"""From a configuration to everything that a run needs: graph, side files, identity.

Reads headers and small files only, and does not import torch.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from mergeloom.engine.base.errors import CheckpointError, ConfigError, Finding, Severity
from mergeloom.engine.base.suggest import suggest
from mergeloom.engine.graph.graph import Graph, GraphBuilder
from mergeloom.engine.graph.kernel import Copy
from mergeloom.engine.hardware.process import trim_heap
from mergeloom.engine.job import Job
from mergeloom.engine.output.side_files import SideFile
from mergeloom.engine.output.state import DIGEST
from mergeloom.methods.ops.arithmetic import TORCH, cpu_arithmetic
from mergeloom.planners.checks import check_stage
from mergeloom.planners.config.config import Configuration, Document
from mergeloom.planners.config.findings import Findings
from mergeloom.planners.config.yaml_values import Value, load_documents
from mergeloom.planners.models.checkpoint import Checkpoint
from mergeloom.planners.models.model import OutputTensor, StagedModel
from mergeloom.planners.models.pool import Models
from mergeloom.planners.models.resolve import Resolver
from mergeloom.planners.models.token_weights import Head, declared_tied
from mergeloom.planners.output.config_json import rewrite_config
from mergeloom.planners.output.layers.rewrite import rewrite_layers
from mergeloom.planners.output.layers.stack import Rewritten
from mergeloom.planners.output.restacked import restacked
from mergeloom.planners.output.shards import Layout, lay_out
from mergeloom.planners.output.side_files import CONFIGURATION_NAME, side_files
from mergeloom.planners.slices.document import plan_stage
from mergeloom.planners.slices.integer_tensors import equal_contents
from mergeloom.planners.slices.stage import Stage
from mergeloom.planners.slices.tensor_plan import (
    Kernels,
    Mismatch,
    TensorPlan,
    build_merge,
    output_dtype,
)
from mergeloom.planners.slices.unused import Unused, unused_tensors
from mergeloom.planners.slices.vocabulary import (
    has_own_words,
    output_files,
    stage_tokenizer,
    with_vocabulary,
)
from mergeloom.planners.vocabulary.summary import VocabularySummary, summarise

DEFAULT_SHARD_BYTES = 5_000_000_000
SMALL_SHARD_BYTES = 1_000_000
"""Shards below this are hardly meant."""


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What a plan depends on besides its configuration; ``max_shard_bytes`` counts tensor data."""

    seed: int = 0
    max_shard_bytes: int = DEFAULT_SHARD_BYTES
    truncate_embeddings: bool = False
    allow_different_architectures: bool = False


@dataclass(frozen=True, repr=False)
class Plan:
    """A merge, planned: everything known before the first weight is read.

    ``config`` is the output's configuration, ``config_changes`` what in it is not as in the model
    that it is from because the layers are others; ``models`` the checkpoints by the names that the
    merge configuration gives them; ``unused`` what is left of their tensors, with reasons;
    ``findings`` what there is to warn about.
    """

    configuration: Configuration
    options: PlanOptions
    stages: tuple[Stage, ...]
    vocabulary: VocabularySummary | None
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
        """What there is to warn about, a line each."""
        return tuple(map(str, self.findings))

    @property
    def stage(self) -> Stage:
        """The document that makes the output; earlier ones make inputs of it."""
        return self.stages[-1]

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
        arithmetic = cpu_arithmetic()
        return Job(self.graph, self.fingerprint, identity, arithmetic, TORCH, files, record)

    def matching(self, pattern: str | None) -> list[TensorPlan]:
        """How the output tensor called ``pattern`` comes about, or else all whose names contain
        it; without a pattern, all of them.

        Raises:
            ConfigError: the output has no such tensor.
        """
        found = list(self.stage.tensor_plans())
        if pattern is None:
            return found
        exact = [tensor for tensor in found if tensor.name == pattern]
        matching = exact or [tensor for tensor in found if pattern in tensor.name]
        if not matching:
            raise _no_tensor(pattern, found)
        return matching

    def explain(self, tensor: str) -> TensorPlan:
        """How one output tensor comes about.

        Raises:
            ConfigError: the output has no such tensor.
        """
        found = list(self.stage.tensor_plans())
        for each in found:
            if each.name == tensor:
                return each
        raise _no_tensor(tensor, found)

    def __repr__(self) -> str:
        return f"<Plan of {len(self.graph.writes)} tensors, {self.fingerprint}>"


def _no_tensor(name: str, found: Sequence[TensorPlan]) -> ConfigError:
    known = [tensor.name for tensor in found[:20000]]
    return ConfigError(f"the output has no tensor '{name}'", remedy=suggest(name, known))


def make_plan(configuration: Configuration, resolver: Resolver, options: PlanOptions) -> Plan:
    """Plan the merge that ``configuration`` describes.

    Raises:
        ConfigError: it does not make sense for these models.
        CheckpointError: a model is missing, malformed, or does not fit the others.
    """
    models = Models(resolver)
    builder = GraphBuilder()
    warnings: list[str] = []
    folder = None if configuration.path is None else configuration.path.parent
    findings = Findings(configuration.warnings)

    stages: list[Stage] = []
    changes: list[str] = []
    for document in configuration.documents:
        with findings.together(document.place):
            stage = plan_stage(
                document, models, options.seed, options.truncate_embeddings, warnings, findings
            )
            stages.append(stage)
            tensors = _build(stage, builder, warnings)
            rewritten = _output_config(stage, warnings)
            config = with_vocabulary(rewritten.config, stage, models)
            allow = options.allow_different_architectures
            warnings += check_stage(stage, tensors, config, allow)
        of_stage = f"stage '{document.name}': " if document.name is not None else ""
        changes += [of_stage + change for change in rewritten.notes]
        used = [models.get(reference) for reference in document.references()]
        _warn_of_idle_filters(document, [name for model in used for name in model], findings)
        if document.name is not None:
            models.stages[document.name] = StagedModel(
                document.name,
                config,
                {tensor.name: tensor for tensor in tensors},
                models.donor_directory(stage.donor),
                cache(partial(stage_tokenizer, stage, models, folder)),
                has_own_words(stage),
            )
    for document in configuration.documents[:-1]:
        if document.name not in models.used_stages:
            findings.warn(document.place, f"stage '{document.name}' is used by no other")
    metadata = {"format": "pt"}
    layout = lay_out(tensors, options.max_shard_bytes, metadata)
    if options.max_shard_bytes < SMALL_SHARD_BYTES and len(layout.files) > 1:
        findings.add(_small_shards(options.max_shard_bytes, len(layout.files)))
    graph = builder.build(layout.writes, layout.files)
    graph.verify()
    stored = models.stored_by_name()
    donor, words = models.donor_directory(stage.donor), output_files(stage, models, folder)
    files = side_files(configuration, config, layout, donor, words, models.found, warnings)
    vocabulary = None
    if stage.vocabulary is not None:
        vocabulary = summarise(stage.vocabulary)
        stage = replace(stage, vocabulary=None)
    if any(each.vocabulary is not None for each in stages):  # tens of megabytes of tokens
        stages = [replace(each, vocabulary=None) for each in stages]
        trim_heap()
    identity = {**_identity(configuration, options, stored, files), **_arithmetic(graph)}
    fingerprint = _fingerprint(graph, files, identity.get("arithmetic", ""))
    return Plan(
        configuration=configuration,
        options=options,
        stages=tuple(stages),
        vocabulary=vocabulary,
        graph=graph,
        layout=layout,
        config=config,
        config_changes=tuple(changes),
        models=stored,
        side_files=files,
        identity=identity,
        fingerprint=fingerprint,
        unused=tuple(unused_tensors(stored, graph, stage)),
        findings=tuple(
            dict.fromkeys(
                (
                    *findings,
                    *(Finding(text, code="plan", severity=Severity.WARNING) for text in warnings),
                )
            )
        ),
    )


def _small_shards(nbytes: int, files: int) -> Finding:
    """Shards so small that something else was meant: elsewhere ``5B`` are five billion."""
    remedy = f"did you mean {nbytes}GB?" if nbytes < 1000 else ""
    cause = f"the largest shard has {nbytes} bytes, so there are {files} files"
    return Finding(cause, None, remedy, "unusual-value", Severity.WARNING)


def _warn_of_idle_filters(document: Document, names: Sequence[str], findings: Findings) -> None:
    """Find filters that no tensor's name contains."""
    text = "\n".join(names)
    for block in document.blocks():
        for name, entries in block.entries.items():
            for entry in entries:
                if entry.filter is not None and entry.filter not in text:
                    findings.warn(
                        entry.place,
                        f"no tensor's name contains '{entry.filter}': this value of '{name}' has "
                        "no effect",
                        code="idle-filter",
                    )


def _build(stage: Stage, builder: GraphBuilder, warnings: list[str]) -> list[OutputTensor]:
    tensors = []
    missing: dict[str, list[str]] = defaultdict(list)
    mismatches: list[Mismatch] = []
    kernels = Kernels(stage.rules)
    for plan in stage.tensor_plans():
        try:
            merge = build_merge(plan, builder, kernels)
        except Mismatch as mismatch:
            mismatches.append(mismatch)
            continue
        tensors.append(OutputTensor(plan.name, merge, output_dtype(plan, stage.document)))
        for model in plan.missing:
            missing[model.name].append(plan.name)
        if not all(equal_contents(plan.contributions[0], other) for other in plan.passed_over):
            donor = plan.contributions[0].model.name
            warnings.append(
                f"'{plan.name}' is not merged, because {plan.copied_because}, and differs between "
                f"models: copied from '{donor}'"
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
            f"vocabularies differ: {shown}{more}",
            remedy="'tokenizer: {source: union}' brings them together by their tokens, "
            "--allow-truncated-embeddings keeps the common leading rows",
        )
    return CheckpointError(
        f"shapes differ in {len(mismatches)} tensors: {shown}{more}: "
        "only models of one architecture and size can be merged"
    )


def _output_config(stage: Stage, warnings: list[str]) -> Rewritten:
    """The output's configuration; what may not be as meant is added to ``warnings``.

    Raises:
        ConfigError: no configuration describes a model of these layers.
    """
    document = stage.document
    rewritten = rewrite_layers(stage.donor.config, restacked(stage))
    if rewritten.refusals:
        raise ConfigError.of(rewritten.refusals).at(document.place)
    warnings += rewritten.warnings
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
    config = rewrite_config(
        rewritten.config,
        document.out_dtype or document.dtype,
        _declared_tied(stage),
        vocabulary,
    )
    return replace(rewritten, config=config)


def _declared_tied(stage: Stage) -> bool | None:
    """What the output's configuration must say of it; ``None`` where the donor's says it well."""
    kind = stage.donor.tokens.kind
    if stage.head is None or stage.tied or kind is Head.NONE:
        return None
    declared = declared_tied(stage.donor.config)
    return False if kind is Head.TIED or declared is True else None


def _identity(
    configuration: Configuration,
    options: PlanOptions,
    models: Mapping[str, Checkpoint],
    files: Sequence[SideFile],
) -> dict[str, str]:
    """Everything that the fingerprint covers by its name, with values that people can read."""
    identity: dict[str, str] = {}
    documents = load_documents(configuration.text, "config", Findings())
    for number, document in enumerate(documents):
        stage = "" if len(documents) == 1 else f"{number + 1}. "
        for key, value in _leaves(document):
            identity[f"configuration: {stage}{key}"] = str(value.content)
    for name, checkpoint in models.items():
        for source in checkpoint.sources:
            identity[f"'{Path(source.name).name}' of model '{name}'"] = source.description
    identity["seed"] = str(options.seed)
    identity["max shard size"] = str(options.max_shard_bytes)
    identity["truncated embeddings"] = str(options.truncate_embeddings)
    for file in files:
        if isinstance(file.content, Path):
            identity[f"file '{file.name}'"] = DIGEST + file.digest
        elif file.name == CONFIGURATION_NAME:
            identity["configuration: its comments and layout"] = DIGEST + file.digest
    return identity


def _leaves(value: Value) -> Iterator[tuple[str, Value]]:
    """Every value of a document that holds no others, with its path of keys."""
    if isinstance(value.content, dict):
        for item in value.content.values():
            yield from _leaves(item)
    elif isinstance(value.content, list):
        for item in value.content:
            yield from _leaves(item)
    else:
        yield value.place.path, value


def _arithmetic(graph: Graph) -> dict[str, str]:
    """By which arithmetic results come about, where anything is computed."""
    kernels = (merge.kernel for merge in graph.merges if not isinstance(merge.kernel, Copy))
    here = cpu_arithmetic()
    found = {here if kernel.uses else TORCH for kernel in kernels}
    names = sorted(arithmetic.name for arithmetic in found)
    return {"arithmetic": ", ".join(names)} if names else {}


def _fingerprint(graph: Graph, files: Sequence[SideFile], arithmetic: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{graph.fingerprint()}\n{arithmetic}".encode())
    for file in files:
        digest.update(f"\n{file.name} {file.digest}".encode())
    return digest.hexdigest()
