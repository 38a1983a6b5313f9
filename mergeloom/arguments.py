"""Validation of arguments of the Python API and the command line.

Invalid arguments raise a one-line `LoomError`. Numbers may be numpy scalars, paths any path-like
object, choices members of an enumeration.
"""

from __future__ import annotations

import enum
import math
import operator
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mergeloom.engine.base.errors import Finding, LoomError, Severity
from mergeloom.engine.base.units import MIB
from mergeloom.report.units import memory_text, parse_size

Size = int | str
Pathlike = str | os.PathLike[str]


def path_of(value: object, name: str, kind: str = "a path") -> Path:
    """A path; ``~`` is the home directory. ``kind`` is what the argument may be, for messages.

    Raises:
        LoomError: it is not a path, or empty.
    """
    try:
        text = os.fspath(value)  # type: ignore[call-overload]  # it may be anything
    except TypeError:
        raise _wrong_type(name, kind, value) from None
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    if not text.strip():
        raise LoomError(f"{name} is empty", remedy="name a path (. is the current directory)")
    if "\0" in text:
        raise LoomError(f"{name} is {text[:80]!a}, which no path can be")
    return Path(text).expanduser() if text.startswith("~") else Path(text)


def paths_of(value: object, name: str) -> list[Path]:
    """A list of paths; a single path counts as a list of one.

    Raises:
        LoomError: one of them is not a path.
    """
    if isinstance(value, (str, bytes, os.PathLike)):
        return [path_of(value, name)]
    if not isinstance(value, (Sequence, set, frozenset)):
        raise _wrong_type(name, "a list of paths", value)
    return [path_of(each, name) for each in value]


def paths_by_name(value: object, name: str) -> dict[str, Path]:
    """Paths by model name.

    Raises:
        LoomError: it is not a mapping of names to paths.
    """
    if not isinstance(value, Mapping):
        raise _wrong_type(name, "a mapping of models to directories", value)
    return {text(key, name): path_of(path, name) for key, path in value.items()}


def integer(value: object, name: str, least: int | None = None) -> int:
    """An integer, at least ``least``.

    Raises:
        LoomError: it is not an integer, or smaller.
    """
    value = _scalar(value)
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]  # it may be anything
    except TypeError:
        raise _wrong_type(name, "a whole number", value) from None
    if least is not None and number < least:
        raise LoomError(f"{name} is {number}: it must be {least} or more")
    return number


def size(value: object, name: str) -> int:
    """A size in bytes: a number, or text such as ``8GiB``.

    Raises:
        LoomError: it is not a size, or not positive.
    """
    value = _scalar(value)
    if isinstance(value, str):
        try:
            return parse_size(value)
        except LoomError as error:
            raise LoomError(f"{name} {error.cause}", remedy=error.remedy) from error
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)
    if isinstance(value, float):
        raise _wrong_type(name, "a size in bytes, or text such as '8GiB'", value)
    return integer(value, name, 1)


def memory_budget(value: object, name: str) -> int:
    """A memory budget in bytes; refuses small numbers, whose unit was probably forgotten.

    Raises:
        LoomError: it is not a size, or less than a mebibyte.
    """
    found = size(value, name)
    if found < MIB:
        raise LoomError(
            f"{name} is {found:,} bytes, too little for any program",
            remedy=f"did you mean {found}GiB?" if found < 2048 else "write for example 8GiB",
        )
    return found


def one_of(value: object, name: str, choices: Sequence[str]) -> str:
    """One of ``choices``.

    Raises:
        LoomError: it is none of them.
    """
    value = _scalar(value)
    if value not in choices:
        raise LoomError(f"{name} {value!r} is unknown", remedy=f"choose {_listed(choices)}")
    return str(value)


def text(value: object, name: str) -> str:
    """A string.

    Raises:
        LoomError: it is something else.
    """
    value = _scalar(value)
    if not isinstance(value, str):
        raise _wrong_type(name, "text", value)
    return value


def boolean(value: object, name: str) -> bool:
    """A boolean.

    Raises:
        LoomError: it is something else.
    """
    value = _scalar(value)
    if not isinstance(value, bool):
        raise _wrong_type(name, "True or False", value)
    return value


def budget_findings(asked: int | None, available: int, whole_machine: int) -> tuple[Finding, ...]:
    """A warning if the requested budget (``asked``) exceeds the available memory; all in bytes."""
    if asked is None or asked <= available:
        return ()
    where = "this machine has" if asked > whole_machine else "is available now"
    there = whole_machine if asked > whole_machine else available
    return (
        Finding(
            f"a budget of {memory_text(asked)} is more memory than {where}",
            remedy=f"--ram {there >> 20}MiB is all of it",
            code="budget-above-memory",
            severity=Severity.WARNING,
        ),
    )


def _scalar(value: object) -> Any:
    """A scalar of another library as Python's, a member of an enumeration as its value."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, str):
        return str(value)
    for method in ("item", "tolist"):  # for numpy and torch
        if hasattr(value, method) and not isinstance(value, type):
            try:
                return getattr(value, method)()
            except (ValueError, TypeError, RuntimeError):
                continue
    return value


def _wrong_type(name: str, wanted: str, value: object) -> LoomError:
    return LoomError(f"{name} must be {wanted}, not {_described(value)}")


def _described(value: object) -> str:
    shown = ascii(value)
    kind = type(value).__name__
    return f"{shown[:40]} ({kind})" if len(shown) <= 40 else f"a {kind}"


def _listed(choices: Sequence[str]) -> str:
    *most, last = choices
    return f"{', '.join(most)} or {last}" if most else last
