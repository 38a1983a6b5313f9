"""Builds slices: the sources of each, with the base model among them."""

from __future__ import annotations

from typing import Protocol

from mergeloom.engine.base.records import dataclass
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


@dataclass(frozen=True)
class SliceBuilder:
    """Builds the slices of one ``module`` of a document."""

    document: MergeDocument
    module: Module
    method: Method
    models: DocumentModels

    def build(self, entry: OutputSlice, first: int, tower: Tower) -> Slice:
        """Build the slice for ``entry``, which starts at layer ``first`` of a tower of the output;
        its sources include the base, and have the same number of layers.

        Raises:
            ConfigError: the sources do not form a valid slice.
        """
        with placing(entry.place):
            findings = Findings()
            found = [findings.attempt(self._source, each, tower) for each in entry.sources]
            findings.check()
            sources = [source for source in found if source is not None]
            base = self._add_base(sources, entry, tower)
            length = check_lengths(sources, entry.place)
            part = Slice(first, length, tuple(sources), base, entry)
            check_models(self.method, part, entry.place)
            return part

    def warn_of_left_out_base(
        self,
        entry: OutputSlice,
        findings: Findings,
        contribution: str = "configuration and tokenizer only",
    ) -> None:
        """Warn of a base model whose weights are not merged; ``contribution`` is what it does
        give."""
        document = self.document
        reference = document.base_model
        if reference is None or self.method.base is not Base.NONE or not self.module.whole:
            return
        if not (self._is_listed(reference, entry) or self._is_merged_too(reference, entry)):
            findings.warn(
                document.base_place or document.place,
                f"'{reference}' gives {contribution}",
                "to merge it too, list it among the models",
            )

    def _source(self, source: SourceEntry, tower: Tower) -> LayerSource:
        """A source model with its layer range."""
        model = self.models.get(source.model)
        with placing(source.place):
            own = self.models.tower(model, tower)
        start, stop = resolve_range(source, own, model.name)
        return LayerSource(model, own, start, stop, source)

    def _add_base(self, sources: list[LayerSource], entry: OutputSlice, tower: Tower) -> int | None:
        """Put a base that is not listed before ``sources``; the result is the base's position."""
        reference = entry.base_model or self.document.base_model
        if reference is None:
            return None
        if self.method.base is Base.NONE:
            if self._is_merged_too(reference, entry):
                model = self.models.get(reference)
                own = self.models.tower(model, tower)
                sources.insert(0, LayerSource(model, own, 0, own.layers, None))
            return None
        model = self.models.get(reference)
        listed = next((i for i, source in enumerate(sources) if source.model is model), None)
        if listed is not None:
            return listed
        ranges = {(source.start, source.stop) for source in sources}
        if len(ranges) > 1:
            raise entry.place.error(
                f"the base model '{reference}' is not among the sources, which take different "
                "layers",
                "add it with the layer_range that is its part",
            )
        own = self.models.tower(model, tower)
        start, stop = (0, own.layers) if self.module.whole else next(iter(ranges))
        if stop > own.layers:
            raise entry.place.error(
                f"the base model '{reference}' has {own.layers} layers, "
                f"the sources take [{start}, {stop}]",
                "add it as a source with the layer_range that is its part",
            )
        sources.insert(0, LayerSource(model, own, start, stop, None))
        return 0

    def _is_listed(self, reference: ModelReference, entry: OutputSlice) -> bool:
        model = self.models.get(reference)
        return any(self.models.get(source.model) is model for source in entry.sources)

    def _is_merged_too(self, reference: ModelReference, entry: OutputSlice) -> bool:
        """Whether a base model that is not listed is merged like the others, by a method without
        base.

        It has no parameters of its own, so that required ones must be set at a higher level.
        """
        full = self.method.maximum is not None and len(entry.sources) >= self.method.maximum
        higher = {*self.module.parameters.entries, *self.document.parameters.entries}
        needed = {p.name for p in self.method.model_parameters if p.default is REQUIRED}
        whole = self.module.whole and not self._is_listed(reference, entry)
        return whole and not full and needed <= higher
