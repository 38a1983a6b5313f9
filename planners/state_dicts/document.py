"""Documents that merge plain weights: as for models, but without layers and tokenizers."""

from __future__ import annotations

import enum
from dataclasses import fields
from typing import ClassVar

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.base.suggest import suggest
from mergeloom.planners.config.config import MergeDocument
from mergeloom.planners.config.document import read_document
from mergeloom.planners.config.findings import Findings
from mergeloom.planners.config.yaml_values import Value

KEY = "tensors"

_MODEL_KEYS = ("slices", "modules", "tokenizer", "tokenizer_source", "chat_template")
"""Keys that apply only to models with a configuration."""


class TensorSelection(enum.Enum):
    """Which tensors the output has if those of the inputs differ."""

    SAME = "same"
    """All inputs must have the same tensors."""
    UNION = "union"
    """The tensors of all inputs, each merged from the inputs that have it."""
    INTERSECTION = "intersection"
    """The tensors that all inputs have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateDictDocument(MergeDocument):
    """A merge of weight files."""

    planner: ClassVar[str] = KEY
    tensors: TensorSelection
    asks_for_weights: bool
    """Whether the document itself says that weights are merged without their models."""


def read_state_dict_document(value: Value, findings: Findings) -> StateDictDocument | None:
    """The merge described by a document; see `read_document`."""
    keys = value.mapping("a configuration")
    wrong = [key for key in _MODEL_KEYS if key in keys and keys[key].has_value]
    for key in wrong:
        findings.error(
            keys[key].place,
            f"'{key}' needs models with a config.json, but here raw weights are merged",
            "write 'models', or give the directories of models",
        )
    if wrong and "models" not in keys:
        return None
    document = read_document(value, findings)
    tensors = (
        findings.attempt(_tensor_selection, keys[KEY]) if KEY in keys else TensorSelection.SAME
    )
    if document is None or tensors is None:
        return None
    for block in document.blocks():
        for name, entries in block.entries.items():
            for entry in entries:
                if isinstance(entry.value, tuple):
                    findings.error(
                        entry.place,
                        f"a list of values for '{name}' goes from the first layer to the last, and "
                        "raw weights have no layers",
                        "write one number, or filters",
                    )
    given = {each.name: getattr(document, each.name) for each in fields(MergeDocument)}
    return StateDictDocument(**given, tensors=tensors, asks_for_weights=KEY in keys)


def _tensor_selection(value: Value) -> TensorSelection:
    known = [each.value for each in TensorSelection]
    if value.content not in known:
        remedy = suggest(value.content, known) if isinstance(value.content, str) else ""
        raise value.error(
            f"'{KEY}' must be {', '.join(known[:-1])} or {known[-1]}, not {value.kind}", remedy
        )
    return TensorSelection(value.content)
