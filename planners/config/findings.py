"""Collects warnings and errors about a configuration, so that all are reported at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from mergeloom.engine.base.errors import ConfigError, Finding, LoomError, Place, Severity

T = TypeVar("T")

UNKNOWN_KEY = "unknown-key"
UNKNOWN_PARAMETER = "unknown-parameter"
MISPLACED = "misplaced"
IGNORED = ", it is ignored"
"""Ends the cause of a warning about something that is ignored; an error does not have it."""
MAX_FINDINGS = 100
"""Maximum number of findings reported."""


_MORE_CODE = "more"
UNKNOWN = frozenset({UNKNOWN_KEY, UNKNOWN_PARAMETER, MISPLACED})
"""Codes of keys that are unknown, or in the wrong place."""


class Findings:
    """Warnings and errors in the order they were found; ``earlier`` are warnings found before."""

    def __init__(self, earlier: Iterable[Finding] = ()) -> None:
        self._found = dict.fromkeys(earlier)
        self._kind: type[LoomError] | None = None

    def __iter__(self) -> Iterator[Finding]:
        return iter(self._found)

    def add(self, finding: Finding, kind: type[LoomError] = ConfigError) -> None:
        """Add a finding; ``kind`` is the exception to raise if it is the first error."""
        self._found[finding] = None
        if finding.severity is Severity.ERROR and self._kind is None:
            self._kind = kind

    def extend(self, others: Iterable[Finding]) -> None:
        """Add several findings."""
        for finding in others:
            self.add(finding)

    def error(self, place: Place, cause: str, remedy: str = "", code: str = "") -> None:
        self.add(Finding(cause, place, remedy, code or ConfigError.kind))

    def warn(self, place: Place, cause: str, remedy: str = "", code: str = "") -> None:
        code = code or ConfigError.kind
        self.add(Finding(cause, place, remedy, code, Severity.WARNING))

    def note(self, cause: str, remedy: str = "", code: str = "plan") -> None:
        """Add a warning without a place in the configuration."""
        self.add(Finding(cause, None, remedy, code, Severity.WARNING))

    def notes(self, causes: Iterable[str], code: str = "plan") -> None:
        """Add several warnings without a place."""
        for cause in causes:
            self.note(cause, code=code)

    def attempt(self, read: Callable[..., T], *arguments: Any) -> T | None:
        """Call ``read``; collect its error and return ``None`` if it raises one."""
        try:
            return read(*arguments)
        except LoomError as error:
            self._collect(error)
            return None

    @contextmanager
    def attempting(self, place: Place) -> Iterator[None]:
        """A context that ends at an error and collects it; without a place it gets ``place``."""
        try:
            yield
        except LoomError as error:
            self._collect(error.at(place))

    @property
    def errors(self) -> list[Finding]:
        """The errors among the findings."""
        return [each for each in self if each.severity is Severity.ERROR]

    @contextmanager
    def collecting(self, place: Place) -> Iterator[None]:
        """A context that raises an error together with all earlier findings; an error without a
        place gets ``place``."""
        try:
            yield
        except LoomError as error:
            self._collect(error.at(place))
            self.check()

    def check(self) -> tuple[Finding, ...]:
        """Return the warnings.

        Raises:
            LoomError: there are errors. It contains the warnings, then the errors, both by line,
            and has the class of the first error.
        """
        found = sorted(self, key=_by_line)
        if self._kind is None:
            return _limited(found)
        errors = sorted(self.errors, key=_by_line)
        warnings = [each for each in found if each.severity is Severity.WARNING]
        raise self._kind.of([*_limited(warnings), *_limited(errors)])

    def _collect(self, error: LoomError) -> None:
        for finding in error.findings:
            if finding.code != _MORE_CODE:
                self.add(finding, type(error))


@contextmanager
def placing(place: Place) -> Iterator[None]:
    """A context that gives ``place`` to errors without a place."""
    try:
        yield
    except LoomError as error:
        raise error.at(place) from error


def _by_line(finding: Finding) -> int:
    return finding.place.line if finding.place is not None else 0


def _limited(found: Sequence[Finding]) -> tuple[Finding, ...]:
    """The first `MAX_FINDINGS` findings, and how many more there are."""
    if len(found) <= MAX_FINDINGS:
        return tuple(found)
    more = f"and {len(found) - MAX_FINDINGS} more like these"
    return (
        *found[:MAX_FINDINGS],
        Finding(more, None, "", _MORE_CODE, found[MAX_FINDINGS].severity),
    )


def refuse_unknown(warnings: Iterable[Finding]) -> None:
    """Check that no warning is about an unknown or misplaced key or parameter.

    Raises:
        ConfigError: some are; it contains all of them.
    """
    found = [each for each in warnings if each.code in UNKNOWN]
    if found:
        raise ConfigError.of(
            [
                replace(each, severity=Severity.ERROR, cause=each.cause.replace(IGNORED, ""))
                for each in found
            ]
        )
