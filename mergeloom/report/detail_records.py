"""What only the page for a browser shows: every tensor, memory from step to step, as plain records.

Rows refer to others by their position, for there may be hundreds of thousands.
"""

from __future__ import annotations

from typing import Any

from mergeloom.engine.base.records import dataclass, record
from mergeloom.report.document import Document


@record(frozen=True, slots=True)
class ValueRow:
    """A parameter's value, and which entry of the configuration set it."""

    parameter: str
    value: Any
    level: str
    """``model``, ``slice``, ``module``, ``global`` or ``default``."""
    line: int
    """Of the configuration; 0 where it is none."""
    filter: str | None


@record(frozen=True, slots=True)
class InputRow:
    """One input of a tensor."""

    model: int
    layer: int | None
    tensor: str | None
    """Nothing where it is called as the output's is."""
    base: bool
    values: tuple[int, ...]


@record(frozen=True, slots=True)
class TensorRow:
    """One output tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    layer: int | None
    how: str
    """The merge method, or ``copy``."""
    because: str | None
    """Why it is copied."""
    inputs: tuple[InputRow, ...]
    values: tuple[int, ...]


@record(frozen=True, slots=True)
class MemoryStep:
    """Memory of buffers while a merge runs, when ``written_bytes`` of the output are made."""

    name: str
    written_bytes: int
    kept_bytes: int
    """Inputs that stay for a later merge."""
    resident_bytes: int
    """Inputs that stay from the first pass over them to the last."""
    moving_bytes: int
    """Tiles on their way from reading to writing."""


@dataclass(frozen=True)
class Sample:
    """A run at one moment."""

    seconds: float
    memory_bytes: int
    read_bytes: int
    write_bytes: int


@dataclass(frozen=True)
class LaneRow:
    """What one thread of a run did over time, cell by cell of ``seconds``."""

    title: str
    seconds: float
    busy: tuple[float, ...]
    """The share of each cell in which it did anything, from 0 to 1."""
    names: tuple[int, ...]
    """Of the task that took most of each cell, by position in ``tasks``."""


@dataclass(frozen=True, kw_only=True)
class DetailsReport(Document):
    """The details of a plan, or of a merge."""

    document: str = "details"
    models: tuple[str, ...]
    values: tuple[ValueRow, ...]
    tensors: tuple[TensorRow, ...]
    overhead_bytes: int
    """Memory beside buffers: interpreter, libraries, graph, scratch of workers."""
    steps: tuple[MemoryStep, ...]
    samples: tuple[Sample, ...]
    """Nothing of a plan."""
    lanes: tuple[LaneRow, ...] = ()
    """Nothing of a plan."""
    tasks: tuple[str, ...] = ()
    """Names of what lanes were busy with."""
    text: str
    """The configuration."""
