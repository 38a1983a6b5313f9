"""Detects parameter filters that match no tensor."""

from __future__ import annotations

from collections.abc import Iterable

from mergeloom.planners.config.findings import Findings
from mergeloom.planners.config.parameters import Parameters


def warn_of_idle_filters(
    blocks: Iterable[Parameters], names: Iterable[str], findings: Findings
) -> None:
    """Warn of filters in parameter blocks that match none of the tensor ``names``."""
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
