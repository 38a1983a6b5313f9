"""Runs the command line in a forked process, in which everything is already imported."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mergeloom.cli import main as run_command_line


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: its exit status (negative: the number of the signal that killed it), and
    what it wrote to stderr, without warnings.
    """

    status: int
    complaints: str


def command(
    arguments: Sequence[str],
    before: Callable[[], None] = lambda: None,
    meanwhile: Callable[[int], None] = lambda pid: None,
) -> Ended:
    """Run the command line in a forked process, in which torch is already imported.

    ``before`` is called in that process first; ``meanwhile`` is called here with the process's id.
    """
    with tempfile.TemporaryFile() as complaints:
        pid = os.fork()
        if not pid:
            status = 70
            try:
                os.dup2(complaints.fileno(), 2)
                sys.stderr = os.fdopen(2, "w", buffering=1)
                sys.argv = ["mergeloom", *arguments]
                before()
                run_command_line()
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else 70
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        meanwhile(pid)
        _, state = os.waitpid(pid, 0)
        complaints.seek(0)
        lines = complaints.read().decode().splitlines(keepends=True)
        said = "".join(line for line in lines if not line.startswith("warning: "))
        return Ended(os.waitstatus_to_exitcode(state), said)
