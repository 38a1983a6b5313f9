"""The state of an output directory, and what ``merge`` will do, as text."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from mergeloom.engine.output.state import (
    Condition,
    Difference,
    OutputState,
    describe_differences,
    differences,
    only_times_differ,
)
from mergeloom.report import plan_records

_MAX_NAMES = 2

_CHOOSE = "choose another output directory"


def state_record(
    found: OutputState, fingerprint: str, identity: Mapping[str, str], tensors: int
) -> plan_records.OutputState:
    """The state of a directory with regard to the merge with this fingerprint and identity.

    ``tensors`` is the number of tensors that the merge writes.
    """
    same = None if found.fingerprint is None else found.fingerprint == fingerprint
    differing = differences(found.identity, identity) if same is False else ()
    remedy = ""
    if only_times_differ(differing):
        will, message = _touched_action(found, differing)
    elif (refusal := _refusal(found, same, describe_differences(differing))) is not None:
        will, (message, remedy) = "refuse", refusal
    else:
        will, message = _action(found, same, tensors)
    return plan_records.OutputState(
        directory=str(found.path),
        condition=found.condition.value,
        same=same,
        will=will,
        message=message,
        remedy=remedy,
        finished_tensors=found.finished,
        differences=tuple(
            plan_records.Difference(each.what, each.recorded, each.current) for each in differing
        ),
        faults=found.faults,
    )


def _refusal(found: OutputState, same: bool | None, different: str) -> tuple[str, str] | None:
    """Why ``merge`` refuses the directory, and the remedy; ``None`` if it does not."""
    out, condition = f"'{found.path}'", found.condition
    if found.running:
        return (
            f"{out} is being written by another process",
            f"wait for it ('mergeloom status' says how far it is), or {_CHOOSE}",
        )
    if condition is Condition.ABSENT:
        lacking = _obstacle(found.path)
        return None if lacking is None else (f"{out} cannot be made: {lacking}", _CHOOSE)
    if condition is Condition.FILE:
        return f"{out} is a file, or inside one", _CHOOSE
    if condition is Condition.UNREADABLE:
        return f"{out} cannot be read ({found.reason})", _CHOOSE
    if condition is Condition.FOREIGN:
        return f"{out} is not empty and was not made by mergeloom", _CHOOSE
    if condition is Condition.DAMAGED:
        return f"{out} holds a merge whose records are damaged: {found.reason}", found.remedy
    if same is False:
        what = "an interrupted" if condition is Condition.INTERRUPTED else "a finished"
        return (
            f"{out} holds {what} merge that differs: {different}",
            f"{_CHOOSE}, or start over there with --restart",
        )
    return None


def _action(found: OutputState, same: bool | None, tensors: int) -> tuple[str, str]:
    """The action of ``merge`` in a directory that it accepts, and a sentence about it."""
    out, condition = f"'{found.path}'", found.condition
    if condition is Condition.ABSENT:
        return "start", f"{out} does not exist yet: merge will create it"
    if condition is Condition.EMPTY:
        return "start", f"{out} is an empty directory: merge will fill it"
    if same is None:
        return "start", f"{out} holds a merge that was interrupted before it had finished a tensor"
    if condition is Condition.FINISHED:
        return "nothing", f"{out} holds this merge, finished: nothing is left to do"
    if condition is Condition.INCOMPLETE:
        faults = ", ".join(found.faults[:_MAX_NAMES])
        more = (
            f" and {len(found.faults) - _MAX_NAMES} more" if len(found.faults) > _MAX_NAMES else ""
        )
        return "repair", (
            f"{out} holds this merge, finished, but {faults}{more}: merge will recreate "
            "what is missing"
        )
    return "continue", (
        f"{out} holds this merge, interrupted: {found.finished:,} of {tensors:,} tensors are "
        "recorded, merge will continue"
    )


def _touched_action(found: OutputState, differing: Sequence[Difference]) -> tuple[str, str]:
    files = ", ".join(each.what for each in differing[:_MAX_NAMES])
    more = f" and {len(differing) - _MAX_NAMES} more" if len(differing) > _MAX_NAMES else ""
    return "compare", (
        f"'{found.path}' holds this merge, of which {found.finished:,} tensors are recorded; but "
        f"{files}{more} was touched since: merge will compute them again and compare"
    )


def _obstacle(path: Path) -> str | None:
    """Why a directory cannot be created; ``None`` if unknown."""
    if path.is_symlink():
        return f"it is a link to '{os.readlink(path)}', which does not exist"
    parent = next((each for each in path.absolute().parents if each.exists()), None)
    if parent is None:
        return "no part of its path exists"
    if not parent.is_dir():
        return f"'{parent}' is a file"
    if not os.access(parent, os.W_OK | os.X_OK):
        return f"'{parent}' may not be written"
    return None
