"""Records as JSON, and the schemas of documents. Only this module uses pydantic, and only for
reading and for schemas; writing does not need it."""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from mergeloom.report.document import Document
from mergeloom.report.records import DOCUMENTS

if TYPE_CHECKING:
    from pydantic import TypeAdapter


def plain(document: Document) -> dict[str, Any]:
    """A document as JSON types; non-finite numbers become null."""
    found: dict[str, Any] = _plain(document)
    return found


def encode(document: Document, indent: int | None = 2) -> str:
    """A document as JSON text, on one line if ``indent`` is ``None``. It is ASCII only, so that any
    stream can encode it."""
    separators = (",", ":") if indent is None else (",", ": ")
    return json.dumps(plain(document), indent=indent, separators=separators, allow_nan=False)


def decode(name: str, content: bytes) -> Document:
    """Decode ``content`` written by `encode`.

    Raises:
        ValueError: it is not such a document.
    """
    found: Document = _adapter(name).validate_json(content)
    return found


def schema(name: str) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a document."""
    return _adapter(name).json_schema(mode="serialization")


def schemas(names: list[str]) -> dict[str, Any]:
    """The schemas of documents, by name."""
    return {name: schema(name) for name in names}


_AS_IT_IS = frozenset({str, int, bool, type(None)})


@cache
def _field_names(kind: type) -> tuple[str, ...] | None:
    """Names of the fields of a record type; ``None`` for other types."""
    return tuple(field.name for field in fields(kind)) if is_dataclass(kind) else None


def _plain(value: Any) -> Any:
    kind: type = type(value)
    if kind in _AS_IT_IS:
        return value
    names = _field_names(kind)
    if names is not None:
        found = {name: getattr(value, name) for name in names}
        return {k: v if type(v) in _AS_IT_IS else _plain(v) for k, v in found.items()}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [item if type(item) in _AS_IT_IS else _plain(item) for item in value]
    return value


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    # Imported late: with building a validator it takes half a second.
    from pydantic import TypeAdapter

    return TypeAdapter(DOCUMENTS[name])
