"""The planner that combines adapters into one that PEFT loads."""

from __future__ import annotations

from collections.abc import Set
from functools import cached_property
from typing import ClassVar

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.output.side_files import SideFile
from mergeloom.planners.adapters.combine import NOT_COMBINED, AdapterBuilder
from mergeloom.planners.adapters.document import AdaptersDocument, read_document
from mergeloom.planners.adapters.modules import (
    AdaptedModule,
    ReplacementTensor,
    adapted_modules,
    check_bases,
    replacement_tensors,
    token_indices_setting,
)
from mergeloom.planners.adapters.peft_config import adapter_config, disagreements
from mergeloom.planners.config.findings import Findings
from mergeloom.planners.config.yaml_values import Value
from mergeloom.planners.models.adapter import CONFIG, WEIGHTS, Adapter
from mergeloom.planners.models.architecture import Architecture
from mergeloom.planners.models.model import PlannedModel, StoredModel
from mergeloom.planners.models.resolve import Resolver, has_adapter_at
from mergeloom.planners.outline import Outline, OutlinePart, OutlineSlice, OutlineSource
from mergeloom.planners.output.side_files import as_json
from mergeloom.planners.planner import Planner, PlanningContext
from mergeloom.planners.recipe import Recipe


@dataclass(frozen=True)
class PlannedAdapter(PlannedModel):
    """An adapter computed by a document; later documents cannot use it as a model."""

    @cached_property
    def architecture(self) -> Architecture:
        raise CheckpointError(
            f"'{self.name}' is an adapter, not a model",
            remedy="merge it into a directory first, then use MODEL+DIRECTORY",
        )


class AdaptersPlanner(Planner[AdaptersDocument]):
    """Combines ``adapters``."""

    key: ClassVar[str] = AdaptersDocument.planner

    def read(self, value: Value, findings: Findings) -> AdaptersDocument | None:
        return read_document(value, findings)

    def check_early(
        self, document: AdaptersDocument, resolver: Resolver, stages: Set[str], findings: Findings
    ) -> None:
        for entry in document.adapters:
            with findings.attempting(entry.place):
                resolver.find_offline(entry.adapter.model, has_adapter_at)

    def plan(self, document: AdaptersDocument, planning: PlanningContext) -> Recipe:
        adapters = _open_adapters(document, planning)
        kind, findings = document.combination, planning.findings
        modules = adapted_modules(adapters, kind)
        others = list(replacement_tensors(adapters))
        if document.base_model is None:
            check_bases(adapters)
        _warn(document, adapters, modules, others, findings)
        numbers = [module.layer for module in modules]
        builder = AdapterBuilder(
            document,
            tuple(StoredModel(each.name, each.checkpoint) for each in adapters),
            planning.options.seed,
            max((number + 1 for number in numbers if number is not None), default=0),
            max((f.product.rank for module in modules for f in module.factors), default=1),
        )
        tensors = list(builder.build(planning.builder, modules, others))
        ranks = {module.name: builder.rank_of(module) for module in modules}
        config = adapter_config(
            adapters,
            ranks,
            str(document.base_model) if document.base_model is not None else _base_name(adapters),
            _saved_modules(adapters),
            any(builder.biases(module) for module in modules),
            token_indices_setting(adapters),
        )

        def files() -> tuple[SideFile, ...]:
            return (SideFile.from_content(CONFIG, as_json(config)),)

        def left_out(model: str, tensor: str) -> tuple[str, None]:
            return "it is the base model's own weight, which PEFT saved with the adapter", None

        return Recipe(
            output=PlannedAdapter(
                document.name or "the output", {}, {each.name: each for each in tensors}
            ),
            outline=_outline(document, adapters, modules),
            plans=lambda: builder.plans(modules, others),
            files=files,
            left_out=left_out,
            stem=WEIGHTS[0].removesuffix(".safetensors"),
            sharded=False,
            draws=kind.draws,
            library="peft",
        )


def _open_adapters(document: AdaptersDocument, planning: PlanningContext) -> list[Adapter]:
    """Open the adapters, collecting the errors of all.

    Raises:
        ConfigError: one is listed twice.
        CheckpointError: one is missing, or of another kind.
    """
    found: list[Adapter] = []
    for entry in document.adapters:
        with planning.findings.collecting(entry.place):
            adapter = planning.models.adapter(entry.adapter.model)
            if any(adapter is other for other in found):
                raise CheckpointError(
                    f"'{entry.adapter}' is named twice",
                    remedy="list it once, with the sum of its weights",
                )
            for note in adapter.notes:
                planning.findings.warn(entry.place, note, code="adapter-setting")
        found.append(adapter)
    return found


def _base_name(adapters: list[Adapter]) -> str | None:
    return next((adapter.base for adapter in adapters if adapter.base is not None), None)


def _saved_modules(adapters: list[Adapter]) -> set[str]:
    """The modules that the adapters save complete weights of, as their settings name them."""
    found = (adapter.checkpoint.config.get("modules_to_save") for adapter in adapters)
    return {each for names in found if isinstance(names, list) for each in names}


def _warn(
    document: AdaptersDocument,
    adapters: list[Adapter],
    modules: list[AdaptedModule],
    others: list[ReplacementTensor],
    findings: Findings,
) -> None:
    """Warn of combinations that are probably unintended, and of tensors that are not combined."""
    for key, first, value, second, found in disagreements(adapters):
        findings.warn(
            document.place,
            f"'{key}' is {value!r} in '{first}' and {found!r} in '{second}': the output has "
            f"{value!r}",
            code="disagreement",
        )
    if all(adapter.base is None for adapter in adapters) and document.base_model is None:
        findings.warn(
            document.place,
            "no adapter names its base model, so the output does not either",
            "write 'base_model: MODEL'",
            "no-base",
        )
    if len(adapters) > 1 and not any(len(module.factors) > 1 for module in modules):
        findings.warn(
            document.place,
            "no module is changed by two of the adapters: nothing is combined",
            "were they trained with different model classes?",
            "apart",
        )
    for other in others:
        findings.warn(
            document.place,
            f"'{other.name}' is taken from '{other.adapter.name}' as it is: {NOT_COMBINED}, and "
            "weights have no effect on it",
            code="not-combined",
        )


def _outline(
    document: AdaptersDocument, adapters: list[Adapter], modules: list[AdaptedModule]
) -> Outline:
    sources = tuple(OutlineSource(adapter.name, None) for adapter in adapters)
    part = OutlinePart("adapter", 0, (OutlineSlice(None, "merged", "", sources),))
    shared = sum(len(module.factors) > 1 for module in modules)
    return Outline(
        name=document.name,
        method=f"{document.combination.name} of adapters",
        dtype=document.dtype.name if document.dtype is not None else None,
        parts=(part,),
        notes=(f"{len(modules)} modules are adapted, {shared} of them by more than one adapter",),
    )
