"""The base of reports: plain records that correspond to JSON documents.

A record contains data only: no planner, model or engine objects. Records are rendered in the
terminal, written by `mergeloom.report.json` and described by ``mergeloom schema``. Sizes are in
bytes, times in seconds, layer ranges are ``[start, stop)``.

`SCHEMA_VERSION` increases when a field changes its meaning or is removed, not when one is added.
"""

from __future__ import annotations

from collections.abc import Mapping
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


@dataclass(frozen=True, kw_only=True)
class ErrorReport(Document):
    """Why a command failed; printed by ``--json``."""

    document: str = "error"
    kind: str
    """Name of the exception class in the Python API."""
    findings: tuple[Finding, ...]
    """The errors, and related warnings."""
    exit_status: int
