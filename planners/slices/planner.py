"""The planner of merges: models, or slices of them, merged layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from dataclasses import replace
from functools import cache
from typing import ClassVar

from mergeloom.engine.base.errors import ConfigError
from mergeloom.engine.output.side_files import SideFile
from mergeloom.planners.config.config import MergeDocument
from mergeloom.planners.config.document import read_document
from mergeloom.planners.config.findings import Findings
from mergeloom.planners.config.model_reference import ModelReference
from mergeloom.planners.config.yaml_values import Value
from mergeloom.planners.filters import warn_of_idle_filters
from mergeloom.planners.models.model import Model, PlannedModel
from mergeloom.planners.models.resolve import Resolver
from mergeloom.planners.models.token_weights import Head, is_declared_tied
from mergeloom.planners.output.config_json import rewrite_config
from mergeloom.planners.output.layers.rewrite import rewrite_layers
from mergeloom.planners.output.layers.stack import RewrittenConfig
from mergeloom.planners.output.side_files import model_files
from mergeloom.planners.planner import Planner, PlanningContext
from mergeloom.planners.recipe import Recipe
from mergeloom.planners.slices.checks import check_stage
from mergeloom.planners.slices.document import plan_stage
from mergeloom.planners.slices.left_out import LeftOut
from mergeloom.planners.slices.outline import outline
from mergeloom.planners.slices.slice_checks import check_written_requirements
from mergeloom.planners.slices.source_layers import source_layers
from mergeloom.planners.slices.stage import Stage
from mergeloom.planners.slices.tensor_plan import TensorBuilder
from mergeloom.planners.slices.vocabulary import OutputTokenizer
from mergeloom.planners.tensors import TensorPlan, build_tensors
from mergeloom.planners.vocabulary.summary import summarise

ROWS_REMEDY = (
    "'tokenizer: {source: union}' matches them by token, "
    "--allow-truncated-embeddings keeps the common leading rows"
)


class SlicesPlanner(Planner[MergeDocument]):
    """Merges models: ``models``, ``slices`` or ``modules``."""

    key: ClassVar[str] = MergeDocument.planner

    def read(self, value: Value, findings: Findings) -> MergeDocument | None:
        return read_document(value, findings)

    def check_early(
        self, document: MergeDocument, resolver: Resolver, stages: Set[str], findings: Findings
    ) -> None:
        merged = document.merged_models()
        self.check_models(merged, document, resolver, stages, findings)
        settings = document.tokenizer
        source = None if settings is None else settings.source
        if settings is not None and isinstance(source, ModelReference) and source not in merged:
            near = resolver.misspelt(source, ["union", "base", *map(str, merged)])
            if near is not None and str(source) not in stages:
                findings.error(
                    settings.place,
                    f"'{source}' is not 'union', 'base' or the name of a model",
                    f"did you mean '{near}'?",
                )
        if findings.errors:
            check_written_requirements(document, findings)

    def plan(self, document: MergeDocument, planning: PlanningContext) -> Recipe:
        models, findings = planning.models, planning.findings
        stage, vocabulary = plan_stage(document, planning)
        plans: Callable[[], Iterator[TensorPlan]] = stage.tensor_plans
        if planning.keeps_plans:
            plans = tuple(stage.tensor_plans()).__iter__
        doubts = Findings()  # of no interest if the models do not belong together
        tensors = build_tensors(
            plans(),
            TensorBuilder(document, planning, stage.rules.truncate),
            doubts,
            ROWS_REMEDY,
        )
        output_tokenizer = OutputTokenizer(stage, vocabulary, models, planning.folder)
        rewritten = _rewritten_config(stage, doubts)
        config = output_tokenizer.config(rewritten.config)
        check_stage(stage, tensors, config, planning.options.allow_different_architectures, doubts)
        findings.extend(doubts)
        used = [models.get(reference) for reference in document.merged_models()]
        warn_of_idle_filters(
            document.blocks(), (name for model in used for name in model), findings
        )
        donor = models.donor_folder(stage.donor)

        def files() -> tuple[SideFile, ...]:
            return model_files(config, donor, output_tokenizer.files(), models.folders, findings)

        return Recipe(
            output=PlannedModel(
                document.name or "the output",
                config,
                {tensor.name: tensor for tensor in tensors},
                donor,
                cache(output_tokenizer.tokenizer),
                output_tokenizer.is_changed,
            ),
            outline=outline(stage),
            plans=plans,
            files=files,
            left_out=LeftOut(stage),
            draws=stage.rules.method.draws,
            tied=stage.tied if stage.head is not None or stage.tied else None,
            config_changes=tuple(rewritten.notes),
            vocabulary=None if vocabulary is None else summarise(vocabulary),
        )


def _rewritten_config(stage: Stage, findings: Findings) -> RewrittenConfig:
    """The output's configuration; doubts are added to ``findings``.

    Raises:
        ConfigError: no configuration can describe a model with these layers.
    """
    document = stage.document
    rewritten = rewrite_layers(stage.donor.config, source_layers(stage))
    if rewritten.refusals:
        raise ConfigError.of(rewritten.refusals).at(document.place)
    findings.notes(rewritten.warnings)
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
    tied = _tied_to_declare(stage)
    changes = list(rewritten.notes)
    if tied is False and is_declared_tied(stage.donor.config):
        changes.append("tie_word_embeddings: false, since the head is not the embedding")
    config = rewrite_config(
        rewritten.config, document.out_dtype or document.dtype, tied, vocabulary
    )
    return replace(rewritten, config=config, notes=changes)


def _may_be_tied(model: Model) -> bool:
    """Whether embedding and head have one shape, as two names of one weight do."""
    tokens = model.tokens
    names = (tokens.embedding, tokens.head)
    return len({model.shape(name) for name in names if name is not None}) == 1


def _tied_to_declare(stage: Stage) -> bool | None:
    """The value of ``tie_word_embeddings`` to write; ``None`` if the donor's is correct."""
    kind = stage.donor.tokens.kind
    if stage.head is None or stage.tied or kind is Head.NONE:
        return None
    declared = is_declared_tied(stage.donor.config)
    if declared is True and kind is Head.OWN and not _may_be_tied(stage.donor):
        return None  # the class ties other weights by it
    return False if kind is Head.TIED or declared is True else None
