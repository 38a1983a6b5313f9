"""Records of outputs, running merges and caches."""

from __future__ import annotations

from mergeloom.engine.base.records import dataclass
from mergeloom.report.document import Document


@dataclass(frozen=True, kw_only=True)
class StatusReport(Document):
    """The state of the merge in a directory, from its records."""

    document: str = "status"
    output: str
    condition: str
    """``running``, ``interrupted``, ``finished``, ``incomplete`` (it was finished, and files were
    removed or cut since) or ``damaged``."""
    message: str
    tensors: int | None
    """Number of tensors of the whole output, if known."""
    finished_tensors: int
    bytes: int | None
    """Bytes of all tensors of the output, if known."""
    finished_bytes: int
    share: float | None
    """The finished share of the bytes, from 0 to 1, if known."""
    recorded_at: float | None
    """Time of the last record, in seconds since 1970 (UTC)."""
    faults: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Progress(Document):
    """The progress of a merge at one time: a line of ``merge --json-progress``. Sizes are in bytes,
    times in seconds."""

    document: str = "progress"
    share: float
    """The finished share of the bytes, from 0 to 1."""
    read_bytes: int
    read_total: int
    write_bytes: int
    write_total: int
    merges_done: int
    merges_total: int
    tensors_before: int
    """Tensors finished by an earlier run; not counted in other fields."""
    current: str
    """Name of a tensor that is being merged."""
    seconds: float
    bytes_per_second: float
    seconds_left: float | None
    """Remaining time at the rate of the last ten seconds; null until the rate is known."""
    memory_bytes: int
    """Resident memory of the process."""

    @property
    def done_bytes(self) -> int:
        return self.read_bytes + self.write_bytes

    @property
    def total_bytes(self) -> int:
        return self.read_total + self.write_total


@dataclass(frozen=True)
class Cleaned:
    """One thing that was, or would be, removed."""

    path: str
    what: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class CleanReport(Document):
    """The files that ``clean`` removed, or with ``--dry-run`` would remove."""

    document: str = "clean"
    removed: bool
    found: tuple[Cleaned, ...]
    bytes: int
