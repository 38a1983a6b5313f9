"""The base of reports: plain records that correspond to JSON documents.

A record contains data only: no planner, model or engine objects. Records are rendered in the
terminal, written by `mergeloom.report.json` and described by ``mergeloom schema``. Sizes are in
bytes, times in seconds, layer ranges are ``[start, stop)``.

`SCHEMA_VERSION` increases when a field changes its meaning or is removed, not when one is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar

from mergeloom.engine.base.errors import Finding
from mergeloom.engine.base.records import dataclass
from mergeloom.version import VERSION

SCHEMA_VERSION = 3

Scalar = bool | int | float | str | None


@dataclass(frozen=True, kw_only=True)
class Document:
    """The common fields of all documents."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {
        "use_attribute_docstrings": True,
        "extra": "forbid",
    }

    document: str
    """The kind of document: the command's name, or ``error``."""
    schema_version: int = SCHEMA_VERSION
    program_version: str = VERSION

    def __repr__(self) -> str:
        """The fields, long ones shortened: a report of a large model has millions of characters."""
        told = (each.name for each in fields(self) if each.name not in _OF_EVERY_DOCUMENT)
        shown = (f"{name}={_shortened(getattr(self, name))}" for name in told)
        return f"{type(self).__name__}({', '.join(shown)})"


_OF_EVERY_DOCUMENT = frozenset({"document", "schema_version", "program_version"})
_MOST = 3
"""Entries of a sequence or mapping that are shown; of more, their number is."""
_LONGEST = 200
"""Characters of a field that are shown."""


def _shortened(value: object) -> str:
    if isinstance(value, (tuple, list, Mapping)) and len(value) > _MOST:
        return f"<{len(value)} entries>"
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


@dataclass(frozen=True, kw_only=True)
class ErrorReport(Document):
    """Why a command failed; printed by ``--json``."""

    document: str = "error"
    kind: str
    """Name of the exception class in the Python API."""
    findings: tuple[Finding, ...]
    """The errors, and related warnings."""
    exit_status: int
