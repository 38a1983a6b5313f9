"""Documents that extract an adapter from a fine-tuned model: records, and reading them."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from mergeloom.engine.base.dtypes import DType
from mergeloom.engine.base.errors import Place
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.base.suggest import suggest
from mergeloom.planners.config.config import Document
from mergeloom.planners.config.document import read_dtype, read_name
from mergeloom.planners.config.findings import Findings
from mergeloom.planners.config.keys import Fields, MappingKind
from mergeloom.planners.config.model_reference import ModelReference, read_reference
from mergeloom.planners.config.yaml_values import Value

KEY = "extract"
DEFAULT_RANK = 32

Embeddings = Literal["save", "lora", "skip"]
EMBEDDINGS: tuple[Embeddings, ...] = ("save", "lora", "skip")

_CONFIGURATION = MappingKind(
    "a configuration",
    "at the top level",
    frozenset({KEY, "dtype", "out_dtype", "name"}),
    frozenset({"license", "description", "author", "tags"}),
)
_EXTRACT = MappingKind(
    "'extract'",
    "under 'extract'",
    frozenset({"model", "base_model", "rank", "embeddings", "save", "include", "exclude"}),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractDocument(Document):
    """An adapter that turns ``base_model`` into ``model``, approximately.

    Weights of linear layers get factors of ``rank``; of modules whose names match ``save`` (regular
    expressions) the complete weights are saved. If there is any ``include``, other modules that
    match none of them are left out, and those that match ``exclude`` always are.
    """

    planner: ClassVar[str] = KEY
    model: ModelReference
    model_place: Place
    base_model: ModelReference
    base_place: Place
    rank: int
    embeddings: Embeddings
    save: tuple[re.Pattern[str], ...]
    include: tuple[re.Pattern[str], ...]
    exclude: tuple[re.Pattern[str], ...]
    dtype: DType | None

    def named_models(self) -> list[ModelReference]:
        return list(dict.fromkeys((self.base_model, self.model)))

    def place_of(self, reference: ModelReference) -> Place:
        return self.model_place if reference == self.model else self.base_place


def read_document(value: Value, findings: Findings) -> ExtractDocument | None:
    """Read an extraction; ``None`` if there are errors, which are added to ``findings``."""
    return findings.attempt(_read, value, findings)


def _read(value: Value, findings: Findings) -> ExtractDocument | None:
    top = Fields(value, _CONFIGURATION, findings)
    written = top.require(KEY)
    fields = Fields(written, _EXTRACT, findings)
    tuned = findings.attempt(fields.require, "model", "write 'model: FINE-TUNED MODEL'")
    base = findings.attempt(fields.require, "base_model", "write 'base_model: MODEL'")
    model = findings.attempt(read_reference, tuned, findings) if tuned is not None else None
    other = findings.attempt(read_reference, base, findings) if base is not None else None
    rank = fields.read("rank", lambda each: each.positive("'rank'"))
    embeddings = fields.read("embeddings", _embeddings)
    save = fields.read("save", _patterns)
    include = fields.read("include", _patterns)
    exclude = fields.read("exclude", _patterns)
    dtype = top.read("dtype", lambda each: read_dtype(each, "dtype"))
    out_dtype = top.read("out_dtype", lambda each: read_dtype(each, "out_dtype"))
    name = top.read("name", read_name)
    if tuned is None or base is None or model is None or other is None:
        return None
    if model == other:
        raise tuned.error(f"'{model}' is its own base model", "name the model it was trained from")
    return ExtractDocument(
        name=name,
        place=written.place,
        model=model,
        model_place=tuned.place,
        base_model=other,
        base_place=base.place,
        rank=rank or DEFAULT_RANK,
        embeddings=embeddings or "save",
        save=save or (),
        include=include or (),
        exclude=exclude or (),
        dtype=out_dtype or dtype,
    )


def _embeddings(value: Value) -> Embeddings:
    text = value.text("'embeddings'")
    if text not in EMBEDDINGS:
        remedy = suggest(text, EMBEDDINGS) or f"choose {', '.join(EMBEDDINGS)}"
        raise value.error(f"'{text}' is not one of the choices", remedy)
    return text


def _patterns(value: Value) -> tuple[re.Pattern[str], ...]:
    several = isinstance(value.content, list)
    return tuple(map(_pattern, value.items("regular expressions") if several else [value]))


def _pattern(value: Value) -> re.Pattern[str]:
    text = value.text("a regular expression")
    try:
        return re.compile(text)
    except re.error as error:
        raise value.error(
            f"'{text}' is not a regular expression: {error}",
            "in a name, '.' matches any character",
        ) from error
