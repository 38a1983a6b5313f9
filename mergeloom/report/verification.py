"""The report of ``verify``: an output against its digests, as a record."""

from __future__ import annotations

from pathlib import Path

from mergeloom.engine.output.soundness import verify_output
from mergeloom.report.records import Fault, VerifyReport


def verify_report(output: Path) -> VerifyReport:
    """What is to be known of an output after all of it was read.

    Raises:
        OutputError: nothing is there to verify, or the records are damaged.
    """
    found = verify_output(output)
    return VerifyReport(
        output=str(found.output),
        finished=found.finished,
        sound=found.is_sound,
        tensors=found.tensors,
        bytes=found.nbytes,
        wrong=tuple(Fault(what, why) for what, why in found.wrong),
    )
