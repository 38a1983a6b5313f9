"""What there is to say of an input, and the one exception family: a line each for the person who
can mend it, with place, cause and remedy as data."""

from __future__ import annotations

import enum
import errno
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from mergeloom.engine.base.records import dataclass

MEMORY_SHORT = (
    "the system has no memory left for this process: the same command continues when other "
    "programs have ended, or with a smaller --ram"
)
_WORDS = ("can't allocate memory", "can't start new thread", "failed to map segment")
"""How torch, Python's threads and the loader of libraries put it."""


class Severity(enum.Enum):
    """Whether a finding stops the program."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Place:
    """Where something is written: file, line (from 1, 0 if unknown) and path of keys
    (``slices[0].sources``)."""

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
    """One thing to say: what is so (``cause``), where, and what to do (``remedy``).

    ``code`` names the kind of finding for programs, in words joined by hyphens.
    """

    cause: str
    place: Place | None = None
    remedy: str = ""
    code: str = ""
    severity: Severity = Severity.ERROR

    def __str__(self) -> str:
        return ": ".join(str(part) for part in (self.place, self.cause, self.remedy) if part)


E = TypeVar("E", bound="LoomError")


class LoomError(Exception):
    """Base of every error that is reported without a traceback.

    An error is one finding, or several that are reported together. Its message is a lowercase
    line each: where, what (names quoted), why, and how to mend it. ``exit_code`` is the process's
    exit status: 1 failed while running (resumable), 2 wrong usage, configuration or checkpoint;
    ``kind`` is the code of findings that have no more precise one.
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
        """One error for one or more findings, whose message has a line for each."""
        error = cls("\n".join(map(str, findings)))
        error.findings = tuple(findings)
        return error

    def at(self: E, place: Place | None) -> E:
        """The same error, at ``place`` where it has none yet."""
        return self.of([replace(each, place=each.place or place) for each in self.findings])

    @property
    def _first(self) -> Finding:
        errors = (each for each in self.findings if each.severity is Severity.ERROR)
        return next(errors, self.findings[0])

    @property
    def cause(self) -> str:
        """What is wrong, without place and remedy; of the first error."""
        return self._first.cause

    @property
    def place(self) -> Place | None:
        """Where it is wrong, if it is in a file; of the first error."""
        return self._first.place

    @property
    def remedy(self) -> str:
        """How to mend it, empty if the cause says so or it is not known; of the first error."""
        return self._first.remedy

    @property
    def code(self) -> str:
        """The kind of error for programs; of the first error."""
        return self._first.code


class ConfigError(LoomError):
    """A configuration that means nothing, or not what its author can have meant."""

    kind = "configuration"


class CheckpointError(LoomError):
    """A checkpoint that is malformed, incomplete or does not fit the merge."""

    kind = "checkpoint"


class BudgetError(LoomError):
    """A memory budget that cannot work; the message names the smallest one that can."""

    kind = "budget"


class DeviceError(LoomError):
    """A device that is asked for and is not there."""

    kind = "device"


class OutputError(LoomError):
    """An output directory that must not or cannot be written."""

    kind = "output"


class RunError(LoomError):
    """The run failed; what is finished is kept, and the same command continues."""

    exit_code = 1
    kind = "run"


def is_memory_short(error: BaseException) -> bool:
    """Whether ``error`` is what Python, the system or torch raises for want of memory."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    worded = isinstance(error, (RuntimeError, ImportError))
    return isinstance(error, MemoryError) or (worded and any(w in str(error) for w in _WORDS))
