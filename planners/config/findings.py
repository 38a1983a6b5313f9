"""Findings about a configuration, collected."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from mergeloom.engine.base.errors import ConfigError, Finding, LoomError, Place, Severity

T = TypeVar("T")

UNKNOWN_KEY = "unknown-key"
UNKNOWN_PARAMETER = "unknown-parameter"
MISPLACED = "misplaced"
MOST = 100
"""Findings that are reported at once."""


_UNKNOWN = frozenset({UNKNOWN_KEY, UNKNOWN_PARAMETER, MISPLACED})


class Findings:
    """What a reader has to say, collected, so that all faults are reported at once."""

    def __init__(self) -> None:
        self._found: dict[Finding, None] = {}
        self._kind: type[LoomError] = ConfigError

    def __iter__(self) -> Iterator[Finding]:
        return iter(self._found)

    def add(self, finding: Finding) -> None:
        self._found[finding] = None

    def error(self, place: Place, cause: str, remedy: str = "", code: str = "") -> None:
        self.add(Finding(cause, place, remedy, code or ConfigError.kind))

    def warn(self, place: Place, cause: str, remedy: str = "", code: str = "") -> None:
        code = code or ConfigError.kind
        self.add(Finding(cause, place, remedy, code, Severity.WARNING))

    def attempt(self, read: Callable[..., T], *arguments: Any) -> T | None:
        """What ``read`` returns; ``None`` where it raises an error, which is collected."""
        try:
            return read(*arguments)
        except LoomError as error:
            if not self._has_errors:
                self._kind = type(error)
            for finding in error.findings:
                self.add(finding)
            return None

    def check(self) -> tuple[Finding, ...]:
        """The warnings.

        Raises:
            LoomError: there are errors. It has all of them and the warnings, by line, and is of
                the class of the first.
        """
        if self._has_errors:
            raise self._kind.of(sorted(self._listed(), key=_line))
        return tuple(self._listed())

    def _listed(self) -> list[Finding]:
        """Errors before warnings, and no more than a person reads."""
        found = sorted(self, key=lambda each: each.severity is not Severity.ERROR)
        more = len(found) - MOST
        if more > 0:
            severity = found[MOST].severity
            found[MOST:] = [Finding(f"and {more} more like these", None, "", "more", severity)]
        return found

    @property
    def _has_errors(self) -> bool:
        return any(each.severity is Severity.ERROR for each in self)


@contextmanager
def placed(place: Place) -> Iterator[None]:
    """Within it, errors that have no place are at this one."""
    try:
        yield
    except LoomError as error:
        raise error.at(place) from error


def _line(finding: Finding) -> float:
    if finding.code == "more":
        return math.inf
    return finding.place.line if finding.place is not None else 0


def check_known(warnings: Iterable[Finding]) -> None:
    """Check that none of the warnings is about a key or parameter that is unknown or misplaced.

    Raises:
        ConfigError: some are; it has all of them.
    """
    found = [each for each in warnings if each.code in _UNKNOWN]
    if found:
        raise ConfigError.of([replace(each, severity=Severity.ERROR) for each in found])
