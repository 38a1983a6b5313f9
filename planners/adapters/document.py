"""Documents that combine adapters: records, and reading them."""

from __future__ import annotations

from typing import ClassVar

from mergeloom.engine.base.dtypes import DType
from mergeloom.engine.base.errors import ConfigError, Place
from mergeloom.engine.base.records import dataclass
from mergeloom.methods.adapters import combinations
from mergeloom.methods.adapters.combinations import Combination
from mergeloom.planners.config.config import Document
from mergeloom.planners.config.document import read_dtype, read_name
from mergeloom.planners.config.findings import Findings
from mergeloom.planners.config.keys import Fields, MappingKind
from mergeloom.planners.config.model_reference import ModelReference, read_reference
from mergeloom.planners.config.parameter_blocks import read_parameters
from mergeloom.planners.config.parameters import Parameters
from mergeloom.planners.config.yaml_values import Value

KEY = "adapters"

_CONFIGURATION = MappingKind(
    "a configuration",
    "at the top level",
    frozenset(
        {KEY, "merge_method", "base_model", "parameters", "dtype", "out_dtype", "name"},
    ),
    frozenset({"license", "description", "author", "tags"}),
)
_ADAPTER = MappingKind(
    "an entry of 'adapters'", "at an entry of 'adapters'", frozenset({"adapter", "parameters"})
)


@dataclass(frozen=True, slots=True)
class AdapterEntry:
    """One adapter, a path or a hub id, with its parameters."""

    adapter: ModelReference
    parameters: Parameters
    place: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptersDocument(Document):
    """Adapters combined into one; ``base_model`` is the base model recorded in the result."""

    planner: ClassVar[str] = KEY
    combination: Combination
    adapters: tuple[AdapterEntry, ...]
    base_model: ModelReference | None
    parameters: Parameters
    dtype: DType | None
    method_place: Place

    def named_models(self) -> list[ModelReference]:
        return list(dict.fromkeys(entry.adapter for entry in self.adapters))

    def place_of(self, reference: ModelReference) -> Place:
        return next((e.place for e in self.adapters if e.adapter == reference), self.place)


def read_document(value: Value, findings: Findings) -> AdaptersDocument | None:
    """Read a combination; ``None`` if there are errors, which are added to ``findings``."""
    return findings.attempt(_read, value, findings)


def _read(value: Value, findings: Findings) -> AdaptersDocument | None:
    written = value.mapping("a configuration").get("merge_method")
    kind = None
    if written is not None and written.has_value:
        kind = findings.attempt(_combination, written)
    fields = Fields(value, _CONFIGURATION, findings, kind)
    if written is None or not written.has_value:
        remedy = f"one of {', '.join(combinations.COMBINATIONS)}"
        findings.attempt(fields.require, "merge_method", remedy)
    items = fields.require(KEY).items(f"'{KEY}'")
    found = [findings.attempt(_entry, item, kind, findings) for item in items]
    dtype = fields.read("dtype", lambda each: read_dtype(each, "dtype"))
    parameters = fields.read(
        "parameters", lambda each: read_parameters(each, kind, False, findings)
    )
    out_dtype = fields.read("out_dtype", lambda each: read_dtype(each, "out_dtype"))
    base = fields.read("base_model", lambda each: read_reference(each, findings))
    name = fields.read("name", read_name)
    if kind is None or written is None:
        return None
    return AdaptersDocument(
        name=name,
        place=value.place,
        combination=kind,
        adapters=tuple(entry for entry in found if entry is not None),
        base_model=base,
        parameters=parameters or Parameters(),
        dtype=out_dtype or dtype,
        method_place=written.place,
    )


def _combination(value: Value) -> Combination:
    try:
        return combinations.get(value.text("'merge_method'"))
    except ConfigError as error:
        raise error.at(value.place) from error


def _entry(value: Value, kind: Combination | None, findings: Findings) -> AdapterEntry:
    fields = Fields(value, _ADAPTER, findings, kind)
    parameters = fields.read("parameters", lambda each: read_parameters(each, kind, True, findings))
    written = fields.require("adapter", "write 'adapter: NAME'")
    reference = read_reference(written, findings)
    if reference.adapter is not None:
        raise written.error(
            f"'{reference}' is a model with an adapter", f"write 'adapter: {reference.adapter}'"
        )
    return AdapterEntry(reference, parameters or Parameters(), value.place)
