"""The report of a merge, kept with its output: what ``mergeloom report OUT`` shows later."""

from __future__ import annotations

import contextlib
import gzip
from pathlib import Path

from mergeloom.engine.base.errors import OutputError
from mergeloom.engine.output.manifest import DIRECTORY
from mergeloom.engine.storage.files import write_file
from mergeloom.report.plan_records import MergeReport

NAME = "report.json.gz"
_LARGEST = 512 << 20


def store(report: MergeReport, output: Path) -> None:
    """Write the report of a merge beside its manifest. That it cannot be written is no failure of
    the merge, which is finished."""
    from mergeloom.report.json import encode

    content = gzip.compress(encode(report, indent=None).encode(), 6, mtime=0)
    with contextlib.suppress(Exception):
        write_file(output / DIRECTORY / NAME, content)


def stored_report(output: Path) -> MergeReport:
    """The report of the merge that made ``output``.

    Raises:
        OutputError: there is none, or it cannot be understood.
    """
    from mergeloom.report.json import decode

    path = output / DIRECTORY / NAME
    try:
        with gzip.open(path, "rb") as file:
            content = file.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise ValueError("it is larger than any report")
        found = decode("merge", content)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise OutputError(
            f"'{output}' has no report of a merge",
            remedy="'mergeloom status' says what is there; a finished merge writes its report",
        ) from error
    except OSError as error:
        raise OutputError(f"cannot read '{path}': {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        reason = str(error).splitlines()[0][:200]
        raise OutputError(
            f"'{path}' is damaged, or of another version of this program: {reason}",
            remedy="'mergeloom verify' says whether the output itself is sound",
        ) from error
    assert isinstance(found, MergeReport)
    return found
