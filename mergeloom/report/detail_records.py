"""Records for the HTML page only: every tensor, and memory step by step.

Rows refer to each other by position, because there may be hundreds of thousands of them.
"""

from __future__ import annotations

from typing import Any

from mergeloom.engine.base.records import dataclass, record
from mergeloom.report.document import Document


@record(frozen=True, slots=True)
class ValueRow:
    """A parameter value, and the configuration entry that set it."""

    parameter: str
    value: Any
    level: str
    """``model``, ``slice``, ``module``, ``global`` or ``default``."""
    line: int
    """Line of the configuration; 0 if there is none."""
    filter: str | None


@record(frozen=True, slots=True)
class InputRow:
    """One input of a tensor."""

    model: int
    layer: int | None
    tensor: str | None
    """``None`` if it has the name of the output tensor."""
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
    """The most memory that the buffers of one merge take while it runs; all sizes in bytes.

    Each merge is one step. Its tiles are not told apart: they use the same blocks of memory one
    after another, and only those of the last pass write output.
    """

    name: str
    written_bytes: int
    """Output written by this merge and those before it."""
    kept_bytes: int
    """Inputs held completely: side inputs, tables, and inputs that several merges share."""
    resident_bytes: int
    """Inputs kept from the first pass to the last, with what passes remember of them."""
    moving_bytes: int
    """Tiles between reading and writing."""


@dataclass(frozen=True)
class Sample:
    """The state of a run at one time."""

    seconds: float
    memory_bytes: int
    read_bytes: int
    write_bytes: int


@dataclass(frozen=True)
class LaneRow:
    """Activity of one thread of a run, in time cells of ``seconds`` each."""

    title: str
    seconds: float
    busy: tuple[float, ...]
    """The busy share of each cell, from 0 to 1."""
    names: tuple[int, ...]
    """The task that took most of each cell, as its position in ``tasks``."""


@dataclass(frozen=True, kw_only=True)
class DetailsReport(Document):
    """The details of a plan, or of a merge."""

    document: str = "details"
    models: tuple[str, ...]
    values: tuple[ValueRow, ...]
    tensors: tuple[TensorRow, ...]
    overhead_bytes: int
    """Memory other than buffers: interpreter, libraries, graph, scratch memory."""
    steps: tuple[MemoryStep, ...]
    samples: tuple[Sample, ...]
    """Empty for a plan."""
    lanes: tuple[LaneRow, ...] = ()
    """Empty for a plan."""
    tasks: tuple[str, ...] = ()
    """The task names that lanes refer to."""
    text: str
    """The configuration."""
