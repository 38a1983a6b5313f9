"""What is known of outputs, of running merges and of caches, as plain records."""

from __future__ import annotations

from mergeloom.engine.base.records import dataclass
from mergeloom.report.document import Document


@dataclass(frozen=True, kw_only=True)
class StatusReport(Document):
    """How far the merge in a directory is, by what it has recorded."""

    document: str = "status"
    output: str
    condition: str
    """``running``, ``interrupted``, ``finished``, ``incomplete`` (it was finished, and files were
    removed or cut since) or ``damaged``."""
    message: str
    tensors: int | None
    """Those of the whole output, where its records tell."""
    finished_tensors: int
    bytes: int | None
    """Those of the whole output's tensors, where its records tell."""
    finished_bytes: int
    share: float | None
    """The part of the bytes that is finished, from 0 to 1, where its records tell."""
    recorded_at: float | None
    """When something was recorded last, in seconds since 1970 (UTC)."""
    faults: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ProgressReport(Document):
    """A merge at one moment: a line of what ``merge --json-progress`` prints. Sizes in bytes, times
    in seconds."""

    document: str = "progress"
    share: float
    """The part of the bytes that is done, from 0 to 1."""
    read_bytes: int
    read_total: int
    write_bytes: int
    write_total: int
    merges_done: int
    merges_total: int
    tensors_before: int
    """Those that an earlier run had finished; they count in no other field."""
    current: str
    """Name of a tensor that is being merged."""
    seconds: float
    bytes_per_second: float
    seconds_left: float | None
    """What the rest takes at the rate of the last ten seconds; nothing until there is one."""
    memory_bytes: int


@dataclass(frozen=True)
class Cleaned:
    """One thing that was, or would be, removed."""

    path: str
    what: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class CleanReport(Document):
    """What ``clean`` removed, or with ``--dry-run`` would remove."""

    document: str = "clean"
    removed: bool
    found: tuple[Cleaned, ...]
    bytes: int
