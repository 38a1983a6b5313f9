"""Warns of values of parameters that no tensor gets, because of their filters."""

from __future__ import annotations

from collections.abc import Iterable

from mergeloom.planners.config.findings import Findings
from mergeloom.planners.config.parameters import ParameterEntry, Parameters


def warn_of_idle_filters(
    blocks: Iterable[Parameters], names: Iterable[str], findings: Findings
) -> None:
    """Warn of filters in parameter blocks that match none of the tensor ``names``, and of values
    after another one that takes all of their tensors."""
    blocks = tuple(blocks)
    filtered = [
        (name, entry)
        for block in blocks
        for name, entries in block.entries.items()
        for entry in entries
        if entry.filter is not None
    ]
    text = "\n".join(names) if filtered else ""
    for name, entry in filtered:
        if entry.filter is not None and entry.filter not in text:
            findings.warn(
                entry.place,
                f"no tensor's name contains '{entry.filter}': this value of '{name}' has no effect",
                code="idle-filter",
            )
    for block in blocks:
        for name, entries in block.entries.items():
            for number, entry in enumerate(entries):
                if any(_takes_all_of(earlier, entry) for earlier in entries[:number]):
                    findings.warn(
                        entry.place,
                        f"this value of '{name}' is never used: an earlier one takes all its "
                        "tensors",
                        "put it before that one, or remove it",
                        "idle-filter",
                    )


def _takes_all_of(earlier: ParameterEntry, entry: ParameterEntry) -> bool:
    return earlier.filter is None or (entry.filter is not None and earlier.filter in entry.filter)
