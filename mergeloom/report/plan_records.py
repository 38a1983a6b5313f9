"""Records of a plan and of a finished merge."""

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
    """The output of a merge; ``layers`` is the number of layers of its main part."""

    layers: int
    parameters: int
    bytes: int
    tensors: int
    dtypes: Mapping[str, int]
    """Number of tensors by dtype."""
    tied: bool | None
    """Whether the output head is tied to the embedding; null if there is no head."""
    shards: tuple[Shard, ...]
    side_files: tuple[str, ...]
    config_changes: tuple[str, ...]
    """Changes in ``config.json`` due to changed layers."""


@dataclass(frozen=True)
class VocabularyRows:
    """The token tables of one model: number of ``rows``, how many of them are unused, and the
    origins of the output's rows."""

    model: str
    rows: int
    unused: int
    origins: Mapping[str, int]
    """Number of output rows by origin: ``own``, ``base``, ``only`` (the only model that has the
    token), ``mean`` (over models that have it), ``named`` (in the configuration), ``zero``,
    ``padding``; of a transplant also ``bytes``, ``role``, ``prefix`` and ``made``."""


@dataclass(frozen=True)
class VocabularyReport:
    """The output's vocabulary: the tokenizer of a model, with tokens added and removed."""

    tokenizer: str
    tokens: int
    added: int
    removed: int
    rows: int
    models: tuple[VocabularyRows, ...]


@dataclass(frozen=True)
class InputReport:
    """An input model, under its name in the configuration."""

    name: str
    directory: str
    bytes: int
    tensors: int
    licence: str | None = None
    """As stated in its model card; null if there is none."""


@dataclass(frozen=True)
class ParameterLine:
    """A configuration entry that sets a parameter of the output's document."""

    parameter: str
    model: str | None
    """Null if it applies to all models together."""
    filter: str | None
    """Substring of tensor names; null if it applies to all others."""
    place: Place
    layers: Layers
    """The output layers it applies to."""
    values: tuple[Any, ...]
    """One value, or one per layer for a gradient."""


@dataclass(frozen=True)
class BudgetRow:
    """The plan under one memory budget."""

    budget_bytes: int
    peak_bytes: int
    read_bytes: int
    repeated_bytes: int
    """The part of ``read_bytes`` that is read again because memory is short."""
    workers: int
    seconds: float
    """Estimated duration, like that of the plan."""


@dataclass(frozen=True, kw_only=True)
class BudgetsReport(Document):
    """A plan under several memory budgets."""

    document: str = "budgets"
    budget_bytes: int
    """The budget of the plan."""
    rows: tuple[BudgetRow, ...]


@dataclass(frozen=True)
class Options:
    """The options of the command line or caller."""

    ram: int | None
    """Null for the default: 80% of the available memory."""
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
    """Memory of the whole process: the budget, and the predicted peak."""

    budget_bytes: int
    peak_bytes: int
    minimum_bytes: int
    """The smallest budget that works."""
    machine_bytes: int
    """Memory currently available to this process."""


@dataclass(frozen=True)
class DeviceReport:
    """A device other than the CPU, and how much of its memory may be used."""

    name: str
    title: str
    memory_bytes: int


@dataclass(frozen=True)
class PlacementReport:
    """The number of merges on a device, and the reason."""

    device: str
    reason: str
    merges: int


@dataclass(frozen=True)
class IOReport:
    """Bytes of tensor data and headers read and written."""

    read_bytes: int
    write_bytes: int
    repeated_bytes: int
    """The part of ``read_bytes`` that is read again because memory is short."""
    cloned_bytes: int
    """Bytes that are neither read nor written: the output shares them with its inputs."""
    copied_bytes: int
    """The part of ``write_bytes`` that is copied unchanged."""
    spilled_bytes: int = 0
    """The part of ``write_bytes`` that goes to temporary files of the run."""


@dataclass(frozen=True)
class TimeReport:
    """The estimated duration of a merge: assumed rates, scaled by the median ratio of actual to
    estimated time of recent runs, if any are known."""

    seconds: float
    storage_seconds: float
    compute_seconds: float
    """Seconds of arithmetic on the CPU; devices are assumed to keep up with storage."""
    assumed_storage_rate: float
    """Bytes per second, read and written together."""
    low_seconds: float | None = None
    """The same with the lowest ratio; null if no run is known."""
    high_seconds: float | None = None
    """The same with the highest ratio."""


@dataclass(frozen=True)
class DiskReport:
    """Disk space of an output directory."""

    needed_bytes: int
    """Bytes still to be written, with side files and a small reserve."""
    free_bytes: int


@dataclass(frozen=True)
class Difference:
    """A difference between the merge in a directory (``there``) and this one (``here``); null if
    absent."""

    what: str
    there: str | None
    here: str | None


@dataclass(frozen=True)
class OutputState:
    """The current state of an output directory, and what ``merge`` will do."""

    directory: str
    condition: str
    """``absent``, ``empty``, ``file``, ``foreign``, ``finished``, ``incomplete``,
    ``interrupted``, ``damaged`` or ``unreadable``."""
    same: bool | None
    """Whether it contains this merge; null if it contains none."""
    will: str
    """``start``, ``continue``, ``repair``, ``compare``, ``nothing`` or ``refuse``."""
    message: str
    finished_tensors: int
    differences: tuple[Difference, ...] = ()
    faults: tuple[str, ...] = ()
    remedy: str = ""
    """What to do if ``merge`` refuses the directory."""


@dataclass(frozen=True)
class UnusedInput:
    """Input tensors that are not used, with the reason."""

    model: str
    reason: str
    layers: tuple[Layers, ...]
    tensors: tuple[str, ...]
    bytes: int


@dataclass(frozen=True, kw_only=True)
class PlanReport(Document):
    """The plan of a merge, known before weights are read."""

    document: str = "plan"
    configuration: str | None
    """Path of the configuration; null if it was given as data."""
    output: OutputReport
    vocabulary: VocabularyReport | None
    """Null without tokenizer settings."""
    stages: tuple[Outline, ...]
    """The documents in order; the last one is the output."""
    method: str
    """The method of the last stage."""
    parameters: tuple[ParameterLine, ...]
    """Parameters set in the output's document, by entry."""
    draws: bool
    """Whether the result depends on the seed."""
    seed: int
    options: Options
    models: tuple[InputReport, ...]
    tasks: Mapping[str, int]
    memory: MemoryReport
    workers: int
    compiled: bool
    """Whether machine code computes on the CPU."""
    to_compile: tuple[str, ...]
    """Functions to compile first, once on this machine."""
    devices: tuple[DeviceReport, ...]
    placement: tuple[PlacementReport, ...]
    io: IOReport
    time: TimeReport
    disk: DiskReport | None
    """Null if no output directory was given."""
    output_state: OutputState | None
    """Null if no output directory was given."""
    warnings: tuple[Finding, ...]
    unused_inputs: tuple[UnusedInput, ...]
    fingerprint: str


@dataclass(frozen=True)
class Measured:
    """Measurements of a run. Device figures are from the kernel, if available."""

    peak_rss_bytes: int
    read_bytes: int
    write_bytes: int
    cloned_bytes: int
    """Bytes that were neither read nor written: the output shares them with its inputs."""
    device_read_bytes: int | None
    device_write_bytes: int | None


@dataclass(frozen=True)
class Predicted:
    """Predictions of the schedule; after an interruption, for the remaining work."""

    peak_bytes: int
    read_bytes: int
    write_bytes: int


@dataclass(frozen=True)
class CheckReport:
    """The result of ``--check``: the numbers of ``tensors`` and ``elements`` that were correct.

    ``passed_over`` counts chosen tensors that could not be recomputed, by reason.
    """

    tensors: int
    elements: int
    passed_over: Mapping[str, int]
    wrong: str | None = None
    """Which tensor was not correct, after which the check ended; null if all were."""


@dataclass(frozen=True)
class CodingError:
    """The quantisation error of a tensor."""

    tensor: str
    """The name of the unquantised tensor."""
    error: float
    """‖written - computed‖ / ‖computed‖"""


@dataclass(frozen=True, kw_only=True)
class MergeReport(PlanReport):
    """A finished merge: the plan, and the measurements."""

    document: str = "merge"
    directory: str
    resumed_tensors: int
    """Tensors finished by an earlier run."""
    was_finished: bool
    wall_seconds: float
    measured: Measured
    predicted: Predicted | None
    """Null if there was nothing to do."""
    run_warnings: tuple[Finding, ...]
    checked: CheckReport | None = None
    coding_errors: tuple[CodingError, ...] = ()
    """Quantised tensors, the largest error first; copied ones are not included."""
