"""Builds slices: the sources of each, with the base model among them."""

from __future__ import annotations

from typing import Protocol

from mergeloom.methods.declare import REQUIRED, Base, Method
from mergeloom.planners.config.config import MergeDocument, Module, OutputSlice, SourceEntry
from mergeloom.planners.config.findings import Findings, placing
from mergeloom.planners.config.model_reference import ModelReference
from mergeloom.planners.models.architecture import Tower
from mergeloom.planners.models.model import Model
from mergeloom.planners.slices.slices import LayerSource, Slice, check_lengths, resolve_range
from mergeloom.planners.slices.tensor_plan import check_models


class DocumentModels(Protocol):
    """The models of one document, as used by slices."""

    def get(self, reference: ModelReference) -> Model:
        """A model."""
        ...

    def tower(self, model: Model, tower: Tower) -> Tower:
        """The tower of a model that corresponds to ``tower`` of the output."""
        ...


def build_slice(
    entry: OutputSlice,
    first: int,
    tower: Tower,
    module: Module,
    document: MergeDocument,
    method: Method,
    models: DocumentModels,
) -> Slice:
    """Build the slice for ``entry``, which starts at layer ``first`` of a tower of the output; its
    sources include the base.

    Raises:
        ConfigError: the sources do not form a valid slice.
    """
    with placing(entry.place):
        return _slice_of_sources(entry, first, tower, module, document, method, models)


def _layer_source(source: SourceEntry, tower: Tower, models: DocumentModels) -> LayerSource:
    """A source model with its layer range."""
    model = models.get(source.model)
    own = models.tower(model, tower)
    start, stop = resolve_range(source, own, model.name)
    return LayerSource(model, own, start, stop, source)


def _slice_of_sources(
    entry: OutputSlice,
    first: int,
    tower: Tower,
    module: Module,
    document: MergeDocument,
    method: Method,
    models: DocumentModels,
) -> Slice:
    """The sources of a slice including the base, all with the same number of layers."""
    findings = Findings()
    found = [findings.attempt(_layer_source, source, tower, models) for source in entry.sources]
    findings.check()
    sources = [source for source in found if source is not None]
    reference = entry.base_model or document.base_model
    base = None
    if reference is not None and method.base is Base.NONE:
        if _is_merged_too(reference, entry, module, document, method, models):
            model = models.get(reference)
            own = models.tower(model, tower)
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
            own = models.tower(model, tower)
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


def _is_merged_too(
    reference: ModelReference,
    entry: OutputSlice,
    module: Module,
    document: MergeDocument,
    method: Method,
    models: DocumentModels,
) -> bool:
    """Whether a base model that is not listed is merged like the others, by a method without base.

    It has no parameters of its own, so that required ones must be set at a higher level.
    """
    listed = any(models.get(source.model) is models.get(reference) for source in entry.sources)
    full = method.maximum is not None and len(entry.sources) >= method.maximum
    higher = {*module.parameters.entries, *document.parameters.entries}
    needed = {p.name for p in method.model_parameters if p.default is REQUIRED}
    return module.whole and not listed and not full and needed <= higher


def warn_of_left_out_base(
    entry: OutputSlice,
    module: Module,
    document: MergeDocument,
    method: Method,
    models: DocumentModels,
    findings: Findings,
    contribution: str = "configuration and tokenizer only",
) -> None:
    """Warn of a base model whose weights are not merged; ``contribution`` is what it does give."""
    reference = document.base_model
    if reference is None or method.base is not Base.NONE or not module.whole:
        return
    listed = any(models.get(source.model) is models.get(reference) for source in entry.sources)
    if not (listed or _is_merged_too(reference, entry, module, document, method, models)):
        findings.warn(
            document.base_place or document.place,
            f"'{reference}' gives {contribution}",
            "to merge it too, list it among the models",
        )
