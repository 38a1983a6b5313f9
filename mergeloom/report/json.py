"""Records as JSON, and the schemas of documents.

Only this module uses pydantic, and only for reading documents and for schemas.
"""

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


def to_json_types(document: Document) -> dict[str, Any]:
    """A document as JSON types; non-finite numbers become null."""
    found: dict[str, Any] = _json_value(document)
    return found


def encode(document: Document, indent: int | None = 2) -> str:
    """A document as JSON text, on one line if ``indent`` is ``None``. It is ASCII only, so that any
    stream can encode it."""

    def text(of: Any) -> str:
        separators = (",", ":") if indent is None else (",", ": ")
        return json.dumps(
            of, indent=indent, separators=separators, allow_nan=False, default=_members
        )

    try:
        return text(document)  # several times as fast as converting everything first
    except ValueError:  # a number is not finite
        return text(to_json_types(document))


def decode(name: str, content: bytes) -> Document:
    """Decode ``content`` written by `encode`.

    Raises:
        ValueError: it is not such a document.
    """
    found: Document = _type_adapter(name).validate_json(content)
    return found


def schema(name: str) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a document."""
    return _type_adapter(name).json_schema(mode="serialization")


def schemas(names: list[str]) -> dict[str, Any]:
    """The schemas of documents, by name."""
    return {name: schema(name) for name in names}


_JSON_TYPES = frozenset({str, int, bool, type(None)})


@cache
def _field_names(kind: type) -> tuple[str, ...] | None:
    """Names of the fields of a record type; ``None`` for other types."""
    return tuple(field.name for field in fields(kind)) if is_dataclass(kind) else None


def _members(value: Any) -> Any:
    """A record, enumeration or mapping as types that `json` knows, with its members as they are."""
    kind: type = type(value)
    names = _field_names(kind)
    if names is not None:
        return {name: getattr(value, name) for name in names}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def _json_value(value: Any) -> Any:
    if type(value) in _JSON_TYPES:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (tuple, list)):
        return [item if type(item) in _JSON_TYPES else _json_value(item) for item in value]
    members = _members(value)
    if isinstance(members, dict):
        return {k: v if type(v) in _JSON_TYPES else _json_value(v) for k, v in members.items()}
    return members


@cache
def _type_adapter(name: str) -> TypeAdapter[Any]:
    # Imported late: the import and building a validator take half a second.
    from pydantic import TypeAdapter

    return TypeAdapter(DOCUMENTS[name])
