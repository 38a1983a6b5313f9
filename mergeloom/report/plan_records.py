"""What is known of a plan and of a finished merge, as plain records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergeloom.engine.base.errors import Finding, Place
from mergeloom.engine.base.records import dataclass
from mergeloom.planners.outline import Layers, Outline
from mergeloom.report.document import Document


@dataclass(frozen=True)
class Shard:
    """One file of weights."""

    name: str
    bytes: int


@dataclass(frozen=True)
class OutputReport:
    """What a merge makes. ``layers`` counts those of the main part."""

    layers: int
    parameters: int
    bytes: int
    tensors: int
    dtypes: Mapping[str, int]
    """Number of tensors of each type."""
    tied: bool | None
    """Whether the output head is the embedding; nothing where there is no head."""
    shards: tuple[Shard, ...]
    side_files: tuple[str, ...]
    config_changes: tuple[str, ...]
    """What differs in ``config.json`` from the model that it is from, because the layers do."""


@dataclass(frozen=True)
class VocabularyRows:
    """The tables of tokens of one model: how many ``rows`` they have, how many of these no token of
    the output takes, and how many of the output's come from where."""

    model: str
    rows: int
    unused: int
    origins: Mapping[str, int]
    """Number of the output's rows by origin: ``own``, ``base``, ``only`` (the only model's that has
    the token), ``mean`` (over those that have it), ``named`` (by the configuration), ``zero``,
    ``padding``."""


@dataclass(frozen=True)
class VocabularyReport:
    """The output's vocabulary: the tokenizer of a model, with tokens added and left out."""

    tokenizer: str
    tokens: int
    added: int
    removed: int
    rows: int
    models: tuple[VocabularyRows, ...]


@dataclass(frozen=True)
class InputReport:
    """One model that is read, as the configuration names it."""

    name: str
    directory: str
    bytes: int
    tensors: int
    licence: str | None = None
    """As its model card names it; nothing where it names none."""


@dataclass(frozen=True)
class ParameterLine:
    """An entry of the configuration that sets a parameter of the output's document."""

    parameter: str
    model: str | None
    """Nothing where it is set for all models together."""
    filter: str | None
    """What names of tensors must contain; nothing where it is for all that have no other."""
    place: Place
    layers: Layers
    """The output's layers that it is about."""
    values: tuple[Any, ...]
    """One value, or of a gradient one for each layer."""


@dataclass(frozen=True)
class BudgetRow:
    """What a memory budget would mean."""

    budget_bytes: int
    peak_bytes: int
    read_bytes: int
    repeated_bytes: int
    """The part of what is read that is read again because memory is short."""
    workers: int
    seconds: float
    """How long the merge would take, by the same rates as the plan."""


@dataclass(frozen=True, kw_only=True)
class BudgetsReport(Document):
    """A plan under several memory budgets."""

    document: str = "budgets"
    budget_bytes: int
    """The budget of the plan."""
    rows: tuple[BudgetRow, ...]


@dataclass(frozen=True)
class Options:
    """What the command line, or the caller, asked for."""

    ram: int | None
    """Nothing where the default was taken: four fifths of the memory available."""
    threads: int | None
    device: str
    vram: int | None
    seed: int
    max_shard_bytes: int
    allow_truncated_embeddings: bool
    allow_different_architectures: bool
    strict: bool


@dataclass(frozen=True)
class MemoryReport:
    """Memory of the whole process: the budget, and what will be used of it at most."""

    budget_bytes: int
    peak_bytes: int
    minimum_bytes: int
    """The smallest budget that works."""
    machine_bytes: int
    """What this process may hope for on this machine now."""


@dataclass(frozen=True)
class DeviceReport:
    """A device that may compute beside the CPU. ``speed`` counts in cores."""

    name: str
    title: str
    memory_bytes: int
    bus_bytes_per_second: float
    bus_measured: bool
    speed: float
    speed_measured: bool


@dataclass(frozen=True)
class RatesReport:
    """How fast storage and processor are taken to be; measured by earlier runs, or assumed."""

    storage_bytes_per_second: float
    storage_measured: bool
    cpu_speed: float
    cpu_measured: bool


@dataclass(frozen=True)
class PlacementReport:
    """How many merges compute where, and why."""

    device: str
    reason: str
    merges: int


@dataclass(frozen=True)
class IOReport:
    """Tensor data and headers that are read and written."""

    read_bytes: int
    write_bytes: int
    repeated_bytes: int
    """The part of what is read that is read again because memory is short."""
    cloned_bytes: int
    """Bytes that are neither read nor written: the output shares them with its inputs."""
    copied_bytes: int
    """The part of what is written that is read as it is."""
    spilled_bytes: int = 0
    """The part of what is written that is read by the run itself, and removed when it ends."""


@dataclass(frozen=True)
class TimeReport:
    """How long a merge is expected to take."""

    seconds: float
    storage_seconds: float
    compute_seconds: float
    measured: bool
    """Whether the rates that decide it were measured on this machine."""
    low_seconds: float | None = None
    """What it takes if it comes out as that of the latest runs that was shortest, beside its
    estimate; nothing where fewer than two are known."""
    high_seconds: float | None = None
    """The same of the one that was longest."""


@dataclass(frozen=True)
class DiskReport:
    """Room on the disk of an output directory."""

    needed_bytes: int
    """What is still to be written, with side files and a small reserve."""
    free_bytes: int


@dataclass(frozen=True)
class Difference:
    """What the merge in a directory and this one differ in; nothing where one lacks it."""

    what: str
    there: str | None
    here: str | None


@dataclass(frozen=True)
class OutputState:
    """What an output directory holds now, and what ``merge`` will do about it."""

    directory: str
    condition: str
    """``absent``, ``empty``, ``file``, ``foreign``, ``finished``, ``incomplete``,
    ``interrupted``, ``damaged`` or ``unreadable``."""
    same: bool | None
    """Whether the merge that it holds is this one; nothing where it holds none."""
    will: str
    """``start``, ``continue``, ``repair``, ``compare``, ``nothing`` or ``refuse``."""
    message: str
    finished_tensors: int
    differences: tuple[Difference, ...] = ()
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class UnusedInput:
    """Input tensors that the output does not use, and why."""

    model: str
    reason: str
    layers: tuple[Layers, ...]
    tensors: tuple[str, ...]
    bytes: int


@dataclass(frozen=True, kw_only=True)
class PlanReport(Document):
    """What a merge will do, known before a weight is read."""

    document: str = "plan"
    configuration: str | None
    """Path of the configuration; nothing where it came as data."""
    output: OutputReport
    vocabulary: VocabularyReport | None
    """Nothing where there are no tokenizer settings."""
    stages: tuple[Outline, ...]
    """In order; the last one makes the output."""
    method: str
    """That of the last stage."""
    parameters: tuple[ParameterLine, ...]
    """What the document of the output sets, entry by entry."""
    draws: bool
    """Whether a method draws at random, so that the seed matters."""
    seed: int
    options: Options
    models: tuple[InputReport, ...]
    tasks: Mapping[str, int]
    memory: MemoryReport
    workers: int
    compiled: bool
    """Whether machine code computes on the CPU."""
    to_compile: tuple[str, ...]
    """What machine code is built for first, once on this machine."""
    devices: tuple[DeviceReport, ...]
    rates: RatesReport
    placement: tuple[PlacementReport, ...]
    io: IOReport
    time: TimeReport
    disk: DiskReport | None
    """Nothing where no output directory was given."""
    output_state: OutputState | None
    """Nothing where no output directory was given."""
    warnings: tuple[Finding, ...]
    unused_inputs: tuple[UnusedInput, ...]
    fingerprint: str


@dataclass(frozen=True)
class Measured:
    """What a run took. Device figures are what the kernel counts, where it tells."""

    peak_rss_bytes: int
    read_bytes: int
    write_bytes: int
    cloned_bytes: int
    """Bytes that were neither read nor written: the output shares them with its inputs."""
    device_read_bytes: int | None
    device_write_bytes: int | None


@dataclass(frozen=True)
class Predicted:
    """What the schedule of a run said of it; after an interruption, of what was left."""

    peak_bytes: int
    read_bytes: int
    write_bytes: int


@dataclass(frozen=True)
class CheckReport:
    """What ``--check`` computed again in another way; all of it was right.

    ``passed_over`` counts tensors that were drawn and could not be, by the reason.
    """

    tensors: int
    elements: int
    passed_over: Mapping[str, int]


@dataclass(frozen=True)
class CodingError:
    """How far a tensor that was written as codes is from what was computed."""

    tensor: str
    """By the name that it has without codes."""
    error: float
    """‖written - computed‖ / ‖computed‖"""


@dataclass(frozen=True, kw_only=True)
class MergeReport(PlanReport):
    """A finished merge: the plan, and what was measured."""

    document: str = "merge"
    directory: str
    resumed_tensors: int
    """Tensors that an earlier run had finished."""
    was_finished: bool
    wall_seconds: float
    measured: Measured
    predicted: Predicted | None
    """Nothing where nothing was left to do."""
    run_warnings: tuple[Finding, ...]
    checked: CheckReport | None = None
    coding_errors: tuple[CodingError, ...] = ()
    """Of all tensors that were rounded to codes, the largest first; what was copied has none."""
