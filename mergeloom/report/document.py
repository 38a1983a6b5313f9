"""What each command has found out, as plain records: the JSON documents, field by field.

A record holds data only: no planner, model or engine object. The terminal renders these records,
`mergeloom.report.json` writes them, and ``mergeloom schema`` describes them. Sizes are in bytes,
times in seconds, layer ranges are ``[start, stop)`` as in a configuration.

A field that means something else, or goes, raises `SCHEMA_VERSION`; a field that comes does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from mergeloom.engine.base.errors import Finding
from mergeloom.engine.base.records import dataclass
from mergeloom.version import VERSION

SCHEMA_VERSION = 2

Scalar = bool | int | float | str | None


@dataclass(frozen=True, kw_only=True)
class Document:
    """What every document begins with."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {
        "use_attribute_docstrings": True,
        "extra": "forbid",
    }

    document: str
    """Which document this is: the command's name, or ``error``."""
    schema_version: int = SCHEMA_VERSION
    program_version: str = VERSION


@dataclass(frozen=True, kw_only=True)
class ErrorReport(Document):
    """Why a command did not do what it was asked: what ``--json`` prints then."""

    document: str = "error"
    kind: str
    """Name of the exception's class in the Python API."""
    findings: tuple[Finding, ...]
    """What is wrong, one or more, and warnings that belong to it."""
    exit_status: int
