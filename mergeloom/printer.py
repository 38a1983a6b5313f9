"""Printing: answers go to stdout, everything else goes to stderr.

`--quiet` hides progress and results, never warnings and errors. `--json` prints the answer or error
as one JSON document on stdout; `--json-progress` prints it as one line, after lines of progress.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeloom.engine.base.errors import LoomError
from mergeloom.engine.base.records import dataclass

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mergeloom.api import Observer
    from mergeloom.engine.base.errors import Finding
    from mergeloom.report.document import Document
    from mergeloom.report.output_records import Progress
    from mergeloom.results import PlannedMerge


_JSON_SECONDS = 0.5
"""Seconds between lines of progress."""


class AnswerLost(LoomError):
    """The answer could not be written to stdout."""

    exit_code = 1


@dataclass(frozen=True)
class Printer:
    """Prints answers, results, notes and warnings as the options of the command line say."""

    as_json: bool = False
    quiet: bool = False
    json_lines: bool = False

    def answer(self, report: Document, render: Callable[[], RenderableType]) -> None:
        """Write the answer of a command to stdout, as JSON or rendered.

        Raises:
            AnswerLost: stdout is closed, or its disk is full.
            BrokenPipeError: the reader has closed the pipe.
        """
        with _reported():
            if self.as_json or self.json_lines:
                from mergeloom.report.json import encode

                print(encode(report, None if self.json_lines else 2))
            else:
                _print(render())
            sys.stdout.flush()

    def lines(self, lines: Iterable[str]) -> None:
        """Write an answer line by line.

        Raises:
            AnswerLost, BrokenPipeError: as `answer`.
        """
        with _reported():
            for line in lines:
                print(line)
            sys.stdout.flush()

    def result(self, report: Document, render: Callable[[], RenderableType]) -> None:
        """Print the result of an action: rendered on stderr, or as JSON on stdout.

        Raises:
            AnswerLost, BrokenPipeError: as `answer`, for JSON.
        """
        if self.as_json or self.json_lines:
            self.answer(report, render)
        elif not self.quiet:
            self.show(render())

    def page(self, page: str, path: Path) -> None:
        """Write an HTML page to a file.

        Raises:
            OutputError: it cannot be written.
        """
        from mergeloom.report.html.page import write_page

        write_page(page, path)
        self.note(f"wrote the report to '{path}'")

    def show(self, renderable: RenderableType) -> None:
        """Print to stderr; failures are ignored."""
        from mergeloom.report.terminal.console import console, text_of

        shown = console(stderr=True)
        if shown.is_terminal:
            with contextlib.suppress(OSError, ValueError):
                shown.print(renderable)
        else:
            print_to_stderr(text_of(renderable))

    def note(self, text: str) -> None:
        """Print a note."""
        if not self.quiet:
            print_to_stderr(text)

    def warn(self, finding: Finding) -> None:
        """Print a warning."""
        from mergeloom.report.terminal.console import warnings

        self.show(warnings([finding]))

    def planning(self) -> Observer:
        """An observer for planning: prints downloads."""
        from mergeloom.api import Observer

        return Observer(downloading=self._downloading, warned=lambda finding: None)

    @contextlib.contextmanager
    def running(self, planned: PlannedMerge) -> Iterator[Observer]:
        """An observer for a run: prints the plan, warnings and progress."""
        from mergeloom.api import Observer

        if self.quiet or self.json_lines:
            for finding in planned.findings:
                self.warn(finding)
            yield Observer(
                progressed=_JsonLines(self) if self.json_lines else None,
                downloading=self._downloading,
                building=announce_building,
                warned=self.warn,
            )
            return
        from mergeloom.report.progress import ProgressDisplay
        from mergeloom.report.terminal.console import console
        from mergeloom.report.terminal.plan import render_plan

        self.show(render_plan(planned.report))
        self.show("")
        with ProgressDisplay(console(stderr=True), planned.budget_bytes) as display:
            yield Observer(
                resumed=self._resumed,
                progressed=display.progressed,
                downloading=self._downloading,
                building=announce_building,
                warned=self.warn,
            )

    @contextlib.contextmanager
    def measuring(self) -> Iterator[Observer]:
        """An observer for measuring tensors: prints progress."""
        from mergeloom.api import Observer

        observer = Observer(downloading=self._downloading, building=announce_building)
        if self.quiet:
            yield observer
            return
        from mergeloom.report.progress import ProgressDisplay
        from mergeloom.report.terminal.console import console

        with ProgressDisplay(console(stderr=True), None) as display:
            yield replace(observer, progressed=display.progressed)

    def _resumed(self, tensors: int) -> None:
        from mergeloom.report.terminal.console import plural

        self.note(f"continuing: {plural(tensors, 'tensor')} are already finished")

    def _downloading(self, name: str) -> None:
        print_to_stderr(f"downloading '{name}' from the hub")


class _JsonLines:
    """Prints progress as lines of JSON, one at an interval."""

    def __init__(self, printer: Printer) -> None:
        self._printer = printer
        self._next = 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        done = progress.merges_done == progress.merges_total
        if now >= self._next or done:
            self._next = now + _JSON_SECONDS
            self._printer.answer(progress, lambda: "")


def print_to_stderr(text: str) -> None:
    """Print text to stderr, unless it is closed."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr)
        sys.stderr.flush()


def announce_building(names: frozenset[str]) -> None:
    """Say which functions are compiled now."""
    listed = ", ".join(sorted(names))
    print_to_stderr(
        f"compiling machine code for {listed}: once for this machine, some seconds each"
    )


def _print(renderable: Any) -> None:
    from mergeloom.report.terminal.console import console, text_of

    shown = console()
    if shown.is_terminal:
        shown.print(renderable)
    else:
        print(text_of(renderable))


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    if getattr(sys.stdout, "is_closed_stream", False):
        raise AnswerLost("stdout is closed: there is nowhere to write the answer to")
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise AnswerLost(f"cannot write the answer to stdout: {error.strerror}") from error
