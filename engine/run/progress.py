"""Progress counters of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Progress:
    """Counters of a run, readable at any time from any thread.

    ``ledger_bytes`` are granted now; ``current`` is the name of the merge begun last.
    """

    read_bytes: int = 0
    write_bytes: int = 0
    merges_done: int = 0
    ledger_bytes: int = 0
    current: str = ""
