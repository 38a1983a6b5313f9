"""The configuration: mergekit's YAML format as immutable records that know their file and line.

The format is described in ``docs/configuration.md``; `load` reads text into these records.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from mergeloom.engine.base.dtypes import DType
from mergeloom.engine.base.errors import Finding, Place
from mergeloom.engine.base.records import dataclass
from mergeloom.planners.config.model_reference import ModelReference
from mergeloom.planners.config.parameters import Parameters
from mergeloom.planners.config.tokenizer import TokenizerSettings
from mergeloom.planners.config.yaml_values import Value

QUANTIZE = ("same", "fp8_block", "fp8", "int8", "mxfp4")
"""Values of ``quantize``: the codes an output can be written in (`planners.output.schemes`)."""


@dataclass(frozen=True, slots=True)
class SourceEntry:
    """One model of a slice; ``layer_range`` is ``None`` for all its layers."""

    model: ModelReference
    layer_range: tuple[int, int] | None
    parameters: Parameters
    place: Place


@dataclass(frozen=True, slots=True)
class OutputSlice:
    """Sources that are merged with each other, layer by layer."""

    sources: tuple[SourceEntry, ...]
    base_model: ModelReference | None
    parameters: Parameters
    place: Place


@dataclass(frozen=True, slots=True)
class Module:
    """The slices of one tower; ``whole`` says that they were given as ``models``."""

    slices: tuple[OutputSlice, ...]
    whole: bool
    parameters: Parameters
    place: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Document(ABC):
    """One document of a configuration, for any planner.

    ``planner`` is the key of the planner, ``name`` the name by which later documents refer to the
    output, ``quantize`` one of `QUANTIZE`.
    """

    planner: ClassVar[str]
    name: str | None
    place: Place
    quantize: Value | None = None

    @abstractmethod
    def named_models(self) -> list[ModelReference]:
        """Every model named in the document, each once, in order."""

    def place_of(self, reference: ModelReference) -> Place:
        """Where the document names a model first."""
        return self.place


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeDocument(Document):
    """One merge. ``modules`` maps names of towers to modules; top-level ``models`` or ``slices``
    have the key ``None``, which stands for every tower."""

    planner: ClassVar[str] = "merge_method"
    merge_method: str
    modules: Mapping[str | None, Module]
    base_model: ModelReference | None
    dtype: DType | None
    out_dtype: DType | None
    parameters: Parameters
    tokenizer: TokenizerSettings | None
    chat_template: Value | None
    method_place: Place
    base_place: Place | None = None

    def place_of(self, reference: ModelReference) -> Place:
        """Where the document names a model first."""
        for module in self.modules.values():
            for part in module.slices:
                for source in part.sources:
                    if source.model == reference:
                        return source.place
        if self.tokenizer is not None and reference in self.tokenizer.models():
            return self.tokenizer.place
        return self.base_place or self.place

    def blocks(self) -> Iterator[Parameters]:
        """Every ``parameters`` block."""
        yield self.parameters
        for module in self.modules.values():
            yield module.parameters
            for part in module.slices:
                yield part.parameters
                yield from (source.parameters for source in part.sources)

    def merged_models(self) -> list[ModelReference]:
        """Every merged model, each once, in order."""
        found: dict[ModelReference, None] = {}
        if self.base_model is not None:
            found[self.base_model] = None
        for module in self.modules.values():
            for part in module.slices:
                if part.base_model is not None:
                    found[part.base_model] = None
                found.update((source.model, None) for source in part.sources)
        return list(found)

    def named_models(self) -> list[ModelReference]:
        """Every model named in the document, including its tokenizer settings."""
        named = self.tokenizer.models() if self.tokenizer is not None else ()
        return list(dict.fromkeys((*self.merged_models(), *named)))


@dataclass(frozen=True, slots=True)
class Configuration:
    """A configuration: its documents (stages), each after those it depends on and the output last;
    its text; and warnings."""

    documents: tuple[Document, ...]
    text: str
    path: Path | None
    warnings: tuple[Finding, ...] = ()
