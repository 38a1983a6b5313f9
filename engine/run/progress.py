"""Progress counters of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Progress:
    """Counters of bytes and tasks, readable at any time from any thread."""

    read_bytes: int = 0
    write_bytes: int = 0
    merges_done: int = 0
    ledger_bytes: int = 0
    ledger_peak: int = 0
    current: str = ""
