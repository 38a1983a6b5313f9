"""The report of ``status``: the progress of the merge in a directory, from its records."""

from __future__ import annotations

from pathlib import Path

from mergeloom.engine.base.errors import OutputError
from mergeloom.engine.output.manifest import DIRECTORY, manifest_path
from mergeloom.engine.output.state import Condition, OutputState, examine
from mergeloom.report.output_records import StatusReport
from mergeloom.report.units import data_text

_NO_MERGE = {
    Condition.ABSENT: "does not exist",
    Condition.EMPTY: "is an empty directory",
    Condition.FILE: "is a file, or inside one",
    Condition.FOREIGN: "was not made by mergeloom",
}
_MAX_NAMES = 2


def status_report(output: Path) -> StatusReport:
    """The progress of the merge in ``output``. Neither inputs nor shards are read.

    Raises:
        OutputError: no merge was run there, or the directory cannot be read.
    """
    found = examine(output)
    if found.condition in _NO_MERGE:
        raise OutputError(
            f"'{output}' {_NO_MERGE[found.condition]}",
            remedy="name a directory that 'mergeloom merge' wrote into",
        )
    if found.condition is Condition.UNREADABLE:
        raise OutputError(f"'{output}' cannot be read: {found.reason}", remedy=found.remedy)
    totals = found.totals
    share = None
    if totals is not None:
        whole = found.finished == totals.tensors
        share = 1.0 if whole else min(found.finished_bytes / max(totals.nbytes, 1), 1.0)
    return StatusReport(
        output=str(output),
        condition="running" if found.running else found.condition.value,
        message=_message(found, share),
        tensors=None if totals is None else totals.tensors,
        finished_tensors=found.finished,
        bytes=None if totals is None else totals.nbytes,
        finished_bytes=found.finished_bytes,
        share=share,
        recorded_at=_recorded_at(output),
        faults=found.faults,
    )


def _message(found: OutputState, share: float | None) -> str:
    out = f"'{found.path}'"
    so_far = f"{found.finished:,} tensors are recorded"
    if found.totals is not None and share is not None:
        so_far = (
            f"{100 * share:.0f} %, {found.finished:,} of {found.totals.tensors:,} tensors and "
            f"{data_text(found.finished_bytes)} of {data_text(found.totals.nbytes)} are recorded"
        )
    if found.running:
        return f"{out} is being written: {so_far}"
    if found.condition is Condition.DAMAGED:
        return f"{out} holds a merge whose records are damaged: {found.reason}: {found.remedy}"
    if found.condition is Condition.INTERRUPTED:
        if found.fingerprint is None:
            so_far = "nothing is recorded yet"
        return f"{out} was interrupted: {so_far}; the same merge command continues it"
    if found.condition is Condition.INCOMPLETE:
        more = (
            f" and {len(found.faults) - _MAX_NAMES} more" if len(found.faults) > _MAX_NAMES else ""
        )
        return (
            f"{out} was finished, but {', '.join(found.faults[:_MAX_NAMES])}{more}; the same merge "
            "command recreates what is missing"
        )
    return f"{out} is finished: {found.finished:,} tensors, {data_text(found.finished_bytes)}"


def _recorded_at(output: Path) -> float | None:
    for path in (manifest_path(output), output / DIRECTORY / "journal"):
        try:
            return path.stat().st_mtime
        except OSError:
            continue
    return None
