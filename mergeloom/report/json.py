"""Records as JSON, and the schemas of the documents. Only this module needs pydantic."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from mergeloom.report.document import Document
from mergeloom.report.records import DOCUMENTS

if TYPE_CHECKING:
    from pydantic import TypeAdapter


def plain(document: Document) -> dict[str, Any]:
    """A document as JSON's own types. What is not finite becomes null."""
    found: dict[str, Any] = _adapter(document.document).dump_python(document, mode="json")
    return found


def encode(document: Document, indent: int | None = 2) -> str:
    """A document as JSON text, on one line where ``indent`` is nothing. All of it is ASCII, so
    that any stream can carry it."""
    adapter = _adapter(document.document)
    return adapter.dump_json(document, indent=indent, ensure_ascii=True).decode()


def decode(name: str, content: bytes) -> Document:
    """The document that `encode` made ``content`` of.

    Raises:
        ValueError: it is none.
    """
    found: Document = _adapter(name).validate_json(content)
    return found


def schema(name: str) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a document."""
    return _adapter(name).json_schema(mode="serialization")


def schemas(names: list[str]) -> dict[str, Any]:
    """The schemas of documents, by their names."""
    return {name: schema(name) for name in names}


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter  # late: it takes a tenth of a second

    return TypeAdapter(DOCUMENTS[name])
