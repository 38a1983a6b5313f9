"""Findings about an input, and the exception family: one line per finding, with place, cause and
remedy as data."""

from __future__ import annotations

import enum
import errno
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from mergeloom.engine.base.records import dataclass

COPY_AGAIN = "copy or download it again"
"""Remedy for a damaged file of a checkpoint."""

FILE_CHANGED = (
    "restore it and the same command continues, or merge with the changed file by --restart"
)
"""Remedy for an input that has changed since planning."""

_MEMORY_MESSAGES = ("can't allocate memory", "can't start new thread", "failed to map segment")
"""Messages for lack of memory from torch, Python's threads and the dynamic loader."""


class Severity(enum.Enum):
    """Whether a finding stops the program."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Place:
    """A position in a file: line (from 1, 0 if unknown) and key path (``slices[0].sources``)."""

    file: str
    line: int = 0
    path: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.path}" if self.path else where

    def error(self, cause: str, remedy: str = "", code: str = "") -> ConfigError:
        """An error at this place."""
        return ConfigError(cause, place=self, remedy=remedy, code=code)


@dataclass(frozen=True, slots=True)
class Finding:
    """One warning or error: the cause, the place, and what to do (``remedy``).

    ``code`` identifies the kind of finding for programs, in hyphenated words.
    """

    cause: str
    place: Place | None = None
    remedy: str = ""
    code: str = ""
    severity: Severity = Severity.ERROR

    def __str__(self) -> str:
        parts = (str(part) for part in (self.place, self.cause, self.remedy) if part)
        return ": ".join(map(printable, parts))


def printable(text: str) -> str:
    """The text with escapes for characters that a terminal would not print.

    Messages quote text from files, which may contain line ends, control codes, or lone surrogates,
    which cannot be encoded.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


E = TypeVar("E", bound="LoomError")


class LoomError(Exception):
    """Base of every error that is reported without a traceback.

    An error contains one or more findings. Its message has a lowercase line for each: place, what
    (names quoted), why, and the remedy. ``exit_code`` is the exit status of the process: 1 failed
    while running (resumable), 2 invalid usage, configuration or checkpoint. ``kind`` is the default
    code of findings.
    """

    exit_code = 2
    kind = "usage"

    def __init__(
        self, cause: str, *, place: Place | None = None, remedy: str = "", code: str = ""
    ) -> None:
        finding = Finding(cause, place, remedy, code or self.kind)
        super().__init__(str(finding))
        self.findings: tuple[Finding, ...] = (finding,)

    @classmethod
    def of(cls: type[E], findings: Sequence[Finding]) -> E:
        """An error for one or more findings."""
        error = cls("")
        error.args = ("\n".join(map(str, findings)),)
        error.findings = tuple(findings)
        return error

    def at(self: E, place: Place | None) -> E:
        """The same error, with ``place`` for findings that have none."""
        return self.of([replace(each, place=each.place or place) for each in self.findings])

    def reword(self, word: Callable[[Finding], Finding]) -> None:
        """Replace each finding by what ``word`` makes of it, and the message accordingly."""
        self.findings = tuple(map(word, self.findings))
        self.args = ("\n".join(map(str, self.findings)),)

    @property
    def _first(self) -> Finding:
        errors = (each for each in self.findings if each.severity is Severity.ERROR)
        return next(errors, self.findings[0])

    @property
    def cause(self) -> str:
        """What is wrong, without place and remedy (of the first error)."""
        return self._first.cause

    @property
    def place(self) -> Place | None:
        """The place in a file, if any (of the first error)."""
        return self._first.place

    @property
    def remedy(self) -> str:
        """How to fix it; empty if the cause implies it or it is unknown (of the first error)."""
        return self._first.remedy

    @property
    def code(self) -> str:
        """The kind of error, for programs (of the first error)."""
        return self._first.code


class ConfigError(LoomError):
    """An invalid configuration, or one that cannot be what its author meant."""

    kind = "configuration"


class CheckpointError(LoomError):
    """A checkpoint that is malformed, incomplete or does not fit the merge."""

    kind = "checkpoint"


_READ_REMEDIES = {
    errno.EACCES: "let this user read it",
    errno.EPERM: "let this user read it",
    errno.EIO: "its disk fails: copy the file from elsewhere",
    errno.ESTALE: "its network folder is gone: mount it again",
    errno.ETIMEDOUT: "its network folder does not answer: try again later",
}
"""Remedies for files that cannot be read, by the system's error number."""


def unreadable(path: Path | str, reason: OSError, kind: type[E]) -> E:
    """The error for a file that cannot be read; ``reason`` is why."""
    cause = f"cannot read '{path}': {reason.strerror or reason}"
    return kind(cause, remedy=read_remedy(reason))


def read_remedy(reason: OSError) -> str:
    """What to do if the system refuses to read a file; empty if unknown."""
    return _READ_REMEDIES.get(reason.errno or 0, "")


class BudgetError(LoomError):
    """A memory budget that is too small; the message names one that works."""

    kind = "budget"


class DeviceError(LoomError):
    """A requested device that is not available."""

    kind = "device"


class OutputError(LoomError):
    """An output directory that cannot or must not be written."""

    kind = "output"


class RunError(LoomError):
    """The run failed; finished work is kept, and the same command continues."""

    exit_code = 1
    kind = "run"


def memory_short() -> RunError:
    """The error for a process that the system gives no more memory."""
    return RunError(
        "the system has no memory left for this process",
        remedy="the same command continues when other programs have ended, or with a smaller --ram",
    )


def is_memory_short(error: BaseException) -> bool:
    """Whether ``error`` was raised by Python, the system or torch for lack of memory."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    may_mean_it = isinstance(error, (RuntimeError, ImportError))
    return isinstance(error, MemoryError) or (
        may_mean_it and any(text in str(error) for text in _MEMORY_MESSAGES)
    )
