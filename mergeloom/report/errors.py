"""Errors as records."""

from __future__ import annotations

from mergeloom.engine.base.errors import LoomError
from mergeloom.report.document import ErrorReport


def error_report(error: LoomError) -> ErrorReport:
    """The document that ``--json`` prints for an error."""
    return ErrorReport(
        kind=type(error).__name__,
        findings=error.findings,
        exit_status=error.exit_code,
    )
