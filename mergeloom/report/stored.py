"""Stores the report of a merge with its output, for ``mergeloom report OUT``."""

from __future__ import annotations

import contextlib
import gzip
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mergeloom.engine.base.errors import LoomError, OutputError, unreadable
from mergeloom.engine.output.manifest import DIRECTORY
from mergeloom.engine.output.manifest import NAME as MANIFEST
from mergeloom.engine.storage.files import write_file
from mergeloom.report.detail_records import DetailsReport
from mergeloom.report.document import Document
from mergeloom.report.json import decode, encode
from mergeloom.report.plan_records import CheckReport, MergeReport

if TYPE_CHECKING:
    from mergeloom.results import MergeResult

REPORT_FILE = "report.json.gz"
DETAILS_FILE = "details.json.gz"
_MAX_DETAILED_TENSORS = 20_000
"""Maximum number of tensors for which details are stored; more take seconds to write."""
_MAX_BYTES = 512 << 20


def store_reports(result: MergeResult, output: Path) -> None:
    """Write the reports of a merge next to its manifest, without details if there are very many
    tensors. Failures are ignored, because the merge is finished."""
    found: dict[str, Document] = {REPORT_FILE: result.report}
    if len(result.planned.plan.graph.writes) <= _MAX_DETAILED_TENSORS:
        found[DETAILS_FILE] = result.details
    for name, record in found.items():
        with contextlib.suppress(Exception):
            _store(record, name, output)


def _store(record: Document, name: str, output: Path) -> None:
    content = gzip.compress(encode(record, None).encode(), 1, mtime=0)
    write_file(output / DIRECTORY / name, content)


def record_check(output: Path, checked: CheckReport) -> None:
    """Write the result of a later check into the report of a merge. Without a readable report, or
    where it cannot be written, nothing is: the caller has the result and says it."""
    with contextlib.suppress(LoomError, OSError):
        _store(replace(stored_report(output), checked=checked), REPORT_FILE, output)


def stored_report(output: Path) -> MergeReport:
    """The report of the merge that wrote ``output``.

    Raises:
        OutputError: there is none, or it is damaged.
    """
    found = _read_document(output, REPORT_FILE, "merge")
    assert isinstance(found, MergeReport)
    return found


def stored_details(output: Path) -> DetailsReport | None:
    """The details of the merge that wrote ``output``; ``None`` if they were not stored.

    Raises:
        OutputError: they are damaged.
    """
    if not (output / DIRECTORY / DETAILS_FILE).exists():
        return None
    found = _read_document(output, DETAILS_FILE, "details")
    assert isinstance(found, DetailsReport)
    return found


def _read_document(output: Path, name: str, document: str) -> Document:
    path = output / DIRECTORY / name
    try:
        with gzip.open(path, "rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise ValueError("it is too large for a report")
        return decode(document, content)
    except (FileNotFoundError, NotADirectoryError) as error:
        if (output / DIRECTORY / MANIFEST).exists():
            raise OutputError(
                f"'{output}' is a finished merge whose report is missing",
                remedy="'mergeloom verify' checks the output; the same merge with --restart writes "
                "a report",
            ) from error
        raise OutputError(
            f"'{output}' has no report of a merge",
            remedy="'mergeloom status' says what is there; a finished merge writes its report",
        ) from error
    except (ValueError, EOFError, gzip.BadGzipFile) as error:
        reason = str(error).splitlines()[0][:200]
        raise OutputError(
            f"'{path}' is damaged, or of another version of this program: {reason}",
            remedy="'mergeloom verify' says whether the output itself is sound",
        ) from error
    except OSError as error:
        raise unreadable(path, error, OutputError) from error
