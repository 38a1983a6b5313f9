"""The public functions as Python programs call them.

Every error is a `LoomError`, also for arguments that a function does not take, and messages name
arguments (``restart=True``) where those of the command line name options (``--restart``).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar, cast

from mergeloom.api import PLAN_OPTIONS, Observer
from mergeloom.engine.base.errors import LoomError
from mergeloom.engine.base.suggest import suggest
from mergeloom.extracting import EXTRACT_OPTIONS
from mergeloom.packages import missing_package
from mergeloom.python_words import in_python
from mergeloom.transplanting import TRANSPLANT_OPTIONS

_FURTHER_OPTIONS = {"transplant": TRANSPLANT_OPTIONS, "extract": EXTRACT_OPTIONS}

F = TypeVar("F", bound=Callable[..., Any])


@functools.cache
def public(function: F) -> F:
    """``function``, for calls by Python programs."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        _check_call(function.__name__, signature, given, named)
        try:
            return function(*given, **_with_words(named))
        except LoomError as error:
            error.reword(in_python)
            raise
        except ImportError as error:
            missing = missing_package(error)
            if missing is None:
                raise
            raise missing from error

    return cast(F, call)


def _check_call(
    name: str, signature: inspect.Signature, given: tuple[Any, ...], named: Mapping[str, Any]
) -> None:
    """Check that a function takes these arguments.

    Raises:
        LoomError: it has no such argument, or one is missing or given twice.
    """
    kinds = {each.name: each.kind for each in signature.parameters.values()}
    known = {each for each, kind in kinds.items() if kind is not inspect.Parameter.VAR_KEYWORD}
    if len(known) < len(kinds):
        known |= _FURTHER_OPTIONS.get(name, PLAN_OPTIONS)
    for each in named:
        if each not in known:
            raise LoomError(f"there is no option {each!r}", remedy=suggest(each, known))
    try:
        signature.bind(*given, **named)
    except TypeError as error:
        raise LoomError(
            f"{name}(): {error}", remedy=f"help(mergeloom.{name}) shows its arguments"
        ) from None


def _with_words(named: dict[str, Any]) -> dict[str, Any]:
    """The arguments, with an observer that gets warnings in Python's words.

    Raises:
        LoomError: ``observer`` is none.
    """
    observer = named.get("observer")
    if observer is None:
        return named
    if not isinstance(observer, Observer):
        kind = type(observer).__name__
        raise LoomError(
            f"observer must be an Observer, not {kind}",
            remedy="write mergeloom.Observer(warned=...)",
        )
    warned = observer.warned
    if warned is None:
        return named
    return {**named, "observer": replace(observer, warned=lambda each: warned(in_python(each)))}
