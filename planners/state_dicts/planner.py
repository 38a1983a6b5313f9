"""The planner for plain weights: files of named tensors, merged by name.

They may be of any network: there are no layers, configuration or tokenizer, and every
floating-point tensor is merged. Documents, parameters and base models work as in merges of models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import ClassVar

from mergeloom.engine.base.errors import CheckpointError, LoomError
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.storage.folder import Folder, LocalFile
from mergeloom.methods import registry
from mergeloom.planners.config.findings import Findings
from mergeloom.planners.config.model_reference import ModelReference
from mergeloom.planners.config.yaml_values import Value
from mergeloom.planners.filters import warn_of_idle_filters
from mergeloom.planners.models.architecture import Tower
from mergeloom.planners.models.checkpoint import Checkpoint
from mergeloom.planners.models.formats import SAFETENSORS
from mergeloom.planners.models.model import Model, PlannedModel, StoredModel
from mergeloom.planners.models.pipeline import differing_files, pipeline_files
from mergeloom.planners.models.pool import Models
from mergeloom.planners.models.resolve import Resolver
from mergeloom.planners.outline import Outline, OutlinePart, OutlineSlice, OutlineSource
from mergeloom.planners.planner import DEFAULT_SHARD_BYTES, Planner, PlanningContext
from mergeloom.planners.recipe import LeftOutReason, Recipe
from mergeloom.planners.slices.document import donor_reference
from mergeloom.planners.slices.slice_checks import (
    check_required,
    check_written_requirements,
    slice_levels,
    warn_of_no_effect,
)
from mergeloom.planners.slices.slice_sources import SliceBuilder
from mergeloom.planners.slices.slices import Slice, TensorSources
from mergeloom.planners.slices.tensor_plan import (
    MergingRules,
    SliceRules,
    TensorBuilder,
)
from mergeloom.planners.state_dicts.document import (
    KEY,
    StateDictDocument,
    TensorSelection,
    read_state_dict_document,
)
from mergeloom.planners.tensors import TensorPlan, build_tensors

_MAX_LISTED = 4


class StateDictPlanner(Planner[StateDictDocument]):
    """Merges weight files."""

    key: ClassVar[str] = KEY

    def read(self, value: Value, findings: Findings) -> StateDictDocument | None:
        return read_state_dict_document(value, findings)

    def check_early(
        self,
        document: StateDictDocument,
        resolver: Resolver,
        stages: Set[str],
        findings: Findings,
    ) -> None:
        for reference in document.merged_models():
            if str(reference) not in stages:
                with findings.attempting(document.place_of(reference)):
                    resolver.weights(str(reference), stages)
        if findings.errors:
            check_written_requirements(document, findings)

    def plan(self, document: StateDictDocument, planning: PlanningContext) -> Recipe:
        findings = planning.findings
        for reference in document.merged_models():
            findings.attempt(_open_input, reference, document, planning.models, findings)
        findings.check()
        method = registry.get(document.merge_method)
        part = _inputs_as_slice(document, planning)
        merged = _WeightsMerge(document, part, MergingRules(document, method, False))
        built = build_tensors(merged.plans(), TensorBuilder(document, planning), findings)
        models = [source.model for source in part.sources]
        warn_of_idle_filters(
            document.blocks(), (name for model in models for name in model), findings
        )
        metadata, notes = _metadata_and_notes(planning.models.weights(donor_reference(document)))
        stored = [m.checkpoint for m in models if isinstance(m, StoredModel)]
        stems = {name: stem for each in stored for name, stem in each.stems.items()}
        several = any(len(each.sources) > 1 for each in stored)
        donor = planning.models.donor_folder(planning.models.weights(donor_reference(document)))
        if stems:
            _check_pipelines(document, stored, donor, findings)
        chosen = planning.options.max_shard_bytes != DEFAULT_SHARD_BYTES
        return Recipe(
            output=PlannedModel(
                document.name or "the output", {}, {tensor.name: tensor for tensor in built}
            ),
            outline=_outline(document, part, notes, list(stems)),
            plans=merged.plans,
            left_out=merged.left_out,
            sharded=several or chosen,
            files=lambda: pipeline_files(donor) if stems and donor is not None else (),
            stems=stems,
            metadata=metadata,
            library="diffusers" if stems else None,
            draws=method.draws,
        )


@dataclass(frozen=True)
class _Weights:
    """The inputs of a document, each as a tower without layers."""

    models: Models

    def get(self, reference: ModelReference) -> Model:
        return self.models.weights(reference)

    def tower(self, model: Model, tower: Tower) -> Tower:
        return Tower("default", "", (), tuple(model), ())


@dataclass(frozen=True)
class _WeightsMerge:
    """The tensors of one document's output."""

    document: StateDictDocument
    part: Slice
    rules: MergingRules

    def plans(self) -> Iterator[TensorPlan]:
        """The plan of each tensor: those of the first input, then additional ones of others.

        Raises:
            CheckpointError: inputs have different tensors, and the document does not allow that.
        """
        levels = slice_levels(self.part.entry, self.document.modules[None], self.document)
        rules = SliceRules(self.part, self.rules, levels)
        for name, positions in self._positions_by_name().items():
            names = (name,) * len(positions)
            yield rules.plan(TensorSources(name, self.part, None, 0.0, tuple(positions), names))

    def _positions_by_name(self) -> Mapping[str, Sequence[int]]:
        """The inputs that have each tensor of the output."""
        found: dict[str, list[int]] = {}
        for position, source in enumerate(self.part.sources):
            for name in source.model:
                found.setdefault(name, []).append(position)
        if self.document.tensors is TensorSelection.UNION:
            return found
        number = len(self.part.sources)
        common = {name: inputs for name, inputs in found.items() if len(inputs) == number}
        if not common:
            first, *others = (source.model for source in self.part.sources)
            other = next(m for m in others if not any(name in m for name in first))
            raise CheckpointError(
                f"'{first.name}' and '{other.name}' have no tensor of the same name: "
                f"'{next(iter(first))}' is one of the first, '{next(iter(other))}' of the second",
                place=self.part.entry.place,
                remedy="they are different networks, or were written by different programs",
            )
        if self.document.tensors is TensorSelection.SAME and len(common) < len(found):
            raise self._missing_error({n: inputs for n, inputs in found.items() if n not in common})
        return common

    def _missing_error(self, names: Mapping[str, Sequence[int]]) -> CheckpointError:
        models = [source.model.name for source in self.part.sources]

        def shown(name: str, inputs: Sequence[int]) -> str:
            lacking = [f"'{m}'" for i, m in enumerate(models) if i not in inputs]
            return f"'{name}' is not in {' and '.join(lacking)}"

        texts = [shown(name, inputs) for name, inputs in list(names.items())[:_MAX_LISTED]]
        more = f"; and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
        what = "1 tensor is" if len(names) == 1 else f"{len(names)} tensors are"
        return CheckpointError(
            f"{what} not in every input: {'; '.join(texts)}{more}",
            place=self.part.entry.place,
            remedy="'tensors: union' merges each from the inputs that have it, "
            "'tensors: intersection' leaves them out",
            code="missing-tensors",
        )

    def left_out(self, model: str, tensor: str) -> LeftOutReason:
        if self.document.tensors is TensorSelection.INTERSECTION:
            return "another input lacks them ('tensors: intersection')", None
        return "the output does not use it", None


def _open_input(
    reference: ModelReference, document: StateDictDocument, models: Models, findings: Findings
) -> None:
    """Open one input; errors get the place where the document names it."""
    place = document.place_of(reference)
    try:
        model = models.weights(reference)
    except LoomError as error:
        raise error.at(place) from error
    if not isinstance(model, StoredModel):
        return
    if not document.asks_for_weights and _is_part_of_model(model.checkpoint.folder):
        findings.warn(
            place,
            f"'{model.name}' is merged as weights alone: the output has no config.json and no "
            "tokenizer",
            "name its folder to merge the model",
            "weights-alone",
        )
    if model.checkpoint.passed_over:
        files = model.checkpoint.passed_over
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        findings.warn(
            place,
            f"'{model.name}' has '{files[0]}'{more} beside its weights, which is not read",
            code="passed-over",
        )


def _is_part_of_model(folder: Folder) -> bool:
    """Whether the weights are a file in the directory of a model."""
    if not isinstance(folder, LocalFile):
        return False
    return folder.has(SAFETENSORS.single) and folder.parent.has("config.json")


def _check_pipelines(
    document: StateDictDocument,
    stored: Sequence[Checkpoint],
    donor: Folder | None,
    findings: Findings,
) -> None:
    """Warn of settings of other pipelines that the output does not get.

    Raises:
        ConfigError: the output is to be quantised.
    """
    if document.quantize is not None:
        raise document.quantize.place.error(
            "components of a pipeline cannot be quantised", "leave 'quantize' out"
        )
    for each in stored:
        if donor is not None and each.stems and each.folder.identity != donor.identity:
            findings.notes(differing_files(donor, each.folder), code="settings-differ")


def _inputs_as_slice(document: StateDictDocument, planning: PlanningContext) -> Slice:
    """All inputs as one slice without layers.

    Raises:
        ConfigError: the method cannot merge them, or lacks parameters.
    """
    models, findings = planning.models, planning.findings
    method, module, weights = (
        registry.get(document.merge_method),
        document.modules[None],
        _Weights(models),
    )
    (entry,) = module.slices
    donor = models.weights(donor_reference(document))
    tower = weights.tower(donor, Tower("default", "", (), (), ()))
    builder = SliceBuilder(document, module, method, weights)
    part = builder.build(entry, 0, tower)
    levels = slice_levels(part.entry, module, document)
    check_required(part, method, levels, findings)
    warn_of_no_effect(part, method, levels, findings)
    builder.warn_of_left_out_base(entry, findings, "nothing")
    findings.check()
    return part


def _metadata_and_notes(donor: Model) -> tuple[Mapping[str, str], list[str]]:
    """The metadata of the output: that of the base or first input without content digests; and
    notes about it."""
    own = donor.checkpoint.metadata if isinstance(donor, StoredModel) else {}
    kept = {key: value for key, value in own.items() if "hash" not in key.lower()}
    dropped = [key for key in own if key not in kept]
    notes = []
    if kept.keys() - {"format"}:
        notes.append(f"the metadata of '{donor.name}' is kept: {', '.join(sorted(kept))}")
    if dropped:
        notes.append(
            f"digests in it are left out, because weights change: {', '.join(sorted(dropped))}"
        )
    return {"format": "pt", **kept}, notes


def _outline(
    document: StateDictDocument, part: Slice, notes: Sequence[str], components: Sequence[str]
) -> Outline:
    dtype = document.out_dtype or document.dtype
    sources = tuple(
        OutlineSource(source.model.name, None, position == part.base)
        for position, source in enumerate(part.sources)
    )
    return Outline(
        name=document.name,
        method=document.merge_method,
        dtype=dtype.name if dtype is not None else None,
        parts=tuple(
            OutlinePart(name, 0, (OutlineSlice(None, "merged", "", sources),))
            for name in (components or ("default",))
        ),
        notes=tuple(notes),
    )
