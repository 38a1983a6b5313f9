"""Galleries: what the program answers, kept as text that people review.

A page holds both: files that somebody wrote, commands, and below each command what is printed.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from mergeloom.cli import run


@dataclass(frozen=True)
class Mistake:
    """One of a gallery: how it is called, files to write, commands, and what they answer."""

    title: str
    files: tuple[tuple[str, str], ...]
    answers: tuple[tuple[str, str], ...]

    def text(self) -> str:
        files = "".join(f"-- {name}\n{content}" for name, content in self.files)
        answers = "".join(f"$ {command}\n{answer}" for command, answer in self.answers)
        return f"== {self.title}\n{files}{answers}"


def mistakes(text: str) -> Iterator[Mistake]:
    """The mistakes of one page of a gallery."""
    for part in re.split(r"^== ", text, flags=re.MULTILINE)[1:]:
        title, _, rest = part.rstrip("\n").partition("\n")
        written, *commands = re.split(r"^\$ ", rest + "\n", flags=re.MULTILINE)
        files = re.split(r"^-- ", written, flags=re.MULTILINE)[1:]
        yield Mistake(
            title,
            tuple(_halves(each) for each in files),
            tuple(_halves(each) for each in commands),
        )


def _halves(text: str) -> tuple[str, str]:
    first, _, rest = text.partition("\n")
    return first, rest


def answered(page: str, answer: Callable[[str], str]) -> str:
    """A page of a gallery, written anew: its files are written into the working directory, its
    commands are given to ``answer``."""
    parts = [page.partition("\n\n")[0]]
    for mistake in mistakes(page):
        for name, content in mistake.files:
            Path(name).write_text(content)
        answers = tuple((command, answer(command)) for command, _ in mistake.answers)
        parts.append(Mistake(mistake.title, mistake.files, answers).text().rstrip("\n"))
    return "\n\n".join(parts) + "\n"


def said_by(command: str, stdout: TextIO | None = None) -> tuple[list[str], int]:
    """The lines that a command prints, and its exit status; ``stdout`` is where its answer goes,
    if that is not to be seen."""
    program, *words = shlex.split(command, comments=True)
    assert program == "mergeloom"
    said = io.StringIO()
    before, sys.argv = sys.argv, ["mergeloom", *words]
    try:
        with contextlib.redirect_stdout(stdout or said), contextlib.redirect_stderr(said):
            status = run()
    finally:
        sys.argv = before
    return re.sub(r"\d+(?= ?MiB)", "N", said.getvalue()).splitlines(keepends=True), status


def answer(command: str) -> str:
    """What a command prints, its warnings and errors last, and how it ends."""
    lines, status = said_by(command)
    first = next((i for i, line in enumerate(lines) if line.startswith(("warn", "err"))), 0)
    return "".join(["…\n"] * (first > 0) + lines[first:]) + f"[{status}]\n"
