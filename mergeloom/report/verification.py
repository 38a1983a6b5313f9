"""The report of ``verify``."""

from __future__ import annotations

from pathlib import Path

from mergeloom.engine.base.errors import OutputError
from mergeloom.engine.output.verify_output import verify_output
from mergeloom.report.loading import loading_report
from mergeloom.report.records import Fault, VerifyReport


def verify_report(output: Path, load: bool = False) -> VerifyReport:
    """The result of verifying an output; with ``load``, also of comparing it with the class named
    in its configuration.

    Raises:
        OutputError: there is nothing to verify, or the records are damaged; or with ``load``, it is
        not finished. LoomError: transformers is not installed, or does not have the class.
    """
    found = verify_output(output)
    if load and not found.finished:
        raise OutputError(
            f"'{output}' is not finished and cannot be loaded",
            remedy="the same merge again continues it",
        )
    loading = loading_report(output) if load else None
    return VerifyReport(
        output=str(found.output),
        finished=found.finished,
        sound=found.is_sound and not (loading and loading.faults),
        tensors=found.tensors,
        bytes=found.nbytes,
        wrong=tuple(Fault(what, why) for what, why in found.wrong),
        loading=loading,
    )
