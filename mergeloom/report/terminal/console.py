"""Consoles and shared helpers for rendering: tables, plurals, sanitised text."""

from __future__ import annotations

import errno
import io
import sys
from collections.abc import Callable, Iterable
from typing import IO

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from mergeloom.engine.base.errors import Finding
from mergeloom.planners.outline import Layers

_WIDE = 4000
"""Width without a terminal: wide enough not to break lines."""


class _Console(Console):
    """A console without automatic highlighting."""

    def __init__(self, file: IO[str], width: int | None = None) -> None:
        super().__init__(file=file, width=width, highlight=False, markup=False, emoji=False)

    def on_broken_pipe(self) -> None:
        """Leave the error to the caller, instead of exiting."""
        raise BrokenPipeError(errno.EPIPE, "the reader has closed the pipe")


def console(stderr: bool = False) -> Console:
    """A console as wide as the terminal; without a terminal, very wide."""
    file = sys.stderr if stderr else sys.stdout
    found = _Console(file)
    return found if found.is_terminal else _Console(file, _WIDE)


def text_of(renderable: RenderableType) -> str:
    """Plain text for files, without the trailing blanks of tables."""
    found = _Console(io.StringIO(), _WIDE)
    with found.capture() as captured:
        found.print(renderable)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


class ByWidth:
    """A renderable that is made for the available width."""

    def __init__(self, make: Callable[[int], RenderableType]) -> None:
        self._make = make

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._make(options.max_width)


def chart_width(width: int) -> int:
    """Columns for a small chart next to text in a terminal of ``width`` columns; 0 for none."""
    return 24 if width >= 100 else 12 if width >= 76 else 0


def plural(number: int, one: str, many: str | None = None) -> str:
    """A number with a noun: ``1 tensor``, ``2 tensors``."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def layers_text(layers: Layers) -> str:
    """A layer range with inclusive ends: ``0-23``."""
    start, stop = layers
    if stop <= start:
        return "none"
    return str(start) if stop - start == 1 else f"{start}-{stop - 1}"


def layers_phrase(*ranges: Layers) -> str:
    """Layers with their noun: ``layer 3``, ``layers 0-2, 7``."""
    one = len(ranges) == 1 and ranges[0][1] - ranges[0][0] == 1
    return f"layer{'' if one else 's'} {', '.join(map(layers_text, ranges))}"


def shape_text(shape: Iterable[int]) -> str:
    """A shape: ``4096x32000``."""
    return "x".join(map(str, shape)) or "0-d"


def plain_table(*titles: str) -> Table:
    """A table without lines; a title may be empty."""
    table = Table(box=None, pad_edge=False, header_style="dim", show_header=any(titles))
    for title in titles:
        table.add_column(title, overflow="fold")
    return table


def hanging_lines(mark: str, items: Iterable[Text]) -> Table:
    """Lines that begin with ``mark``, with a hanging indent for long lines."""
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for item in items:
        table.add_row(Text(mark, style=item.style), item)
    return table


def warnings(findings: Iterable[Finding]) -> Table:
    """Warnings, one line each."""
    return hanging_lines(
        "warning:", (Text(printable(str(each)), style="yellow") for each in findings)
    )


def printable(text: str) -> str:
    """``text`` without control characters: names in records are not trusted."""
    return text if text.isprintable() else ascii(text)[1:-1]
